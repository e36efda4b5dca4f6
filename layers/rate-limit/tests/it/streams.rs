//! Many streams at once against a small quota.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{
    BodyExt,
    channel::{Channel, Sender},
};
use palisade_core::{
    BoxError,
    reject::{Reason, Rejected},
};
use palisade_rate_limit::{Estimate, Quota, Rule, Tokens};
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::tokens::{PIECE, asking, layer, tokens};

/// Numbers that are the same each time (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }
}

/// A stream that runs.
struct Stream<B> {
    sender: Sender<Bytes, BoxError>,
    body: std::pin::Pin<Box<B>>,
    prompt: u64,
    most: u64,
    /// What the model will write.
    length: u64,
    estimate: u64,
    streamed: u64,
}

/// What came of many streams against a quota.
#[derive(Debug, Default)]
struct Figures {
    admitted: u64,
    /// At a time.
    streams: usize,
    refused: u64,
    cut: u64,
    /// The most that was used beyond the quota at any time.
    overshoot: u64,
    /// What it may be, where that was.
    bound: u64,
    settled: u64,
    counted: u64,
}

const LIMIT: u64 = 10_000;

/// 64 streams at a time, of which each step sends some or ends one: by its end, with and without usage, by an error, by
/// being dropped. New ones come until so many have.
async fn run(rule: Rule, seed: u64, requests: u64) -> Figures {
    let layer = layer([rule]);
    let senders: Arc<Mutex<Option<Sender<Bytes, BoxError>>>> = Arc::default();
    let opened = senders.clone();
    let mut service = layer.layer(service_fn(move |_: Request<()>| {
        let (sender, body) = Channel::<Bytes, BoxError>::new(8);
        *opened.lock().unwrap() = Some(sender);
        let response = Response::builder().header("content-type", "text/event-stream");
        std::future::ready(Ok::<_, Infallible>(response.body(body).unwrap()))
    }));
    let mut random = Random(seed);
    let mut streams = Vec::new();
    let mut figures = Figures::default();
    let (mut come, mut bound) = (0, 0);
    let left = || {
        layer
            .handle()
            .peek("tokens", &"alice".into())
            .unwrap()
            .remaining
    };
    while come < requests || !streams.is_empty() {
        while streams.len() < 64 && come < requests {
            come += 1;
            let prompt = random.within(10, 30);
            let most = random.within(20, 220);
            let before = left();
            let asked = asking(Tokens::new("m", prompt).max_completion(most));
            let Ok(response) = service.ready().await.unwrap().call(asked).await else {
                figures.refused += 1;
                break;
            };
            figures.admitted += 1;
            let sender = senders.lock().unwrap().take().unwrap();
            streams.push(Stream {
                sender,
                body: Box::pin(response.into_body()),
                prompt,
                most,
                // Short at first, so that too little is learned.
                length: random.within(0, if come < 50 { 15 } else { most }),
                estimate: before - left() - prompt,
                streamed: 0,
            });
            figures.streams = figures.streams.max(streams.len());
            let beyond = |stream: &Stream<_>| stream.most.saturating_sub(stream.estimate);
            bound = streams.iter().map(beyond).sum();
        }
        advance(Duration::from_millis(1)).await;
        if streams.is_empty() {
            continue;
        }
        let which = random.below(streams.len() as u64) as usize;
        let stream = &mut streams[which];
        let pieces = random.within(1, 20).min(stream.length - stream.streamed);
        let mut ended = None;
        if pieces > 0 && random.below(20) > 0 {
            // Several events in a frame, cut in the middle of the last one.
            let text = PIECE.repeat(pieces as usize);
            let (first, second) = text.as_bytes().split_at(text.len() - 9);
            for (part, events) in [(first, pieces - 1), (second, 1)] {
                let part = Bytes::copy_from_slice(part);
                stream.sender.send_data(part).await.unwrap();
                stream.body.as_mut().frame().await.unwrap().unwrap();
                stream.streamed += events;
                if is_cut(&mut stream.body) {
                    figures.cut += 1;
                    ended = Some("cut");
                    break;
                }
            }
        } else {
            ended = Some(["told", "counted", "error", "dropped"][random.below(4) as usize]);
        }
        if let Some(how) = ended {
            let mut stream = streams.swap_remove(which);
            let (prompt, streamed) = (stream.prompt, stream.streamed);
            let mut settled = prompt + streamed;
            match how {
                "told" => {
                    let usage = format!(
                        "data: {{\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{streamed}}}}}\n\n"
                    );
                    stream.sender.send_data(usage.into()).await.unwrap();
                    drop(stream.sender);
                    while let Some(frame) = stream.body.as_mut().frame().await {
                        frame.unwrap();
                    }
                }
                "counted" => {
                    drop(stream.sender);
                    assert!(stream.body.as_mut().frame().await.is_none());
                    if streamed == 0 {
                        // Nobody knows: the reservation stands.
                        settled = prompt + stream.estimate;
                    }
                }
                "error" => {
                    stream.sender.abort("on purpose".into());
                    assert!(stream.body.as_mut().frame().await.unwrap().is_err());
                    if streamed == 0 {
                        settled = 0;
                    }
                }
                // Dropped, or read to the refusal.
                _ => drop(stream.body),
            }
            figures.settled += settled;
        }
        let running: u64 = streams
            .iter()
            .map(|stream| stream.prompt + stream.streamed)
            .sum();
        let beyond = (figures.settled + running).saturating_sub(LIMIT);
        if beyond > figures.overshoot {
            figures.overshoot = beyond;
            figures.bound = bound;
        }
    }
    assert!(
        figures.overshoot <= figures.bound || figures.cut > 0,
        "{figures:?}"
    );
    // Also what is beyond the quota: a larger one shows it.
    layer
        .handle()
        .update("tokens", Quota::per_hour(1_000_000))
        .unwrap();
    figures.counted = 1_000_000 - left();
    figures
}

/// Whether the layer has ended the body.
fn is_cut<B: Body<Data = Bytes, Error = BoxError>>(body: &mut std::pin::Pin<Box<B>>) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    match body.as_mut().poll_frame(&mut context) {
        Poll::Pending => false,
        Poll::Ready(frame) => {
            let error = frame.unwrap().unwrap_err();
            let rejected = Rejected::find(&*error).unwrap();
            assert_eq!(rejected.reason(), Reason::RateLimited);
            true
        }
    }
}

/// The worst of many runs.
async fn worst(rule: impl Fn() -> Rule) -> Figures {
    let mut worst = Figures::default();
    for seed in 1..=20 {
        let figures = run(rule(), 0x9e37_79b9_7f4a_7c15 ^ seed, 3000).await;
        assert_eq!(figures.counted, figures.settled, "{figures:?}");
        assert!(figures.streams == 64 && figures.refused > 0, "{figures:?}");
        worst.admitted += figures.admitted;
        worst.streams = worst.streams.max(figures.streams);
        worst.refused += figures.refused;
        worst.cut += figures.cut;
        if figures.overshoot >= worst.overshoot {
            worst.overshoot = figures.overshoot;
            worst.bound = figures.bound;
        }
        worst.settled = worst.settled.max(figures.settled);
    }
    worst
}

#[tokio::test(start_paused = true)]
async fn of_64_streams_that_reserve_the_most_none_uses_what_is_not_there() {
    let worst = worst(|| tokens(LIMIT)).await;
    println!("most: {worst:?}");
    assert_eq!((worst.overshoot, worst.cut), (0, 0));
    assert!(worst.settled <= LIMIT);
}

#[tokio::test(start_paused = true)]
async fn of_64_streams_by_what_was_learned_the_quota_is_exceeded_by_no_more_than_was_not_reserved()
{
    let worst = worst(|| tokens(LIMIT).estimate(Estimate::Learned)).await;
    println!("learned: {worst:?}");
    assert!(worst.overshoot <= worst.bound);
    assert_eq!(worst.cut, 0);
}

#[tokio::test(start_paused = true)]
async fn of_64_streams_that_grow_each_exceeds_the_quota_by_less_than_a_step() {
    let worst = worst(|| tokens(LIMIT).estimate(Estimate::Learned).growing()).await;
    println!("growing: {worst:?}");
    assert!(worst.overshoot < 64 * 64);
    assert!(worst.cut > 0, "some were ended");
}
