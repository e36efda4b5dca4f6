//! Which layer goes outside which. The only file that names them in their order.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use palisade::{
    BoxError, Ratio,
    balance::{Balance, BalanceLayer, Endpoint},
    circuit_breaker::CircuitBreaker,
    classify::Verdict,
    deadline::{AttemptTimeout, AttemptTimeoutLayer, DeadlineLayer, DeadlineService, Timeouts},
    fallback::{Fallback, FallbackLayer},
    gate::{Admit, Gate, GateLayer, Gated, gates},
    head::RequestHead,
    rate_limit::{RateLimit, Tokens},
    reject::Rejected,
    replay::ReplayBody,
    retry::{
        Backoff, Budget, Hedge, HedgeBody, HedgeLayer, Repeatable, Retry, RetryLayer, hedge::Delay,
        transient,
    },
    settle::{End, Settle},
    sla::{AlertKind, Condition, LabelledSla, Objective, Sla},
    time,
    trace::{OpenTelemetry, Trace},
};
use tower::{Layer, Service, ServiceBuilder, layer::layer_fn};

use crate::{
    account::Account,
    backends::{Backend, Backends, Maker},
    classify::Llm,
    config::{self, Config, WhileBurning, Window},
    elsewhere::{Elsewhere, is_set_aside},
    exchange::Exchange,
    fallbacks::{self, Fallbacks, OtherModel},
    limits::Limits,
    metrics::{Meters, OTHER},
    proxy::Upstream,
    telemetry::spans,
};

/// How long a request waits when the only backend asks to be left alone.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The body of a request as it comes out of fallback, retry and hedge.
type Asked = HedgeBody<ReplayBody<ReplayBody<Full<Bytes>>>>;

/// One attempt at one backend: trace > timeouts > client.
pub(crate) type EndpointService = Trace<AttemptTimeout<Upstream<Asked>>, Llm, OpenTelemetry>;

/// Its circuit, and what its attempts get.
pub(crate) type EndpointGate = (CircuitBreaker, LabelledSla);

/// Each behind a gate of its own, which the balancer asks before it picks.
pub(crate) type Endpoints = palisade::balance::Endpoints<EndpointService, EndpointGate>;

/// Everything between a request that was understood and the backends:
/// account > SLA > deadline > rate limit > fallback > retry > hedge > elsewhere > balance { breaker > trace > timeouts > client }.
pub(crate) type Pipeline = Gated<DeadlineService<Limited>, (Account, Sla), Llm>;

/// Reads how far an answer has come, and what it has used, to settle what was reserved for it.
type Limited = Gated<Fallback<Retrying, Full<Bytes>, Llm>, RateLimit, Llm>;

type Retrying = Retry<Hedging, Llm>;

type Hedging = Hedge<Elsewhere<Balance<EndpointService, EndpointGate, Llm>>, Llm>;

/// The body of an answer that has come through all of it.
pub(crate) type PipelineBody = Pin<Box<<Pipeline as Answers>::Body>>;

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

/// So many endpoints are measured by name at once, at 40 KiB each, and those beyond together.
const ENDPOINTS: usize = 250;

/// More than the gateway ever adds to a body, in bytes.
const ADDED: usize = 1024;

/// The layers, and the handles of those that can be looked at.
pub(crate) struct Stack {
    pub(crate) pipeline: Pipeline,
    pub(crate) limits: Limits,
    pub(crate) sla: palisade::sla::Handle,
    measured: (Account, Sla),
    /// Of retries and hedges together.
    pub(crate) budget: Budget,
}

impl Stack {
    /// Expects a configuration without mistakes.
    pub(crate) fn new(
        config: &Config,
        backends: &Backends,
        (account, sla): (Account, Sla),
        limits: Limits,
    ) -> Result<Self, BoxError> {
        let kept = config.server.body_limit.saturating_add(ADDED);
        let budget = Budget::percent(config.retry.budget_percent);

        let retrying = ServiceBuilder::new()
            .layer(retry(&config.retry, kept, budget.clone())?)
            .layer(hedge(&config.hedge, &sla, kept, budget.clone())?)
            .layer(layer_fn(|balance| {
                Elsewhere::new(balance, backends.endpoints.clone())
            }))
            .layer(BalanceLayer::new(config.strategy).classify(Llm))
            .service(backends.endpoints.clone());
        let pipeline = ServiceBuilder::new()
            .layer(gates((account.clone(), sla.clone())).classify(Llm))
            .layer(DeadlineLayer::new(config.timeouts.stream).named("gateway"))
            .layer(GateLayer::new(limits.gate().clone()).classify(Llm))
            .layer(fallback(&config.fallbacks, kept, &retrying))
            .service(retrying);

        Ok(Self {
            pipeline,
            limits,
            sla: sla.handle(),
            measured: (account, sla),
            budget,
        })
    }

    /// Refuses whose limits leave no room for any request, before there is a body: counted as if it had come to the
    /// limits inside.
    pub(crate) fn peek(&self, head: &RequestHead<'_>) -> Option<Rejected> {
        let refused = self.limits.peek(head)?;
        let now = time::now();
        if let Admit::Now(Ok(mut guard)) = self.measured.admit(head, now) {
            guard.finish(&End::new(Verdict::Refused(refused.reason())), now);
        }
        Some(refused)
    }
}

fn retry(retry: &config::Retry, kept: usize, budget: Budget) -> Result<RetryLayer<Llm>, BoxError> {
    let backoff = Backoff::exponential(retry.min_backoff, retry.max_backoff)?;
    Ok(RetryLayer::new(backoff)
        .attempts(retry.attempts)
        .budget(budget)
        // A completion has no effect but its answer, and the caller has seen none of that yet.
        .repeat(Repeatable::All)
        .condition(|verdict, answer| {
            let elsewhere = answer.is_some_and(|head| is_set_aside(head.headers));
            elsewhere || transient(verdict, answer)
        })
        // What is asked of a stream besides comes on top of the longest body.
        .replay_up_to(kept)
        .wait_up_to(LONGEST_WAIT)
        .classify(Llm)
        .named("gateway"))
}

/// What all requests are held against; by route, model and tier, and by endpoint for their attempts.
pub(crate) fn sla(config: &Config, meters: Arc<Meters>) -> Result<Sla, BoxError> {
    let objective = &config.objective;
    let promise = Objective::success(objective.success)?
        .first_data_within(objective.latency, objective.within)?;
    let sla = Sla::new(promise)
        .named("gateway")
        .period(objective.period)
        .by("route", |head| {
            let exchange = head.extensions.get::<Arc<Exchange>>()?;
            Some(exchange.operation.name())
        })?
        .by("tier", |head| {
            let exchange = head.extensions.get::<Arc<Exchange>>()?;
            Some(&*exchange.caller.tier)
        })?
        .by("model", move |head| {
            let asked = head.extensions.get::<Tokens>()?;
            // Callers may name anything.
            let known = meters.gen_ai.knows(&asked.model);
            Some(if known { &*asked.model } else { OTHER })
        })?;
    // Of endpoints, whose places those get that come after them.
    Ok(sla.most_labels(ENDPOINTS))
}

fn hedge(
    hedge: &config::Hedge,
    sla: &Sla,
    kept: usize,
    budget: Budget,
) -> Result<HedgeLayer<Llm>, BoxError> {
    let (delay, repeatable) = match (hedge.after, hedge.quantile) {
        (Some(after), _) => (Delay::fixed(after), Repeatable::All),
        (None, Some(quantile)) => (Delay::quantile(Ratio::new(quantile)?), Repeatable::All),
        (None, None) => (Delay::default(), Repeatable::when(|_| false)),
    };
    let layer = HedgeLayer::new(delay);
    let layer = match hedge.while_burning {
        // What fails does so no less for being asked twice.
        WhileBurning::Pause => {
            let burning = sla.handle().signal(Condition::Fires(AlertKind::Page));
            layer.paused_by(burning)
        }
        WhileBurning::GoOn => layer,
    };
    Ok(layer
        .at_most(Ratio::new(f64::from(hedge.percent) / 100.0)?)
        .budget(budget)
        .repeat(repeatable)
        .keep_up_to(kept)
        .classify(Llm)
        .named("gateway"))
}

/// One alternative for each place in the lists of models.
fn fallback(
    models: &Fallbacks,
    kept: usize,
    service: &Retrying,
) -> FallbackLayer<Full<Bytes>, Llm> {
    let all = Arc::new(models.clone());
    let none = FallbackLayer::new()
        .replay_up_to(kept)
        // The alternative itself says which model it is.
        .mark(None);
    let layer = (0..fallbacks::most(&all)).fold(none, |layer, place| {
        let (other, has) = (
            OtherModel::new(service.clone(), all.clone(), place),
            all.clone(),
        );
        layer
            .service(&format!("model-{}", place + 1), other)
            .only_for(move |head| fallbacks::has(&has, head, place))
    });
    layer
        .condition(fallbacks::helps)
        .classify(Llm)
        .named("gateway")
}

/// One backend behind its own gate.
pub(crate) fn endpoint(
    backend: Arc<Backend>,
    settings: &config::Backend,
    maker: &Maker,
) -> Result<Endpoint<EndpointService, EndpointGate>, String> {
    let config = &*maker.config;
    let circuit = gate(&config.circuit_breaker).named(backend.id.to_string());
    let measured = maker.sla.labelled("endpoint", &backend.id);
    let gate = (circuit, measured.map_err(|error| error.to_string())?);
    let timeouts = Timeouts::none()
        .first_byte(config.timeouts.first_byte)
        .idle(config.timeouts.idle);
    let timeout = AttemptTimeoutLayer::new(timeouts);
    let name = backend.id.clone();
    let trace = spans::attempts(&backend);
    let upstream = Upstream::new(backend, config.timeouts.told(), maker.workers);
    let most = u32::try_from(settings.max_connections).unwrap_or(u32::MAX);
    let endpoint = Endpoint::new(name, trace.layer(timeout.layer(upstream)))
        .weight(settings.weight)
        .max_in_flight(most)
        .priority(settings.priority);
    Ok(match &settings.zone {
        Some(zone) => endpoint.zone(&**zone).gate(gate),
        None => endpoint.gate(gate),
    })
}

fn gate(breaker: &config::Breaker) -> CircuitBreaker {
    // Checked to be shares before.
    let share = |share| Ratio::new(share).unwrap_or(Ratio::HALF);
    let gate = match breaker.window {
        Window::Consecutive => CircuitBreaker::consecutive(breaker.failures, breaker.cooldown),
        Window::Count => {
            CircuitBreaker::window(share(breaker.share), breaker.calls, breaker.cooldown)
        }
        Window::Time => {
            CircuitBreaker::time_window(share(breaker.share), breaker.span, breaker.cooldown)
        }
    };
    let gate = gate
        .minimum_calls(breaker.minimum_calls)
        .longest_cooldown(breaker.longest_cooldown);
    if breaker.slow_after.is_zero() {
        return gate;
    }
    gate.slow_calls(share(breaker.slow_share), breaker.slow_after)
}
