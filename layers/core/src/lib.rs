//! What the layers of palisade share: a request ends when its response body ends.
//!
//! Permits, verdicts, latencies, in-flight counts and token costs are all settled at that moment, also on error and
//! on drop, by one tested future and one tested body that every layer reuses.
//!
//! # Behaviour
//!
//! A *gate* only decides and accounts; [`gate`] turns any [`Gate`](gate::Gate) into a layer. A *shape* changes calls;
//! it judges with the same [`classify`] and can hold guards of gates in a [`Watch`](settle::Watch). Keys, judges and
//! conditions take [`head`]s and never name a body, so that closures work for axum, tonic and hyper alike. What a
//! layer refuses is a [`Rejected`](reject::Rejected), which [`respond`] turns into an answer.
//!
//! # Streaming
//!
//! A judge that reads the body counts its [pieces](classify::Judge::streamed) as they come. A guard that
//! [follows](settle::Settle::FOLLOWS) them can end the answer where it is: the reader gets what had come and then the
//! refusal, and the service behind is let go at once.
//!
//! # Cancellation
//!
//! A future or a body that is dropped tells its guard [`Canceled`](classify::Verdict::Canceled), once; a panic in user
//! code does the same while it unwinds.
//!
//! # When not to use it
//!
//! Users of the layers need the crate `palisade` only, which shows what they need of this one.
//!
//! # Design
//!
//! A service that holds a permit in its future gives it back with the head of the answer, while a stream goes on for
//! minutes: in-flight counts are too low, latencies too short, and an error in mid-stream is never heard. So the guard
//! moves into the body. That is written once, here, and generic: no box on the path of a request, and neighbours
//! that are fused with [`gates`](gate::gates) share one future, one body and one reading of the clock each way.
//!
//! What layers cost a request that nothing happens to is mostly the clock and the moving of futures and answers from one
//! to the next. So the clock is not read at the end for a guard that needs [no more than the verdict](settle::Settle::settle_untimed),
//! what is only needed later lies behind a pointer, in [memory that other requests have left](spare), and a guard whose
//! request has ended with its head is not moved into the body.

pub mod attempt;
pub mod classify;
pub mod cost;
pub mod deadline;
pub mod gate;
pub mod head;
pub mod key;
pub mod peek;
pub mod quantile;
pub mod ratio;
pub mod reject;
pub mod replay;
pub mod respond;
pub mod retry_after;
pub mod settle;
pub mod signal;
pub mod spare;
#[cfg(feature = "testing")]
pub mod testing;
pub mod time;
pub mod timer;

/// A type-erased error, as Tower uses it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
