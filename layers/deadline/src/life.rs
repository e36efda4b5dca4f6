//! Signs of life.

use bytes::Buf;
use http::Response;
use http_body::Frame;
use palisade_core::head::ResponseHead;

/// Whether the comments of an event stream, which servers send to keep connections open, are data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pings {
    /// They are: a service that still pings is alive.
    #[default]
    Count,
    /// They are not: a service that only pings is stuck. Data in several pieces count whatever they are.
    Ignore,
}

/// Tells data from what only keeps a connection open, frame by frame.
#[derive(Debug, Default)]
pub(crate) struct Life {
    pings: Pings,
    line: Line,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Line {
    #[default]
    Start,
    Comment,
    Field,
}

impl Life {
    pub(crate) fn new(pings: Pings) -> Self {
        let line = Line::default();
        Self { pings, line }
    }

    #[inline]
    pub(crate) fn head<B>(&mut self, response: &Response<B>) {
        if self.pings == Pings::Ignore && !ResponseHead::from(response).is_event_stream() {
            self.pings = Pings::Count;
        }
    }

    #[inline]
    pub(crate) fn shows_in<D: Buf>(&mut self, frame: &Frame<D>) -> bool {
        let Some(data) = frame.data_ref() else {
            return false;
        };
        match self.pings {
            Pings::Ignore if data.chunk().len() == data.remaining() => self.reads(data.chunk()),
            _ => data.has_remaining(),
        }
    }

    fn reads(&mut self, data: &[u8]) -> bool {
        let mut shows = false;
        for byte in data {
            self.line = match (self.line, byte) {
                (_, b'\n' | b'\r') => Line::Start,
                (Line::Start, b':') => Line::Comment,
                (Line::Start, _) => Line::Field,
                (line, _) => line,
            };
            shows |= self.line == Line::Field;
        }
        shows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_show_no_life_wherever_they_are_cut() {
        let mut life = Life::new(Pings::Ignore);
        for piece in [": pi", "ng\n", "\r\n", "", ":\r", ": data: x", "\n\n"] {
            assert!(!life.reads(piece.as_bytes()), "{piece:?}");
        }
        for piece in ["d", "ata: : x", ": y"] {
            assert!(life.reads(piece.as_bytes()), "{piece:?}");
        }
        assert!(!life.reads(b"\n\n: ping\n\n"));
        assert!(life.reads(b": ping\n\ndata: x\n\n: ping\n\n"));
    }
}
