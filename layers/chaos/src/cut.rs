//! The mechanism of a body that breaks off, stops or drips.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Sleep, sleep};

use crate::{
    error::Injected,
    fault::{After, Cuts},
    shared::Armed,
};

/// What happens to the body of one answer. Of each kind one at most.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    abort: Option<(After, Arc<Armed>)>,
    stall: Option<(After, Option<Duration>, Arc<Armed>)>,
    drip: Option<(usize, Duration, Arc<Armed>)>,
    dripped: bool,
    bytes: u64,
    /// Those that have passed whole.
    frames: u64,
    /// What is left of a frame that was cut.
    rest: Bytes,
    wait: Option<Wait>,
}

#[derive(Debug)]
enum Wait {
    Sleep(Pin<Box<Sleep>>),
    ForEver,
}

/// What a body does next.
pub(crate) enum Next {
    /// It hands on what its source has, through [`Cut::pass`].
    Read,
    /// It hands on this, which was held back.
    Data(Bytes),
    /// It ends with an error.
    Abort(Injected),
}

impl Cut {
    /// Whether there was room for it.
    pub(crate) fn add(&mut self, armed: &Arc<Armed>, cuts: Cuts) -> bool {
        let armed = armed.clone();
        match cuts {
            Cuts::Abort(after) if self.abort.is_none() => self.abort = Some((after, armed)),
            Cuts::Stall(after, length) if self.stall.is_none() => {
                self.stall = Some((after, length, armed));
            }
            Cuts::Drip(bytes, every) if self.drip.is_none() => {
                self.drip = Some((bytes, every, armed));
            }
            _ => return false,
        }
        true
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        loop {
            match &mut self.wait {
                // As a server that has stopped: nothing will wake it.
                Some(Wait::ForEver) => return Poll::Pending,
                Some(Wait::Sleep(sleep)) => ready!(sleep.as_mut().poll(cx)),
                None => {}
            }
            self.wait = None;
            if let Some((after, armed)) = &self.abort
                && self.reached(*after)
            {
                armed.strike();
                return Poll::Ready(Next::Abort(armed.injected()));
            }
            if let Some((after, ..)) = &self.stall
                && self.reached(*after)
                && let Some((_, length, armed)) = self.stall.take()
            {
                armed.strike();
                self.wait = Some(match length {
                    Some(length) => Wait::Sleep(Box::pin(sleep(length))),
                    None => Wait::ForEver,
                });
                continue;
            }
            if self.rest.is_empty() {
                return Poll::Ready(Next::Read);
            }
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(Next::Data(self.pass(rest)));
        }
    }

    /// As much of it as may go on now.
    pub(crate) fn pass(&mut self, mut data: Bytes) -> Bytes {
        let most = self.most();
        if data.len() > most {
            self.rest = data.split_off(most);
        } else {
            self.frames += 1;
        }
        self.bytes += data.len() as u64;
        if let Some((_, every, armed)) = &self.drip {
            self.wait = Some(Wait::Sleep(Box::pin(sleep(*every))));
            if !std::mem::replace(&mut self.dripped, true) {
                armed.strike();
            }
        }
        data
    }

    /// How much may go on in one piece.
    fn most(&self) -> usize {
        let abort = self.abort.as_ref().map(|(after, _)| *after);
        let stall = self.stall.as_ref().map(|(after, ..)| *after);
        let cuts = [abort, stall].into_iter().flatten();
        let left = cuts.filter_map(|after| match after {
            After::Bytes(bytes) => usize::try_from(bytes - self.bytes).ok(),
            After::Frames(_) => None,
        });
        let drip = self.drip.as_ref().map(|(bytes, ..)| *bytes);
        left.chain(drip).min().unwrap_or(usize::MAX)
    }

    fn reached(&self, after: After) -> bool {
        match after {
            After::Bytes(bytes) => self.bytes >= bytes,
            After::Frames(frames) => self.frames >= frames,
        }
    }

    /// Whether it has still something to say once its source is over.
    pub(crate) fn goes_on(&self) -> bool {
        let abort = self.abort.as_ref().map(|(after, _)| *after);
        let stall = self.stall.as_ref().map(|(after, ..)| *after);
        let mut cuts = [abort, stall].into_iter().flatten();
        let stopped = matches!(self.wait, Some(Wait::ForEver));
        stopped || !self.rest.is_empty() || cuts.any(|after| self.reached(after))
    }

    /// Bytes that were read and not handed on.
    pub(crate) fn held(&self) -> u64 {
        self.rest.len() as u64
    }
}
