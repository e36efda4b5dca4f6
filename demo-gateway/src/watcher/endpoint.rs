//! How a backend does, and how that is told when it changes.

use palisade::{
    balance::{EjectionReason, EndpointState},
    circuit_breaker::CircuitState,
};

use super::{Event, Kind, State, span, view::EndpointView};
use crate::changes::Severity;

/// What keeps requests from a backend; the first that applies, where several do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Condition {
    #[default]
    Well,
    /// By hand, or because it is about to go.
    Draining,
    Unhealthy,
    HeldOpen,
    /// And how often that was so.
    Open(u64),
    /// The circuit lets a probe through.
    HalfOpen,
    Ejected,
    Probing,
}

impl Condition {
    pub(super) fn of(endpoint: &EndpointView) -> Self {
        match endpoint.state {
            EndpointState::Draining => return Self::Draining,
            EndpointState::Unhealthy => return Self::Unhealthy,
            _ => {}
        }
        match endpoint.circuit.map(|it| (it.state, it)) {
            Some((CircuitState::Open, circuit)) if circuit.forced => Self::HeldOpen,
            Some((CircuitState::Open, circuit)) => Self::Open(circuit.opened),
            Some((CircuitState::HalfOpen, _)) => Self::HalfOpen,
            Some((CircuitState::Closed, _)) | None => match endpoint.state {
                EndpointState::Ejected => Self::Ejected,
                EndpointState::Probing => Self::Probing,
                _ => Self::Well,
            },
        }
    }

    /// Whether nobody wanted it so.
    pub(super) fn is_wrong(self) -> bool {
        !matches!(self, Self::Well | Self::Draining)
    }

    /// What to tell of this change, if it is one.
    pub(super) fn change(self, after: &Self, endpoint: &EndpointView) -> Option<Event> {
        let name = &endpoint.name;
        let next = || match endpoint.retry_in {
            Some(left) if !left.is_zero() => format!(", next probe in {}", span(left)),
            _ => String::new(),
        };
        if self == *after {
            return None;
        }
        let text = match (self, *after) {
            (Self::Open(_) | Self::HalfOpen, Self::Open(_)) => {
                let left = endpoint.retry_in.filter(|left| !left.is_zero());
                let left = left.map_or_else(String::new, |left| format!(" for {}", span(left)));
                format!("{name} probe failed, breaker open again{left}")
            }
            (_, Self::Open(_)) => {
                let row = endpoint.circuit.map_or(0, |it| it.in_a_row);
                let row = match row {
                    0 | 1 => String::new(),
                    many => format!(" after {many} failures in a row"),
                };
                format!("{name} breaker opened{row}{}", next())
            }
            (_, Self::HalfOpen) => format!("{name} half-open: one probe let through"),
            (_, Self::HeldOpen) => format!("{name} is held open by hand"),
            (Self::Probing, Self::Ejected) => {
                format!("{name} probe failed, ejected again{}", next())
            }
            (_, Self::Ejected) => format!("{name} ejected: {}{}", why(endpoint), next()),
            (_, Self::Probing) => {
                format!("{name} on probation: one request finds out whether it works again")
            }
            (_, Self::Unhealthy) => match &endpoint.check {
                Some(why) => format!("{name} unhealthy: {why}"),
                None => format!("{name} unhealthy"),
            },
            (_, Self::Draining) => format!("{name} drains: it finishes what it has"),
            (Self::Draining, Self::Well) => format!("{name} takes requests again"),
            (Self::Unhealthy, Self::Well) => format!("{name} reinstated: health checks pass"),
            (Self::Open(_) | Self::HalfOpen | Self::HeldOpen, Self::Well) => {
                format!("{name} reinstated: breaker closed")
            }
            (_, Self::Well) => format!("{name} reinstated"),
        };
        let severity = match *after {
            Self::Well => Severity::Ok,
            Self::Draining => Severity::Info,
            Self::HalfOpen | Self::Probing | Self::HeldOpen => Severity::Warn,
            Self::Open(_) | Self::Ejected | Self::Unhealthy => Severity::Bad,
        };
        let state = match (self.is_wrong(), after.is_wrong()) {
            (_, true) => State::Firing,
            (true, false) => State::Resolved,
            (false, false) => State::Told,
        };
        Some(Event::new(
            Kind::Endpoint,
            state,
            severity,
            name.clone(),
            text,
        ))
    }
}

fn why(endpoint: &EndpointView) -> &'static str {
    match endpoint.reason {
        Some(EjectionReason::Consecutive) => "too many failures in a row",
        Some(EjectionReason::SuccessRatio) => "too many of its answers are failures",
        Some(EjectionReason::Overload) => "it asked to be left alone",
        Some(EjectionReason::ProbeFailed) => "its probe failed",
        Some(_) | None => "its breaker refuses",
    }
}
