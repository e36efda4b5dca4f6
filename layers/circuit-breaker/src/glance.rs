//! A circuit in one atomic word.

/// Enough to look at a circuit, to pass it while it is closed, and to be refused while it is open.
///
/// Times are nanoseconds since the circuit was made; there is room for 73 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Glance {
    Closed {
        epoch: u64,
        /// Whether a success would be counted: otherwise it need not take the lock.
        hears_success: bool,
    },
    /// Refuses until somebody says otherwise.
    ForcedOpen,
    /// Half-open, with room for a probe.
    Room,
    /// Half-open, without room until a probe ends or they all are given up.
    Full {
        until: u64,
    },
    Open {
        until: u64,
    },
}

const TAG: u32 = 3;

impl Glance {
    pub(crate) const LAST: u64 = u64::MAX >> TAG;

    pub(crate) fn pack(self) -> u64 {
        let (value, tag) = match self {
            Self::Closed {
                epoch,
                hears_success,
            } => (epoch, u64::from(hears_success)),
            Self::ForcedOpen => (0, 2),
            Self::Room => (0, 3),
            Self::Full { until } => (until, 4),
            Self::Open { until } => (until, 5),
        };
        value << TAG | tag
    }

    pub(crate) fn unpack(word: u64) -> Self {
        let value = word >> TAG;
        match word & 7 {
            tag @ 0..=1 => Self::Closed {
                epoch: value,
                hears_success: tag == 1,
            },
            2 => Self::ForcedOpen,
            3 => Self::Room,
            4 => Self::Full { until: value },
            _ => Self::Open { until: value },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_glance_survives_its_word() {
        for value in [0, 1, 12_345, Glance::LAST] {
            for glance in [
                Glance::Closed {
                    epoch: value,
                    hears_success: false,
                },
                Glance::Closed {
                    epoch: value,
                    hears_success: true,
                },
                Glance::ForcedOpen,
                Glance::Room,
                Glance::Full { until: value },
                Glance::Open { until: value },
            ] {
                assert_eq!(Glance::unpack(glance.pack()), glance);
            }
        }
    }
}
