//! What the failures of one endpoint without a gate lead to. Times are nanoseconds.

use super::{
    Ejection, EjectionReason, Mode,
    recent::{Count, Recent},
};

/// After this long without an end another request may probe.
const PROBE_TIMEOUT: u64 = 10_000_000_000;
/// How often that doubles at most while probes are lost.
const DOUBLINGS: u32 = 2;
/// Who is back after it failed, and fails before it has worked so often in a row, is out again: one that fails half of
/// its requests passes every other probe. With eight gateways 2.9 % of all requests failed there, and with this and the last
/// ends, however long ago, 0.7 % do.
const TRIAL: u32 = 5;
const SLOW_START: u64 = 10_000_000_000;
const SLOW_START_FROM: f64 = 0.1;

/// Active, ejected, probing, and active again.
#[derive(Debug)]
pub(crate) struct Machine {
    state: State,
    /// Until when it gets more and more since it came or came back.
    rises_until: u64,
    /// Counts state changes, so that a verdict from an earlier state is told apart.
    epoch: u64,
    /// The epoch of the first probe since the ejection: any of them may pass, however late.
    probes: u64,
    /// Failures in a row.
    row: u32,
    /// How often it has still to work before one failure is no more than that.
    trial: u32,
    /// Answers of overload since one that worked.
    shed: u32,
    /// Probes in a row without an end.
    lost: u32,
    /// How often the next ejection is doubled.
    grown: u32,
    /// Since when it has worked, as far as that has not undone a doubling.
    calm: u64,
    mode: Mode,
    /// Elsewhere, so that more of what a scan looks at is in one cache line.
    recent: Box<Recent>,
    last: Option<(EjectionReason, u64)>,
    pub(crate) ejections: u64,
    pub(crate) shadowed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Active,
    Ejected { until: u64 },
    Probing { until: u64 },
}

/// Whether the next request may go there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Standing {
    Able,
    /// It gets the next request, whose end decides about those after it.
    Due,
    /// Its failures speak against it, until this time if that passes by itself.
    Out {
        until: Option<u64>,
    },
    /// Somebody said so.
    Barred,
}

/// What an attempt knows of the state that it began in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    epoch: u64,
    /// Whether its end says anything: not when the endpoint was out and picked all the same.
    counts: bool,
}

/// What a failure was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// It counts against the endpoint.
    Failed,
    /// It only asks to be left alone.
    Overloaded {
        /// For so many nanoseconds.
        asked: Option<u64>,
    },
}

/// What a failing endpoint meets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verge<'a> {
    pub(crate) rules: &'a Ejection,
    /// What the failure costs, in nanoseconds of latency.
    pub(crate) penalty: f64,
    /// Whether one more may be ejected.
    pub(crate) room: bool,
    /// Whether most endpoints are overloaded: then it is not its own fault.
    pub(crate) crowded: bool,
    /// Between 0 and 1.
    pub(crate) chance: f64,
    pub(crate) now: u64,
}

impl Machine {
    pub(crate) fn new(rules: &Ejection, now: u64) -> Self {
        Self {
            state: State::Active,
            rises_until: now.saturating_add(SLOW_START),
            epoch: 0,
            probes: 0,
            row: 0,
            trial: 0,
            shed: 0,
            lost: 0,
            grown: 0,
            calm: now,
            mode: rules.mode,
            recent: Box::new(Recent::over(rules.window.as_nanos() as u64)),
            last: None,
            ejections: 0,
            shadowed: 0,
        }
    }

    /// Other rules hold from now on. Who is out by rules that no longer hold is back.
    pub(crate) fn obey(&mut self, rules: &Ejection, now: u64) {
        self.recent.look_back(rules.window.as_nanos() as u64);
        if self.mode == rules.mode {
            return;
        }
        if self.is_out() {
            self.reinstate(now);
        }
        self.mode = rules.mode;
        self.forget();
    }

    #[inline]
    pub(crate) fn standing(&self, now: u64) -> Standing {
        match self.state {
            State::Active => Standing::Able,
            _ if !self.keeps_out() => Standing::Able,
            State::Ejected { until } | State::Probing { until } if until <= now => Standing::Due,
            State::Ejected { until } | State::Probing { until } => {
                Standing::Out { until: Some(until) }
            }
        }
    }

    /// How much longer its turns are, so soon after it came or came back.
    #[inline]
    pub(crate) fn slow_start(&self, now: u64) -> f64 {
        // Nothing but a question where it is over: this is asked of each endpoint for each request.
        if now >= self.rises_until {
            return 1.0;
        }
        slow_start(
            now.saturating_add(SLOW_START)
                .saturating_sub(self.rises_until),
        )
    }

    /// Whether it is ejected, or about to show that it should not be.
    #[inline]
    pub(crate) fn is_out(&self) -> bool {
        self.state != State::Active
    }

    /// Whether it is out, and nobody else may go there for that.
    #[inline]
    pub(crate) fn keeps_out(&self) -> bool {
        self.is_out() && self.mode != Mode::Shadow
    }

    /// Whether its last answers were of overload.
    pub(crate) fn is_overloaded(&self) -> bool {
        self.shed > 0
    }

    #[inline]
    pub(crate) fn is_probing(&self) -> bool {
        matches!(self.state, State::Probing { .. })
    }

    /// Why it was ejected last, and when.
    pub(crate) fn last(&self) -> Option<(EjectionReason, u64)> {
        self.last
    }

    /// Its gate takes it out.
    pub(crate) fn note_gate(&mut self, now: u64) {
        self.last = Some((EjectionReason::Gate, now));
    }

    /// An attempt begins, doubtful if it is out and not due to probe.
    #[inline]
    pub(crate) fn start(&mut self, doubtful: bool, now: u64) -> Admitted {
        let mut counts = !doubtful;
        match self.state {
            // In shadow nobody keeps the others away.
            State::Ejected { until } | State::Probing { until } if until > now => counts = false,
            State::Ejected { .. } if counts => {
                self.lost = 0;
                self.probe(now);
                self.probes = self.epoch;
            }
            State::Probing { .. } if counts => {
                self.lost = DOUBLINGS.min(self.lost + 1);
                self.probe(now);
            }
            _ => {}
        }
        Admitted {
            epoch: self.epoch,
            counts,
        }
    }

    /// The first data of an answer: a probe has passed, whatever becomes of its body. Says whether that brings the
    /// endpoint back.
    pub(crate) fn answered(&mut self, admitted: &mut Admitted, now: u64) -> bool {
        self.pass(admitted, now)
    }

    /// Says whether that brings the endpoint back.
    #[inline]
    pub(crate) fn worked(&mut self, mut admitted: Admitted, now: u64) -> bool {
        if self.state == State::Active && admitted == self.current() {
            self.row = 0;
            self.shed = 0;
            self.trial = self.trial.saturating_sub(1);
            self.recent.worked(now);
            let quiet = now.saturating_sub(self.calm) / SLOW_START;
            self.calm += quiet * SLOW_START;
            self.grown = self.grown.saturating_sub(quiet.min(64) as u32);
        }
        self.pass(&mut admitted, now)
    }

    /// Says what it is ejected for, if that ejects it.
    pub(crate) fn failed(
        &mut self,
        admitted: Admitted,
        fault: Fault,
        verge: &Verge<'_>,
    ) -> Option<EjectionReason> {
        if self.mode == Mode::Off {
            return None;
        }
        let reason = match self.state {
            State::Active if admitted == self.current() => {
                self.too_many(fault, verge).filter(|_| verge.room)?
            }
            State::Probing { .. } if self.is_probe(&admitted) => match fault {
                Fault::Failed => EjectionReason::ProbeFailed,
                Fault::Overloaded { .. } => EjectionReason::Overload,
            },
            // It is out already, or this is from before.
            _ => return None,
        };
        let pause = match fault {
            // It knows how long, and it has not failed. Were it hardly any time, it would get one probe after the other.
            Fault::Overloaded { asked: Some(asked) } => asked.max(verge.rules.pauses(0).0 as u64),
            Fault::Failed | Fault::Overloaded { asked: None } => {
                let pause = self.pause(self.grown, verge);
                self.grown += u32::from(verge.rules.grows(self.grown));
                pause
            }
        };
        self.eject(reason, verge.now.saturating_add(pause), verge.now);
        Some(reason)
    }

    /// Nothing was learnt: if it was the probe, another may go, from then on.
    #[inline]
    pub(crate) fn free_probe(&mut self, admitted: Admitted, from: u64) -> bool {
        // Of several, those that were lost have been made up for.
        let freed = self.is_probe(&admitted) && admitted.epoch == self.epoch;
        if freed {
            self.enter(State::Ejected { until: from });
        }
        freed
    }

    /// Somebody else has found that it works.
    pub(crate) fn hurry(&mut self, now: u64) {
        if let State::Ejected { until } = &mut self.state {
            *until = now.min(*until);
        }
    }

    /// It has been away for other reasons, and gets more and more.
    pub(crate) fn rise(&mut self, now: u64) {
        self.reinstate(now);
        self.rises_until = now.saturating_add(SLOW_START);
    }

    fn reinstate(&mut self, now: u64) {
        self.forget();
        self.calm = now;
        if self.mode != Mode::Shadow {
            self.rises_until = now.saturating_add(SLOW_START);
        }
        self.enter(State::Active);
    }

    fn too_many(&mut self, fault: Fault, verge: &Verge<'_>) -> Option<EjectionReason> {
        let (rules, now) = (verge.rules, verge.now);
        if let Fault::Overloaded { asked } = fault {
            self.shed = self.shed.saturating_add(1);
            // Who sheds some load serves the rest: only one that serves nothing is no loss.
            let useless = self.shed >= rules.ends && rules.ends != u32::MAX && !verge.crowded;
            return (asked.is_some() || useless).then_some(EjectionReason::Overload);
        }
        self.row = self.row.saturating_add(1);
        self.recent.failed(now);
        if self.row >= rules.consecutive && rules.consecutive != u32::MAX {
            return Some(EjectionReason::Consecutive);
        }
        if self.trial > 0 {
            return Some(EjectionReason::ProbeFailed);
        }
        let of = |ends: Count| (ends.worked, ends.worked.saturating_add(ends.failed));
        let (worked, all) = match of(self.recent.sum(now)) {
            (worked, all) if all >= rules.ends => (worked, all),
            // Of many gateways each hears of an endpoint seldom.
            _ => of(self.recent.last(rules.ends.saturating_mul(2))),
        };
        let enough = all >= rules.ends && rules.ends != u32::MAX;
        (enough && !rules.ratio.reached(worked, all)).then_some(EjectionReason::SuccessRatio)
    }

    fn eject(&mut self, reason: EjectionReason, until: u64, now: u64) {
        self.forget();
        self.last = Some((reason, now));
        match self.mode {
            Mode::Shadow => self.shadowed += 1,
            _ => self.ejections += 1,
        }
        self.enter(State::Ejected { until });
    }

    fn forget(&mut self) {
        self.row = 0;
        self.trial = 0;
        self.shed = 0;
        self.recent.clear();
    }

    fn probe(&mut self, now: u64) {
        let until = now.saturating_add(PROBE_TIMEOUT << self.lost);
        self.enter(State::Probing { until });
    }

    #[inline]
    fn pass(&mut self, admitted: &mut Admitted, now: u64) -> bool {
        if !self.is_probe(admitted) {
            return false;
        }
        self.reinstate(now);
        let asked = self
            .last
            .is_some_and(|(reason, _)| reason == EjectionReason::Overload);
        self.trial = if asked { 0 } else { TRIAL };
        admitted.epoch = self.epoch;
        self.mode != Mode::Shadow
    }

    #[inline]
    fn is_probe(&self, admitted: &Admitted) -> bool {
        self.is_probing() && admitted.counts && admitted.epoch >= self.probes
    }

    #[inline]
    fn current(&self) -> Admitted {
        Admitted {
            epoch: self.epoch,
            counts: true,
        }
    }

    fn pause(&self, grown: u32, verge: &Verge<'_>) -> u64 {
        let (least, most) = verge.rules.pauses(grown);
        (least + (most - least) * verge.chance) as u64
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }
}

/// How much longer the turns of an endpoint are so long after it came or came back.
///
/// By the root: twice as long after a quarter of the time, as Envoy with an aggression of 2.
#[inline]
fn slow_start(age: u64) -> f64 {
    if age >= SLOW_START {
        return 1.0;
    }
    let done = age as f64 / SLOW_START as f64;
    1.0 / done.sqrt().max(SLOW_START_FROM)
}
