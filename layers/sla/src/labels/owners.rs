//! Who has the places of a dimension.

use super::OTHER;

/// A longer label has no place of its own: its text would not be bounded.
const LONGEST: usize = 128;

/// Whether a label can have a place of its own.
pub(crate) fn fits(label: &str) -> bool {
    label != OTHER && label.len() <= LONGEST
}

/// Who has the places of a dimension, and which of them nobody counts by any more.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    /// By place less one.
    all: Vec<Option<Owner>>,
    /// Heads may name any label at any time: none of them leaves.
    stay: bool,
    turns: u64,
}

#[derive(Debug)]
struct Owner {
    label: Box<str>,
    holders: usize,
    /// Since when nobody counts by it.
    left: Option<u64>,
    turn: u64,
}

/// An owner, told apart from those who had the place before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) place: u8,
    number: u64,
}

impl Owners {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            all: (0..most).map(|_| None).collect(),
            ..Self::default()
        }
    }

    /// The place of a label, if it has one or there is one left, and its number among all that ever had one.
    pub(crate) fn place(&mut self, label: &str) -> Option<Turn> {
        if let Some(known) = self.find(label) {
            return Some(known);
        }
        let free = self.all.iter().position(Option::is_none);
        let free = free.filter(|_| fits(label))?;
        self.turns += 1;
        self.all[free] = Some(Owner {
            label: label.into(),
            holders: 0,
            left: None,
            turn: self.turns,
        });
        Some(turn(free, self.turns))
    }

    /// The same for somebody who says when it leaves.
    pub(crate) fn hold(&mut self, label: &str) -> Option<Turn> {
        let Turn { place, .. } = self.place(label)?;
        // A new number, so that whoever wants to free the place sees that it is held again.
        self.turns += 1;
        let number = self.turns;
        let owner = self.owner(place)?;
        owner.holders += 1;
        (owner.left, owner.turn) = (None, number);
        Some(Turn { place, number })
    }

    /// One holder less.
    pub(crate) fn leave(&mut self, place: u8, now: u64) {
        if let Some(owner) = self.owner(place) {
            owner.holders -= 1;
            if owner.holders == 0 {
                owner.left = Some(now);
            }
        }
    }

    /// From now on all stay, and are found without asking here.
    pub(crate) fn stay(&mut self) -> impl Iterator<Item = (&str, u8)> {
        self.stay = true;
        let places = self.all.iter().zip(1..);
        places.filter_map(|(owner, place)| Some((&*owner.as_ref()?.label, place)))
    }

    pub(crate) fn stays(&self) -> bool {
        self.stay
    }

    /// Those that everybody had left by then. Whose requests are still in flight has only left now.
    pub(crate) fn gone(&mut self, by: u64, now: u64, in_flight: impl Fn(u8) -> bool) -> Vec<Turn> {
        self.left(|place, left| {
            if in_flight(place) {
                *left = now;
                return false;
            }
            *left <= by
        })
    }

    /// The one that everybody has left first, with nothing in flight.
    pub(crate) fn oldest(&mut self, in_flight: impl Fn(u8) -> bool) -> Option<Turn> {
        let mut oldest = None;
        let left = self.left(|place, left| {
            let is_older = oldest.is_none_or(|oldest| *left < oldest) && !in_flight(place);
            if is_older {
                oldest = Some(*left);
            }
            is_older
        });
        left.last().copied()
    }

    /// Frees the place, unless somebody has it again.
    pub(crate) fn free(&mut self, turn: Turn) -> bool {
        let Some(slot) = self.all.get_mut(usize::from(turn.place) - 1) else {
            return false;
        };
        let is_gone = slot
            .as_ref()
            .is_some_and(|owner| owner.turn == turn.number && owner.left.is_some());
        let frees = is_gone && !self.stay;
        if frees {
            *slot = None;
        }
        frees
    }

    fn left(&mut self, mut is_meant: impl FnMut(u8, &mut u64) -> bool) -> Vec<Turn> {
        if self.stay {
            return Vec::new();
        }
        let mut found = Vec::new();
        for (at, owner) in self.all.iter_mut().enumerate() {
            let Some(Owner {
                left: Some(left),
                turn: number,
                ..
            }) = owner
            else {
                continue;
            };
            let turn = turn(at, *number);
            if is_meant(turn.place, left) {
                found.push(turn);
            }
        }
        found
    }

    fn find(&self, label: &str) -> Option<Turn> {
        let mut owners = self.all.iter().enumerate();
        owners.find_map(|(at, owner)| {
            let owner = owner.as_ref()?;
            (*owner.label == *label).then(|| turn(at, owner.turn))
        })
    }

    fn owner(&mut self, place: u8) -> Option<&mut Owner> {
        self.all.get_mut(usize::from(place) - 1)?.as_mut()
    }
}

impl Turn {
    /// Later ones have higher numbers.
    pub(crate) fn number(self) -> u64 {
        self.number
    }
}

fn turn(at: usize, number: u64) -> Turn {
    Turn {
        // Of 254 at most.
        place: at as u8 + 1,
        number,
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Hold(u8),
        Leave(usize),
        Sweep { long: u64 },
        Evict,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u8..9).prop_map(Step::Hold),
            3 => (0_usize..20).prop_map(Step::Leave),
            1 => (0_u64..10).prop_map(|long| Step::Sweep { long }),
            1 => Just(Step::Evict),
        ]
    }

    proptest! {
        /// The model: a list of who holds what, and when each label was left.
        #[test]
        fn a_place_has_one_label_until_all_who_hold_it_have_left(
            most in 1_usize..6,
            steps in vec((step(), 0_u64..3), 1..200),
        ) {
            let mut owners = Owners::new(most);
            let mut held: Vec<(String, u8)> = Vec::new();
            let mut left: Vec<(String, u8, u64)> = Vec::new();
            let mut now = 0;
            for (step, passed) in steps {
                now += passed;
                match step {
                    Step::Hold(label) => {
                        let label = label.to_string();
                        let known = held.iter().find(|(name, _)| *name == label).map(|it| it.1);
                        let known = known.or(left.iter().find(|it| it.0 == label).map(|it| it.1));
                        let found = owners.hold(&label).map(|turn| turn.place);
                        let taken: std::collections::BTreeSet<u8> =
                            held.iter().map(|it| it.1).chain(left.iter().map(|it| it.1)).collect();
                        match known {
                            Some(place) => prop_assert_eq!(found, Some(place)),
                            None if taken.len() < most => {
                                prop_assert!(found.is_some_and(|place| !taken.contains(&place)));
                            }
                            None => prop_assert_eq!(found, None),
                        }
                        left.retain(|it| it.0 != label);
                        held.extend(found.map(|place| (label, place)));
                    }
                    Step::Leave(which) if !held.is_empty() => {
                        let (label, place) = held.swap_remove(which % held.len());
                        owners.leave(place, now);
                        if held.iter().all(|(name, _)| *name != label) {
                            left.push((label, place, now));
                        }
                    }
                    Step::Leave(_) => {}
                    Step::Sweep { long } => {
                        let by = now.saturating_sub(long);
                        let gone = owners.gone(by, now, |_| false);
                        let mut places: Vec<u8> = gone.iter().map(|turn| turn.place).collect();
                        let due = left.iter().filter(|it| it.2 <= by);
                        let mut expected: Vec<u8> = due.map(|it| it.1).collect();
                        places.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!(places, expected);
                        for turn in gone {
                            prop_assert!(owners.free(turn));
                        }
                        left.retain(|it| it.2 > by);
                    }
                    Step::Evict => {
                        let oldest = owners.oldest(|_| false);
                        let expected = left.iter().map(|it| it.2).min();
                        prop_assert_eq!(oldest.is_some(), expected.is_some());
                        if let Some(turn) = oldest {
                            let at = left.iter().position(|it| it.1 == turn.place).unwrap();
                            prop_assert_eq!(Some(left.remove(at).2), expected);
                            prop_assert!(owners.free(turn));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_place_that_is_held_again_or_in_flight_is_not_freed() {
        let mut owners = Owners::new(1);
        let held = owners.hold("a").unwrap();
        owners.leave(held.place, 10);
        assert_eq!(owners.gone(9, 10, |_| false), []);
        let gone = owners.gone(10, 10, |_| false);
        owners.hold("a");
        assert!(!owners.free(gone[0]), "it came back meanwhile");
        owners.leave(held.place, 20);
        assert!(!owners.free(gone[0]), "and has left once more");
        assert_eq!(owners.gone(30, 40, |_| true), []);
        assert_eq!(owners.oldest(|_| true), None);
        assert_eq!(owners.gone(30, 40, |_| false), [], "it has only left at 40");
        assert_eq!(owners.hold("b"), None);
        let oldest = owners.oldest(|_| false).unwrap();
        assert!(owners.free(oldest));
        assert!(owners.hold("b").is_some());
    }

    #[test]
    fn what_heads_may_name_stays() {
        let mut owners = Owners::new(2);
        let held = owners.hold("a").unwrap();
        owners.leave(held.place, 0);
        let gone = owners.gone(1, 1, |_| false);
        assert_eq!(owners.stay().collect::<Vec<_>>(), [("a", 1)]);
        assert!(!owners.free(gone[0]));
        assert_eq!(owners.gone(1, 1, |_| false), []);
        assert_eq!(owners.oldest(|_| false), None);
    }

    #[test]
    fn a_label_without_end_has_no_place() {
        let mut owners = Owners::new(2);
        assert_eq!(owners.place(&"x".repeat(LONGEST + 1)), None);
        assert_eq!(owners.hold(OTHER), None);
        let longest = owners.place(&"x".repeat(LONGEST));
        assert_eq!(longest.map(|turn| turn.place), Some(1));
    }
}
