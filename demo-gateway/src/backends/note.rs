//! Why a backend does not serve, in a few words.

use palisade::{
    balance::{EjectionReason, EndpointState, Finding, Snapshot},
    circuit_breaker::{self, CircuitState},
};

/// Why a backend does not serve as it should, in a few words; `None` when it does.
pub(crate) fn note(
    endpoint: &Snapshot,
    circuit: Option<&circuit_breaker::Snapshot>,
) -> Option<String> {
    let is_held = circuit.is_some_and(|it| it.forced && it.state == CircuitState::Open);
    Some(match endpoint.state {
        // The state says it all.
        EndpointState::Serving | EndpointState::SlowStart => return None,
        EndpointState::Draining => "takes no new request".into(),
        EndpointState::Unhealthy => match endpoint.last_check.as_ref().map(|it| &it.finding) {
            Some(Finding::Failed(why)) => format!("health check: {}", root(why)),
            _ => "health checks fail".into(),
        },
        _ if is_held => "circuit held open by hand".into(),
        EndpointState::Probing => "one request tries it".into(),
        _ => match endpoint.ejected.as_ref().map(|it| it.reason) {
            Some(EjectionReason::Consecutive) => "too many failures in a row".into(),
            Some(EjectionReason::SuccessRatio) => "too many of its answers failed".into(),
            Some(EjectionReason::Overload) => "asked to be left alone".into(),
            Some(EjectionReason::ProbeFailed) => "the request that tried it failed".into(),
            _ => match circuit {
                Some(circuit) if circuit.in_a_row > 1 => {
                    format!("circuit open: {} failures in a row", circuit.in_a_row)
                }
                _ => "circuit open".into(),
            },
        },
    })
}

/// Of a chain of errors down to one of the system, that one.
pub(crate) fn root(why: &str) -> &str {
    let Some((chain, _)) = why.split_once(" (os error") else {
        return why;
    };
    chain.rsplit(": ").next().unwrap_or(chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_chain_of_errors_the_last_is_told() {
        let chain = "client error (Connect): tcp connect error: Connection refused (os error 111)";
        assert_eq!(root(chain), "Connection refused");
        assert_eq!(root("answered 503: busy"), "answered 503: busy");
    }
}
