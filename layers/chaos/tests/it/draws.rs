use palisade_chaos::{ChaosLayer, Fault, Ratio};
use tokio::time::advance;

use crate::support::{SECOND, chaos, request, strikes};

fn tenth() -> Ratio {
    Ratio::new(0.1).unwrap()
}

async fn struck(layer: &ChaosLayer, requests: usize) -> Vec<bool> {
    let mut struck = Vec::new();
    for _ in 0..requests {
        struck.push(strikes(layer, request()).await);
    }
    struck
}

fn many(struck: &[bool]) -> usize {
    struck.iter().filter(|&&struck| struck).count()
}

#[tokio::test(start_paused = true)]
async fn a_share_of_requests_is_struck() {
    for (share, bounds) in [(0.1, 150..250), (0.5, 920..1080), (1.0, 2000..2001)] {
        let layer = chaos([Fault::reset().share(Ratio::new(share).unwrap())]);
        let many = many(&struck(&layer, 2000).await);
        assert!(bounds.contains(&many), "{share}: {many}");
        assert_eq!(layer.handle().snapshot().faults[0].struck, many as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_strikes_the_same_requests() {
    let run = async |seed| {
        let layer = ChaosLayer::new(seed, [Fault::reset().share(Ratio::HALF)]);
        struck(&layer, 200).await
    };
    assert_eq!(run(1).await, run(1).await);
    assert_ne!(run(1).await, run(2).await);
}

#[tokio::test(start_paused = true)]
async fn a_fault_is_drawn_alike_whatever_the_others_do() {
    let reset = || Fault::reset().share(Ratio::HALF);
    let alone = chaos([reset()]);
    let other = Fault::hang().share(tenth()).when(|_| false);
    let beside = chaos([reset(), other]);
    assert_eq!(struck(&alone, 200).await, struck(&beside, 200).await);
}

#[tokio::test(start_paused = true)]
async fn faults_strike_apart_from_each_other() {
    let reset = || Fault::reset().share(Ratio::HALF);
    let first = struck(&chaos([reset()]), 1000).await;
    let never = Fault::hang().when(|_| false);
    let second = struck(&chaos([never, reset()]), 1000).await;
    let both: Vec<_> = first.iter().zip(&second).map(|(a, b)| *a && *b).collect();
    assert!((200..300).contains(&many(&both)), "{}", many(&both));
}

#[tokio::test(start_paused = true)]
async fn only_requests_that_meet_the_condition_are_struck() {
    let layer = chaos([Fault::reset().when(|head| head.uri.path() == "/pay")]);
    let mut pays = request();
    *pays.uri_mut() = "/pay".parse().unwrap();
    assert!(strikes(&layer, pays).await);
    assert!(!strikes(&layer, request()).await);
}

#[tokio::test(start_paused = true)]
async fn a_fault_keeps_to_its_window() {
    let layer = chaos([Fault::reset().during(10 * SECOND, 30 * SECOND)]);
    let mut times = Vec::new();
    for second in 0..60 {
        if strikes(&layer, request()).await {
            times.push(second);
        }
        advance(SECOND).await;
    }
    assert_eq!(times, (10..40).collect::<Vec<_>>());
    // Switched on again, it begins anew.
    layer.handle().disable();
    layer.handle().enable();
    assert!(!strikes(&layer, request()).await);
    advance(10 * SECOND).await;
    assert!(strikes(&layer, request()).await);
}
