//! What waits for the webhook.

use std::{collections::VecDeque, sync::Arc};

use crate::watcher::{Event, Kind, State};

/// What waits for the webhook: all that happens while there is room, and of each alert beyond that the newest state.
///
/// So the receiver ends in the right state, however slow it was, and there are never more than the room and one for each
/// alert, of which there are as many as are remembered.
#[derive(Debug)]
pub(super) struct Queue {
    room: usize,
    /// Alerts whose newest state is kept beyond the room: backends that come and go each have one.
    most: usize,
    events: VecDeque<Event>,
    /// Told after those, one of each alert.
    newest: VecDeque<Newest>,
}

#[derive(Debug)]
struct Newest {
    event: Event,
    /// Whether the receiver knows nothing of the alert yet: then it need not hear that it is over.
    begins: bool,
    /// Whether it was in a message that was given up.
    failed: bool,
}

impl Queue {
    pub(super) fn new(room: usize, most: usize) -> Self {
        Self {
            room,
            most,
            events: VecDeque::new(),
            newest: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.events.len() + self.newest.len()
    }

    /// Lets an event wait, and says how many will not be told because of it: it itself, or what it makes out of date.
    ///
    /// `begins`: whether the alert did not fire before, as far as the receiver will know.
    pub(super) fn push(&mut self, event: Event, begins: bool) -> usize {
        let known = self.newest.iter().position(|it| is_same(&it.event, &event));
        if let Some(at) = known {
            if self.newest[at].begins && event.state == State::Resolved {
                self.newest.remove(at);
                return 2;
            }
            self.newest[at].event = event;
            return 1;
        }
        if self.events.len() < self.room {
            self.events.push_back(event);
            return 0;
        }
        if event.state == State::Told {
            return 1;
        }
        self.newest.push_back(Newest {
            event,
            begins,
            failed: false,
        });
        self.forget()
    }

    /// The next ones, in the order in which they are to be told, at most so many. Those that were put back wait for all
    /// others and go out by themselves, so many `again`: what a receiver fails on each time must not hold up the rest.
    pub(super) fn take(&mut self, most: usize, again: usize) -> Vec<Event> {
        let many = most.min(self.events.len());
        let mut taken: Vec<_> = self.events.drain(..many).collect();
        // What is newest of an alert comes after all else of it.
        self.take_newest(&mut taken, most, false);
        if taken.is_empty() {
            self.take_newest(&mut taken, most.min(again), true);
        }
        taken
    }

    fn take_newest(&mut self, taken: &mut Vec<Event>, most: usize, failed: bool) {
        for newest in std::mem::take(&mut self.newest) {
            if taken.len() < most && newest.failed == failed {
                taken.push(newest.event);
            } else {
                self.newest.push_back(newest);
            }
        }
    }

    /// Nothing waits any more.
    pub(super) fn clear(&mut self) {
        self.events.clear();
        self.newest.clear();
    }

    /// Keeps of what was taken and not told the newest state of each alert, unless a newer one waits, and says how many
    /// others there was no room for.
    pub(super) fn put_back(&mut self, events: Vec<Event>) -> usize {
        let end = self.newest.len();
        for event in events.into_iter().rev() {
            // What the receiver knows of it is uncertain from now on: an answer may have been lost.
            let begins = false;
            if let Some(newer) = self.newest.iter_mut().find(|it| is_same(&it.event, &event)) {
                newer.begins = begins;
            } else if event.state != State::Told
                && !self.events.iter().any(|newer| is_same(newer, &event))
            {
                let failed = true;
                self.newest.insert(
                    end,
                    Newest {
                        event,
                        begins,
                        failed,
                    },
                );
            }
        }
        self.forget()
    }

    /// Lets go of the oldest of too many alerts, and says of how many.
    fn forget(&mut self) -> usize {
        let beyond = self.newest.len().saturating_sub(self.most);
        self.newest.drain(..beyond);
        beyond
    }
}

/// Whether both are about the same alert.
fn is_same(one: &Event, other: &Event) -> bool {
    let key = |event: &Event| -> Option<(Kind, Arc<str>)> {
        let is_alert = event.state != State::Told;
        is_alert.then(|| (event.kind, event.subject.clone()))
    };
    key(one).is_some() && key(one) == key(other)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::SystemTime};

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::changes::Severity;

    fn event(state: State, subject: u8, text: usize) -> Event {
        Event {
            at: SystemTime::UNIX_EPOCH,
            kind: Kind::Endpoint,
            state,
            severity: Severity::Bad,
            subject: subject.to_string().into(),
            text: text.to_string(),
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// The alert changes its state.
        Change(u8),
        Told,
        Send {
            many: usize,
            works: bool,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0_u8..5).prop_map(Step::Change),
            1 => Just(Step::Told),
            3 => (1_usize..4, any::<bool>()).prop_map(|(many, works)| Step::Send { many, works }),
        ]
    }

    proptest! {
        /// Whatever was sent and whatever was not: in the end the receiver knows what fires.
        #[test]
        fn the_receiver_ends_in_the_right_state(
            room in 0_usize..4,
            steps in vec(step(), 0..120),
        ) {
            let mut queue = Queue::new(room, 5);
            let (mut firing, mut known) = (BTreeMap::new(), BTreeMap::new());
            let (mut pushed, mut told, mut lost) = (0, 0, 0);
            let mut hear = |events: &[Event], known: &mut BTreeMap<Arc<str>, bool>| {
                for event in events.iter().filter(|event| event.state != State::Told) {
                    known.insert(event.subject.clone(), event.state == State::Firing);
                }
                told += events.len();
            };
            for (text, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Change(subject) => {
                        let fires = firing.entry(subject.to_string()).or_insert(false);
                        *fires = !*fires;
                        let state = if *fires { State::Firing } else { State::Resolved };
                        lost += queue.push(event(state, subject, text), *fires);
                        pushed += 1;
                    }
                    Step::Told => {
                        lost += queue.push(event(State::Told, 9, text), false);
                        pushed += 1;
                    }
                    Step::Send { many, works } => {
                        let events = queue.take(many, 2);
                        let taken = events.len();
                        let before = queue.len();
                        if works {
                            hear(&events, &mut known);
                        } else {
                            prop_assert_eq!(queue.put_back(events), 0);
                            lost += taken - (queue.len() - before);
                        }
                    }
                }
                prop_assert!(queue.len() <= room + 5);
            }
            while queue.len() > 0 {
                hear(&queue.take(2, 1), &mut known);
            }
            for (subject, fires) in &firing {
                let known = known.get(&**subject).copied().unwrap_or(false);
                prop_assert_eq!(known, *fires, "{}", subject);
            }
            prop_assert_eq!(pushed, told + lost, "each is told or counted as lost");
        }
    }

    #[test]
    fn while_there_is_room_all_that_happens_is_told_in_its_order() {
        let mut queue = Queue::new(4, 4);
        let all = [
            event(State::Firing, 1, 0),
            event(State::Resolved, 1, 1),
            event(State::Told, 2, 2),
            event(State::Firing, 1, 3),
        ];
        for event in &all {
            assert_eq!(queue.push(event.clone(), true), 0);
        }
        assert_eq!(queue.take(10, 10), all);
    }

    #[test]
    fn what_finds_no_room_is_told_by_its_newest_state_and_an_alert_nobody_heard_of_not_at_all() {
        let mut queue = Queue::new(1, 4);
        assert_eq!(queue.push(event(State::Firing, 1, 0), true), 0);
        // The receiver will know of 1 and not of 2.
        assert_eq!(queue.push(event(State::Resolved, 1, 1), false), 0);
        assert_eq!(queue.push(event(State::Firing, 2, 2), true), 0);
        assert_eq!(queue.push(event(State::Firing, 1, 3), true), 1);
        assert_eq!(queue.push(event(State::Resolved, 2, 4), false), 2);
        assert_eq!(queue.push(event(State::Resolved, 1, 5), false), 1);
        assert_eq!(queue.push(event(State::Told, 3, 6), false), 1);
        let texts: Vec<_> = queue.take(9, 9).into_iter().map(|it| it.text).collect();
        assert_eq!(texts, ["0", "5"]);
    }

    #[test]
    fn what_was_not_taken_waits_for_all_else_and_goes_out_in_smaller_messages() {
        let mut queue = Queue::new(3, 9);
        for number in 0..3 {
            queue.push(event(State::Firing, number, 0), true);
        }
        let failed = queue.take(9, 9);
        assert_eq!(queue.put_back(failed), 0);
        queue.push(event(State::Firing, 3, 0), true);
        // Newer, and still of one that has failed.
        queue.push(event(State::Resolved, 1, 1), false);
        let mut subjects = || {
            let events = queue.take(9, 2);
            let shown = events.iter().map(|it| format!("{}{}", it.subject, it.text));
            shown.collect::<Vec<_>>()
        };
        assert_eq!(subjects(), ["30"]);
        assert_eq!(subjects(), ["00", "11"]);
        assert_eq!(subjects(), ["20"]);
        assert!(subjects().is_empty());
    }

    #[test]
    fn of_more_alerts_than_are_remembered_the_oldest_are_lost_and_counted() {
        let mut queue = Queue::new(2, 2);
        assert_eq!(queue.push(event(State::Firing, 0, 0), true), 0);
        assert_eq!(queue.push(event(State::Firing, 1, 0), true), 0);
        let failed = queue.take(2, 2);
        assert_eq!(queue.put_back(failed), 0);
        for number in 2..4 {
            assert_eq!(queue.push(event(State::Firing, number, 0), true), 0);
        }
        assert_eq!(queue.push(event(State::Firing, 4, 0), true), 1);
        let failed = queue.take(1, 1);
        assert_eq!(queue.put_back(failed), 1);
        let rest: Vec<_> = [queue.take(9, 9), queue.take(9, 9)].concat();
        let subjects: Vec<_> = rest.iter().map(|it| &*it.subject).collect();
        assert_eq!(subjects, ["3", "4", "2"]);
        assert_eq!(queue.len(), 0);
    }
}
