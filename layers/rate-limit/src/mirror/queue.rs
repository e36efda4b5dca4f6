//! Who waits for the same quota: first come, first served.

use std::{collections::VecDeque, task::Waker};

use super::ledger::Cost;

#[derive(Debug, Default)]
pub(super) struct Queue {
    places: VecDeque<Place>,
    last: u64,
    ahead: Cost,
}

/// Names a place in a queue; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

#[derive(Debug)]
struct Place {
    ticket: Ticket,
    cost: Cost,
    /// None until it is polled.
    waker: Option<Waker>,
}

impl Queue {
    pub(super) fn join(&mut self, cost: Cost) -> Ticket {
        self.last += 1;
        let ticket = Ticket(self.last);
        self.ahead = self.ahead.plus(cost);
        self.places.push_back(Place {
            ticket,
            cost,
            waker: None,
        });
        ticket
    }

    /// What those ahead of it take, until it has been served; of nobody's ticket, those of all.
    pub(super) fn ahead(&self, ticket: Option<Ticket>) -> Cost {
        let Some(ticket) = ticket else {
            return self.ahead;
        };
        let ahead = self.places.iter().take_while(|place| place.ticket < ticket);
        ahead.fold(Cost::default(), |sum, place| sum.plus(place.cost))
    }

    pub(super) fn is_first(&self, ticket: Ticket) -> bool {
        self.places
            .front()
            .is_some_and(|place| place.ticket == ticket)
    }

    /// Wakes this one when its turn comes.
    pub(super) fn wait(&mut self, ticket: Ticket, waker: &Waker) {
        if let Some(at) = self.find(ticket) {
            match &mut self.places[at].waker {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
    }

    /// Gives up a place. Who is first now has to be woken, if it was the first.
    #[must_use]
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<Waker> {
        let at = self.find(ticket)?;
        let place = self.places.remove(at)?;
        self.ahead = self.ahead.minus(place.cost);
        if at == 0 { self.first() } else { None }
    }

    /// Who has to be woken when there may be room.
    #[must_use]
    pub(super) fn first(&self) -> Option<Waker> {
        self.places.front()?.waker.clone()
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    fn find(&self, ticket: Ticket) -> Option<usize> {
        let found = self
            .places
            .binary_search_by_key(&ticket, |place| place.ticket);
        found.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Cost = Cost {
        requests: 1,
        tokens: 10,
    };

    #[test]
    fn places_are_served_in_their_order_and_those_who_leave_are_skipped() {
        let mut queue = Queue::default();
        let [a, b, c] = [queue.join(ONE), queue.join(ONE), queue.join(ONE)];
        assert!(queue.is_first(a) && !queue.is_first(b));
        assert_eq!(
            (queue.ahead(Some(c)).tokens, queue.ahead(None).tokens),
            (20, 30)
        );
        for ticket in [b, c] {
            queue.wait(ticket, Waker::noop());
        }
        assert!(queue.leave(b).is_none(), "nobody is first who was not");
        assert_eq!(queue.ahead(Some(c)), ONE);
        assert!(queue.leave(a).is_some(), "the next one is woken");
        assert!(queue.is_first(c) && queue.first().is_some());
        assert!(queue.leave(a).is_none() && queue.leave(c).is_none());
        assert_eq!((queue.len(), queue.ahead(None)), (0, Cost::default()));
    }
}
