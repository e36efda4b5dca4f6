//! How all requests are answered, whatever is asked.

use std::sync::OnceLock;

use http::StatusCode;
use metrics::{Counter, counter, describe_counter};

const ANSWERS: &str = "palisade_gateway_answers_total";

/// As nginx has it, of a request whose caller has left before there was an answer.
const NONE: u16 = 499;

/// The statuses that have a place: 100 to 599.
const PLACES: usize = 500;

pub(super) fn describe() {
    describe_counter!(
        ANSWERS,
        "Answers to requests of all paths by their status; 499 where the caller left before."
    );
}

/// By status, registered when it is first needed.
pub(super) struct Answers(Box<[OnceLock<Counter>]>);

impl Default for Answers {
    fn default() -> Self {
        Self((0..PLACES).map(|_| OnceLock::new()).collect())
    }
}

impl Answers {
    pub(super) fn count(&self, status: Option<StatusCode>) {
        let status = status.map_or(NONE, |status| status.as_u16());
        let Some(place) = self.0.get(usize::from(status.saturating_sub(100))) else {
            return;
        };
        let register = || counter!(ANSWERS, "status" => status.to_string());
        place.get_or_init(register).increment(1);
    }
}
