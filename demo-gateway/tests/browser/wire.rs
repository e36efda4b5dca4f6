//! What is said to a browser and what it says, as JSON over a WebSocket.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

/// Events in their order: what each is called and what it says.
pub(crate) type Seen = Arc<Mutex<Vec<(String, Value)>>>;

/// The connection to the browser, shared by its tabs.
#[derive(Clone)]
pub(crate) struct Wire {
    out: mpsc::UnboundedSender<String>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    number: AtomicU64,
    asked: Mutex<HashMap<u64, oneshot::Sender<Value>>>,
    /// By session.
    heard: Mutex<HashMap<String, Seen>>,
}

impl Wire {
    pub(crate) async fn open(url: &str) -> Self {
        let (socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        let (mut sink, mut stream) = socket.split();
        let (out, mut queue) = mpsc::unbounded_channel::<String>();
        tokio::spawn(async move {
            while let Some(text) = queue.recv().await {
                if sink.send(Message::text(text)).await.is_err() {
                    return;
                }
            }
        });
        let shared = Arc::new(Shared::default());
        let hears = shared.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                if let Message::Text(text) = message {
                    hears.hear(serde_json::from_str(&text).unwrap());
                }
            }
        });
        Self { out, shared }
    }

    /// Keeps what is told of this tab.
    pub(crate) fn listen(&self, session: &str, seen: Seen) {
        self.shared
            .heard
            .lock()
            .unwrap()
            .insert(session.into(), seen);
    }

    /// What is answered; an error ends the test.
    pub(crate) async fn ask(&self, session: Option<&str>, method: &str, params: Value) -> Value {
        let id = self.shared.number.fetch_add(1, Relaxed);
        let (answers, answer) = oneshot::channel();
        self.shared.asked.lock().unwrap().insert(id, answers);
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        self.out.send(message.to_string()).unwrap();
        let answer = timeout(Duration::from_secs(60), answer).await;
        let answer = answer
            .unwrap_or_else(|_| panic!("no answer to {method}"))
            .unwrap();
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }
}

impl Shared {
    fn hear(&self, mut message: Value) {
        if let Some(id) = message["id"].as_u64() {
            if let Some(asked) = self.asked.lock().unwrap().remove(&id) {
                let _left = asked.send(message);
            }
            return;
        }
        let session = message["sessionId"].as_str().unwrap_or_default();
        if let Some(seen) = self.heard.lock().unwrap().get(session) {
            let name = message["method"].as_str().unwrap_or_default().to_owned();
            seen.lock().unwrap().push((name, message["params"].take()));
        }
    }
}
