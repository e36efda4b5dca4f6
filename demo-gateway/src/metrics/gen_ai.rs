//! What OpenTelemetry's conventions for generative AI want to know of a server.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use metrics::{Histogram, Label, describe_histogram, histogram};
use palisade::classify::Verdict;

use crate::{config::Config, exchange::Operation};

pub(super) const TOKENS: &str = "gen_ai_client_token_usage";
pub(super) const DURATION: &str = "gen_ai_server_request_duration_seconds";
pub(super) const FIRST_TOKEN: &str = "gen_ai_server_time_to_first_token_seconds";
pub(super) const PER_TOKEN: &str = "gen_ai_server_time_per_output_token_seconds";

/// Which API backends speak: what answers behind it, only the model tells.
const PROVIDER: &str = "openai";

/// What stands for all models that nobody knows.
pub(crate) const OTHER: &str = "other";

/// How many models are known besides those of the configuration: the first that a backend has answered for.
const LEARNED: usize = 20;

/// Longer names are no names.
const LONGEST_NAME: usize = 100;

/// In the order of [`Verdict::name`]s that can be the end of a request that failed.
const ERRORS: [&str; 6] = [
    "failure",
    "overload",
    "caller_fault",
    "timed_out",
    "unsent",
    "refused",
];

pub(super) fn describe() {
    describe_histogram!(
        TOKENS,
        "Tokens that a request read (input) and wrote (output)."
    );
    describe_histogram!(
        DURATION,
        "From a request to the end of its answer, by what it failed with if it did."
    );
    describe_histogram!(
        FIRST_TOKEN,
        "From a request to the first event of its stream."
    );
    describe_histogram!(
        PER_TOKEN,
        "Between two tokens of a stream, after the first."
    );
}

/// Handles by model and operation, registered when they are first needed.
pub(crate) struct GenAi {
    models: RwLock<HashMap<Arc<str>, Arc<Model>>>,
    most: usize,
    other: Arc<Model>,
    /// Of requests that are about no model.
    none: Arc<Model>,
}

struct Model {
    name: Arc<str>,
    operations: [OnceLock<Arc<OperationMeters>>; Operation::ALL.len()],
}

/// What is measured of one operation of one model.
pub(crate) struct OperationMeters {
    labels: Vec<Label>,
    pub(crate) input_tokens: Histogram,
    pub(crate) output_tokens: Histogram,
    success: Histogram,
    errors: [OnceLock<Histogram>; ERRORS.len()],
    first_token: OnceLock<Histogram>,
    per_token: OnceLock<Histogram>,
}

impl GenAi {
    pub(super) fn new(config: &Config) -> Self {
        let instead = config.fallbacks.values().flatten();
        let limited = config.rate_limits.iter();
        let limited = limited.flat_map(|rule| &rule.exceptions);
        let limited = limited.filter_map(|one| one.identifier.strip_prefix("model:"));
        let named = config.fallbacks.keys().chain(config.prices.keys());
        let named = named.chain(instead).map(String::as_str);
        let models: HashMap<_, _> = named
            .chain(limited)
            .filter(|name| *name != "default")
            .map(|name| (Arc::from(name), Model::new(name)))
            .collect();
        Self {
            most: models.len() + LEARNED,
            models: RwLock::new(models),
            other: Model::new(OTHER),
            none: Model::new(""),
        }
    }

    /// The handles for a request for that model, which the name of one that succeeded may make known.
    pub(crate) fn of(
        &self,
        operation: Operation,
        model: Option<&str>,
        succeeded: bool,
    ) -> Arc<OperationMeters> {
        let model = match model {
            Some(name) => self.model(name, succeeded),
            None => self.none.clone(),
        };
        let meters = &model.operations[operation as usize];
        let meters = meters.get_or_init(|| Arc::new(OperationMeters::new(operation, &model.name)));
        meters.clone()
    }

    /// Whether requests for this model are counted by its name.
    pub(crate) fn knows(&self, model: &str) -> bool {
        let known = self.models.read().unwrap_or_else(PoisonError::into_inner);
        known.contains_key(model)
    }

    fn model(&self, name: &str, succeeded: bool) -> Arc<Model> {
        let known = self.models.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = known.get(name) {
            return model.clone();
        }
        let learns = succeeded && known.len() < self.most && name.len() <= LONGEST_NAME;
        drop(known);
        if !learns {
            return self.other.clone();
        }
        let mut known = self.models.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= self.most {
            return self.other.clone();
        }
        let model = known.entry(name.into()).or_insert_with(|| Model::new(name));
        model.clone()
    }
}

impl Model {
    fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            operations: Default::default(),
        })
    }
}

impl OperationMeters {
    fn new(operation: Operation, model: &Arc<str>) -> Self {
        let mut labels = vec![
            Label::from_static_parts("gen_ai_operation_name", operation.name()),
            Label::from_static_parts("gen_ai_provider_name", PROVIDER),
        ];
        if !model.is_empty() {
            labels.push(Label::new("gen_ai_request_model", model.clone()));
        }
        let tokens = |kind: &'static str| {
            let mut labels = labels.clone();
            labels.push(Label::from_static_parts("gen_ai_token_type", kind));
            histogram!(TOKENS, labels)
        };
        Self {
            input_tokens: tokens("input"),
            output_tokens: tokens("output"),
            success: histogram!(DURATION, labels.clone()),
            errors: Default::default(),
            first_token: OnceLock::new(),
            per_token: OnceLock::new(),
            labels,
        }
    }

    /// How long requests took that ended so.
    pub(crate) fn duration(&self, verdict: Verdict) -> &Histogram {
        let name = verdict.name();
        let Some(at) = ERRORS.iter().position(|error| *error == name) else {
            return &self.success;
        };
        self.errors[at].get_or_init(|| {
            let mut labels = self.labels.clone();
            labels.push(Label::from_static_parts("error_type", ERRORS[at]));
            histogram!(DURATION, labels)
        })
    }

    /// How long the first event of streams took to come.
    pub(crate) fn first_token(&self) -> &Histogram {
        let register = || histogram!(FIRST_TOKEN, self.labels.clone());
        self.first_token.get_or_init(register)
    }

    /// How long streams took for a token.
    pub(crate) fn per_token(&self) -> &Histogram {
        let register = || histogram!(PER_TOKEN, self.labels.clone());
        self.per_token.get_or_init(register)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_model_is_known_by_configuration_or_by_an_answer_and_few_are() {
        let all = GenAi::new(&Config {
            fallbacks: BTreeMap::from([("a".into(), vec!["b".into()]), ("default".into(), vec![])]),
            ..Config::default()
        });
        let name = |name: &str, succeeded| all.model(name, succeeded).name.to_string();
        assert_eq!(name("a", false), "a");
        assert_eq!(name("b", false), "b");
        assert_eq!(name("default", false), OTHER);
        assert_eq!(name("made-up", false), OTHER);
        assert_eq!(name("real", true), "real");
        assert_eq!(name("real", false), "real");
        assert_eq!(name(&"long".repeat(100), true), OTHER);
        let learned = (0..100).map(|number| name(&number.to_string(), true));
        assert_eq!(
            learned.filter(|name| name == OTHER).count(),
            100 - LEARNED + 1
        );
        assert_eq!(name("a", true), "a");
    }

    #[test]
    fn every_verdict_that_fails_has_a_place() {
        for verdict in [
            Verdict::Failure,
            Verdict::Overload { retry_after: None },
            Verdict::CallerFault,
            Verdict::TimedOut,
            Verdict::Unsent,
            Verdict::Refused(palisade::reject::Reason::Overloaded),
        ] {
            assert!(ERRORS.contains(&verdict.name()), "{verdict:?}");
        }
        assert!(!ERRORS.contains(&Verdict::Success.name()));
    }
}
