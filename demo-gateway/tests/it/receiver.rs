//! A webhook that keeps what it is told.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What a receiver does with a message.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Status(u16),
    /// Reads it and says nothing.
    Hang,
}

#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) path: String,
    pub(crate) headers: String,
    pub(crate) body: Value,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// A server that messages are posted to, on a socket of its own.
pub(crate) struct Receiver {
    pub(crate) url: String,
    messages: Arc<Mutex<Vec<Message>>>,
    server: JoinHandle<()>,
}

impl Receiver {
    /// Does this with the first messages, and takes all others.
    pub(crate) async fn new(acts: &[Act]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, acts)
    }

    /// Fails on each message about this alert.
    pub(crate) async fn failing_on(key: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start(listener, &[], Some(key))
    }

    pub(crate) fn on(listener: TcpListener, acts: &[Act]) -> Self {
        Self::start(listener, acts, None)
    }

    fn start(listener: TcpListener, acts: &[Act], fails_on: Option<&'static str>) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let messages = Arc::new(Mutex::new(Vec::new()));
        let acts = Arc::new(Mutex::new(VecDeque::from(acts.to_vec())));
        let server = tokio::spawn({
            let messages = messages.clone();
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(converse(stream, messages.clone(), acts.clone(), fails_on));
                }
            }
        });
        Self {
            url,
            messages,
            server,
        }
    }

    pub(crate) fn messages(&self) -> Vec<Message> {
        self.messages.lock().unwrap().clone()
    }

    /// All alerts so far, as `status severity key`.
    pub(crate) fn alerts(&self) -> Vec<String> {
        let messages = self.messages();
        let alerts = messages.iter().flat_map(|it| it.body["alerts"].as_array());
        let shown = alerts.flatten().map(|alert| {
            let text = |name: &str| alert[name].as_str().unwrap().to_owned();
            format!("{} {} {}", text("status"), text("severity"), text("key"))
        });
        shown.collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn converse(
    mut stream: TcpStream,
    messages: Arc<Mutex<Vec<Message>>>,
    acts: Arc<Mutex<VecDeque<Act>>>,
    fails_on: Option<&'static str>,
) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let is_meant = name.eq_ignore_ascii_case("content-length");
            is_meant.then(|| value.parse::<usize>().unwrap())
        });
        if body.len() >= length.unwrap() {
            break (head.to_owned(), body.to_owned());
        }
    };
    let act = acts.lock().unwrap().pop_front();
    messages.lock().unwrap().push(Message {
        path: head.split(' ').nth(1).unwrap().to_owned(),
        headers: head,
        body: serde_json::from_str(&body).unwrap(),
    });
    let status = match act {
        Some(Act::Hang) => {
            // Until the sender has had enough.
            let _closed = stream.read_buf(&mut bytes).await;
            return;
        }
        Some(Act::Status(status)) => status,
        None if fails_on.is_some_and(|key| body.contains(key)) => 500,
        None => 200,
    };
    let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let _sent = stream.write_all(answer.as_bytes()).await;
}
