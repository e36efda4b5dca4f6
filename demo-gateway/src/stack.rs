//! Which layer goes outside which. The only file that names them in their order.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use palisade::{
    BoxError,
    balance::{Balance, BalanceLayer, Endpoint},
    circuit_breaker::CircuitBreaker,
    deadline::{AttemptTimeout, AttemptTimeoutLayer, DeadlineLayer, DeadlineService},
    gate::{GateLayer, Gated, gates},
    rate_limit::RateLimit,
    retry::{Backoff, Budget, Repeatable, ReplayBody, Retry, RetryLayer, transient},
    sla::{Objective, Sla},
};
use tower::{Layer, Service, ServiceBuilder, layer::layer_fn};

use crate::{
    backends::{Backend, Backends},
    classify::Llm,
    config::{self, Config},
    elsewhere::{Elsewhere, is_set_aside},
    limits::Limits,
    metrics::Account,
    proxy::Upstream,
};

/// How long a request waits when the only backend asks to be left alone.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// One attempt at one backend: timeout > client.
pub(crate) type EndpointService = AttemptTimeout<Upstream<ReplayBody<Full<Bytes>>>>;

/// Each behind a gate of its own, which the balancer asks before it picks.
pub(crate) type Endpoints = palisade::balance::Endpoints<EndpointService, CircuitBreaker>;

/// Everything between a request that was understood and the backends:
/// account > SLA > deadline > rate limit > retry > elsewhere > balance { breaker > attempt timeout > client }.
pub(crate) type Pipeline = Gated<DeadlineService<Limited>, (Account, Sla), Llm>;

/// Reads how far an answer has come, and what it has used, to settle what was reserved for it.
type Limited = Gated<Retrying, RateLimit, Llm>;

type Retrying = Retry<Elsewhere<Balance<EndpointService, CircuitBreaker, Llm>>, Llm>;

/// The body of an answer that has come through all of it.
pub(crate) type PipelineBody = <Pipeline as Answers>::Body;

/// Names the body of a service's answers.
pub(crate) trait Answers {
    type Body;
}

impl<S, B> Answers for S
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
{
    type Body = B;
}

/// More than the gateway ever adds to a body, in bytes.
const ADDED: usize = 1024;

/// The layers, and the handles of those that can be looked at.
pub(crate) struct Stack {
    pub(crate) pipeline: Pipeline,
    pub(crate) limits: Limits,
    pub(crate) sla: palisade::sla::Handle,
}

impl Stack {
    /// Expects a configuration without mistakes.
    pub(crate) fn new(
        config: &Config,
        backends: &Backends,
        account: Account,
        limits: Limits,
    ) -> Result<Self, BoxError> {
        let objective = &config.objective;
        let objective = Objective::success(objective.success)?
            .first_data_within(objective.latency, objective.within)?;
        let sla = Sla::new(objective).named("gateway");
        let retry = &config.retry;
        let backoff = Backoff::exponential(retry.min_backoff, retry.max_backoff)?;

        let pipeline = ServiceBuilder::new()
            .layer(gates((account, sla.clone())).classify(Llm))
            .layer(DeadlineLayer::new(config.timeouts.stream).named("gateway"))
            .layer(GateLayer::new(limits.gate().clone()).classify(Llm))
            .layer(
                RetryLayer::new(backoff)
                    .attempts(retry.attempts)
                    .budget(Budget::percent(retry.budget_percent))
                    // A completion has no effect but its answer, and the caller has seen none of that yet.
                    .repeat(Repeatable::All)
                    .condition(|verdict, answer| {
                        let elsewhere = answer.is_some_and(|head| is_set_aside(head.headers));
                        elsewhere || transient(verdict, answer)
                    })
                    // What is asked of a stream besides comes on top of the longest body.
                    .replay_up_to(config.server.body_limit.saturating_add(ADDED))
                    .wait_up_to(LONGEST_WAIT)
                    .classify(Llm)
                    .named("gateway"),
            )
            .layer(layer_fn(|balance| {
                Elsewhere::new(balance, backends.endpoints.clone())
            }))
            .layer(BalanceLayer::new(config.strategy).classify(Llm))
            .service(backends.endpoints.clone());

        Ok(Self {
            pipeline,
            limits,
            sla: sla.handle(),
        })
    }
}

/// One backend behind its own gate.
pub(crate) fn endpoint(
    backend: Arc<Backend>,
    settings: &config::Backend,
    config: &Config,
    workers: usize,
) -> Endpoint<EndpointService, CircuitBreaker> {
    let breaker = &config.circuit_breaker;
    let gate = CircuitBreaker::consecutive(breaker.failures, breaker.cooldown)
        .longest_cooldown(breaker.longest_cooldown)
        .named(backend.id.to_string());
    let timeout = AttemptTimeoutLayer::first_byte(config.timeouts.first_byte);
    let name = backend.id.clone();
    let most = u32::try_from(settings.max_connections).unwrap_or(u32::MAX);
    let endpoint = Endpoint::new(name, timeout.layer(Upstream::new(backend, workers)))
        .weight(settings.weight)
        .max_in_flight(most)
        .priority(settings.priority);
    match &settings.zone {
        Some(zone) => endpoint.zone(&**zone).gate(gate),
        None => endpoint.gate(gate),
    }
}
