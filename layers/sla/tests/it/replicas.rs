//! Several processes as one.

use std::time::Duration;

use http::StatusCode;
use palisade_sla::{Export, Replicas, Targets};
use tokio::time::advance;

use crate::{layer, serve};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn what_three_replicas_export_comes_to_what_one_would_have_counted() {
    let replicas = [(); 3].map(|()| layer().named("chat"));
    let one = layer().named("chat");
    for request in 0..300_u64 {
        let status = match request % 7 {
            0 => StatusCode::BAD_GATEWAY,
            _ => StatusCode::OK,
        };
        // Both see the same time pass.
        let both = [&replicas[request as usize % 3], &one];
        let taken = Duration::from_millis(request);
        let [left, right] = both.map(|layer| serve(layer, status, taken));
        tokio::join!(left, right);
    }
    advance(Duration::from_secs(20)).await;
    let mut merged = Replicas::new();
    for layer in &replicas {
        let sent = serde_json::to_string(&layer.handle().export(MINUTE)).unwrap();
        assert!(sent.len() < 6000, "{}", sent.len());
        let export: Export = serde_json::from_str(&sent).unwrap();
        assert_eq!((export.version, &export.name[..]), (1, "chat"));
        merged.add(&export).unwrap();
    }
    let mut merged = merged.summary(&Targets::default()).unwrap();
    let big = one.handle().summary(MINUTE);
    assert_eq!(merged.total_requests, big.total_requests);
    assert!(merged.total_requests > 200 && merged.error_count > 20);
    // What the process takes is looked up each time.
    merged.process_metrics = big.process_metrics;
    merged.sla_compliance = big.sla_compliance;
    assert_eq!(merged, big);
}
