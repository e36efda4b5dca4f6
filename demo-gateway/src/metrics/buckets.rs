//! Which histogram has which buckets.

use super::gen_ai;

/// As OpenTelemetry's conventions for generative AI advise.
const TOKENS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// The same, for whole requests.
const OPERATION: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];

/// The same, for what is waited for first.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// The same, for what comes after.
const PER_TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];

/// A proxied request costs some tens of microseconds.
const OVERHEAD: &[f64] = &[
    0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5,
    2.5,
];

/// With the bounds that objectives usually have, whose rules need to find them: 2 s is the gateway's own.
const FIRST_DATA: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0, 30.0,
];

/// Prometheus' own, up to the longest answers.
const SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// The buckets of the histogram of that name.
pub(crate) fn of(name: &str) -> &'static [f64] {
    match name {
        super::OVERHEAD => OVERHEAD,
        gen_ai::DURATION => OPERATION,
        gen_ai::FIRST_TOKEN => FIRST_TOKEN,
        gen_ai::PER_TOKEN => PER_TOKEN,
        gen_ai::TOKENS => TOKENS,
        name if name.ends_with("_tokens") => TOKENS,
        name if name.ends_with("_first_data_seconds") => FIRST_DATA,
        name if name.ends_with("_between_tokens_seconds") => PER_TOKEN,
        _ => SECONDS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_of_bounds_rises() {
        for bounds in [
            TOKENS,
            OPERATION,
            FIRST_TOKEN,
            PER_TOKEN,
            OVERHEAD,
            FIRST_DATA,
            SECONDS,
        ] {
            assert!(bounds.is_sorted_by(|one, next| one < next), "{bounds:?}");
        }
    }

    #[test]
    fn the_objective_of_a_gateway_is_a_bound() {
        let objective = crate::Config::default().objective.latency.as_secs_f64();
        assert!(of("palisade_sla_first_data_seconds").contains(&objective));
    }

    #[test]
    fn what_nobody_knows_of_is_taken_for_seconds() {
        assert_eq!(of("another_histogram"), SECONDS);
        assert_eq!(of("palisade_sla_duration_seconds"), SECONDS);
        assert_eq!(of("palisade_gateway_overhead_seconds"), OVERHEAD);
    }
}
