//! Whose limits are looked at.

use super::second::{Refused, Seen};

/// At most so many callers, those who ask most and those who are refused.
const MOST: usize = 64;

/// What is left of a second's weight after another.
const FADE: f64 = 0.9;

/// Somebody who was refused matters more than who asked so often.
const REFUSED: f64 = 1000.0;

/// With less, somebody is forgotten.
const NOTHING: f64 = 0.01;

/// Whose limits are looked at: at most 64 who ask most or are refused.
#[derive(Debug, Default)]
pub(super) struct Watched(Vec<(Seen, f64)>);

impl Watched {
    /// Who has asked and was refused in the last second.
    pub(super) fn add(&mut self, seen: &[Seen], refused: &[Refused]) {
        for (_, weight) in &mut self.0 {
            *weight *= FADE;
        }
        let refused = refused.iter().map(|it| (&it.who, REFUSED));
        for (who, each) in seen.iter().map(|seen| (seen, 1.0)).chain(refused) {
            let more = f64::from(who.count) * each;
            match self.0.iter_mut().find(|(known, _)| known.hash == who.hash) {
                Some((_, weight)) => *weight += more,
                None => self.0.push((who.clone(), more)),
            }
        }
        self.0.retain(|(_, weight)| *weight > NOTHING);
        if self.0.len() > MOST {
            self.0.sort_by(|(_, a), (_, b)| b.total_cmp(a));
            self.0.truncate(MOST);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Seen> {
        self.0.iter().map(|(seen, _)| seen)
    }
}
