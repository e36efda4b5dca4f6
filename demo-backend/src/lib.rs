//! A simulated LLM server, for demonstrations and for tests: it takes its time as such servers do, and it fails on purpose.
//!
//! # Example
//!
//! ```
//! use demo_backend::{Fault, MockBackend, Reply};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let backend = MockBackend::builder()
//!     .script([Reply::status(500), Reply::tokens(20)]) // then the simulation
//!     .fault("hang,share=0.1,from=10s".parse()?)
//!     .start()
//!     .await?;
//! assert!(backend.url().starts_with("http://127.0.0.1:"));
//! assert!(backend.seen().is_empty());
//!
//! backend.chaos([Fault::reset(3)]); // from now on, and nothing else
//! backend.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Behaviour
//!
//! `POST /generate`, `/v1/chat/completions`, `/v1/completions` (both also as events) and `/v1/embeddings`,
//! `GET /v1/models`, `/health`, `/load` and `/metrics`; the shapes are in [`api`]. `GET /chaos` shows the [`Fault`]s,
//! `POST` puts one or a list in their place, `DELETE` ends them. HTTP/1.1 and HTTP/2 without TLS on one port.
//!
//! A request waits for one of the slots, in a queue of bounded length; a full queue is 503 with `Retry-After`. With a
//! slot its prompt is processed: a time that grows with the prompt, less for a beginning that is known from an earlier
//! one. Then the head of the answer is sent, and its tokens come at a rate that all who have got so far share evenly. A
//! token is one word; a prompt has one for four bytes.
//!
//! Each answer carries `x-instance-id`, `x-request-id` (the caller's, or a new one) and `endpoint-load-metrics`, the
//! load in the text form of ORCA.
//!
//! Lengths, words and faults come from the seed and from the number of the request: a run with the same requests in the
//! same order is the same run. With `temperature` 0 or a `seed` of its own, a request gets the same answer whatever
//! came before it.
//!
//! # Streaming
//!
//! A request is in flight, and is written down as such, until its body has ended. Each event is one frame, sent as soon
//! as its token is due. Tokens are counted as they are handed to the connection.
//!
//! # Cancellation
//!
//! A client that leaves gives its slot, its share of the rate or its place in the queue back at once, and is written
//! down as [`Ended::ClientLeft`].
//!
//! # Errors
//!
//! Wrong requests are 400, 404, 405, 413 (beyond 4 MiB) or 415 with a body that says what is wrong and where: under
//! `/v1` OpenAI's error object, else RFC 9457's problem.
//!
//! # Metrics
//!
//! `llm_instance_requests_total`, `_errors_total`, `_clients_left_total`, `_tokens_total`, `_prompt_tokens_total`,
//! `_prompt_tokens_cached_total`, `_faults_total{fault}`, `_in_flight`, `_active_slots`, `_queue_depth`, `_slots` and the
//! histogram `llm_instance_duration_seconds`, all of requests to `/generate` and `/v1`.
//!
//! # When not to use it
//!
//! It checks what a client must know to be wrong, not all that OpenAI checks; tools, log probabilities and stop words
//! are read over.
//!
//! # Design
//!
//! Processor sharing is exact: a count of the tokens that one stream would have got so far stands for all of them, so
//! that nobody needs to be told when another comes or goes. What sleeps looks at it again once a token; timers have
//! tokio's granularity of 1 ms, and what is due by then comes together.

mod answer;
pub mod api;
mod body;
mod chaos;
mod errors;
mod fault;
mod forward;
mod instance;
mod meters;
mod mock;
mod reply;
mod rng;
mod routes;
mod seen;
mod server;
mod simulation;
mod slots;
pub mod span;
mod stream;
mod ticket;

pub use body::AnswerBody;
pub use fault::{Fault, InvalidFault, Target};
pub use forward::{Forward, InvalidForward};
pub use mock::{Builder, MockBackend};
pub use reply::Reply;
pub use seen::{Ended, Seen};
pub use simulation::{InvalidLengths, Lengths};
