//! Chance that can be had again.

/// The draws of one fault for one request: SplitMix64, by Steele, Lea and Flood.
///
/// Begun from seed, request and fault alone, so that no fault disturbs what another draws.
#[derive(Clone, Debug)]
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64, request: u64, fault: u64) -> Self {
        Self(mix(mix(mix(seed).wrapping_add(request)).wrapping_add(fault)))
    }

    /// Evenly between 0, which may come, and 1, which does not.
    pub(crate) fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        (mix(self.0) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Of the standard normal distribution, by Box and Muller.
    pub(crate) fn normal(&mut self) -> f64 {
        // One less, so that the logarithm is never that of zero.
        let radius = (-2.0 * (1.0 - self.share()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.share()).cos()
    }
}

/// Spreads what differs in a few bits over all of them.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_drawn_for_the_same_and_something_else_for_anything_else() {
        let draw = |seed, request, fault| Draw::new(seed, request, fault).share();
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        for other in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2), (2, 1, 3)] {
            assert_ne!(draw(1, 2, 3), draw(other.0, other.1, other.2), "{other:?}");
        }
    }

    #[test]
    fn draws_are_even_over_requests() {
        for fault in 0..4 {
            let mut tenths = [0u32; 10];
            for request in 0..10_000 {
                tenths[(Draw::new(7, request, fault).share() * 10.0) as usize] += 1;
            }
            assert!(
                tenths.iter().all(|many| (880..1120).contains(many)),
                "{tenths:?}"
            );
        }
    }

    #[test]
    fn faults_draw_apart_from_each_other() {
        // Of two that strike one request in ten each, both strike one in a hundred.
        let strikes = |request, fault| Draw::new(7, request, fault).share() < 0.1;
        let both = (0..10_000).filter(|&request| strikes(request, 0) && strikes(request, 1));
        let both = both.count();
        assert!((60..140).contains(&both), "{both}");
    }

    #[test]
    fn the_normal_distribution_is_one() {
        let draws: Vec<f64> = (0..10_000).map(|at| Draw::new(7, at, 0).normal()).collect();
        let mean = draws.iter().sum::<f64>() / 10_000.0;
        let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / 10_000.0;
        assert!(
            mean.abs() < 0.05 && (variance - 1.0).abs() < 0.05,
            "{mean} {variance}"
        );
    }
}
