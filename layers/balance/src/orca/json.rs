//! The JSON form, in which only numbers of the outer object and of `named_metrics` matter.

use super::{Said, number};

/// `None` if it is no JSON object.
pub(super) fn parse(text: &[u8]) -> Option<Said> {
    let mut said = Said::default();
    let mut cursor = Cursor(text);
    cursor.object(|cursor, name| {
        if !matches!(name, b"named_metrics" | b"namedMetrics") || cursor.peek() != Some(b'{') {
            return cursor.metric(&mut said, name);
        }
        cursor.object(|cursor, name| cursor.metric(&mut said, name))
    })?;
    cursor.peek().is_none().then_some(said)
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// The next byte that is no space.
    fn peek(&mut self) -> Option<u8> {
        self.0 = self.0.trim_ascii_start();
        self.0.first().copied()
    }

    fn eat(&mut self, byte: u8) -> Option<()> {
        let eaten = self.peek() == Some(byte);
        eaten.then(|| self.0 = &self.0[1..])
    }

    fn object(&mut self, mut each: impl FnMut(&mut Self, &'a [u8]) -> Option<()>) -> Option<()> {
        self.eat(b'{')?;
        if self.eat(b'}').is_some() {
            return Some(());
        }
        loop {
            let name = self.string()?;
            self.eat(b':')?;
            each(self, name)?;
            if self.eat(b',').is_none() {
                return self.eat(b'}');
            }
        }
    }

    fn metric(&mut self, said: &mut Said, name: &[u8]) -> Option<()> {
        match self.peek()? {
            b'{' | b'[' => return self.skip(),
            // Protocol Buffers have numbers in strings, too.
            b'"' => self.string().map(|text| (text, true)),
            _ => {
                let end = self.0.iter().position(|byte| b",]} \t\r\n".contains(byte));
                let (word, rest) = self.0.split_at(end?);
                self.0 = rest;
                Some((word, false))
            }
        }
        .and_then(|(text, quoted)| {
            match number(text) {
                Some(value) => said.hear(name, value),
                None if quoted || matches!(text, b"true" | b"false" | b"null") => {}
                None => return None,
            }
            Some(())
        })
    }

    /// What is between the quotes, as it is written.
    fn string(&mut self) -> Option<&'a [u8]> {
        self.eat(b'"')?;
        let mut escaped = false;
        let end = self.0.iter().position(|&byte| {
            let end = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            end
        })?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Some(text)
    }

    /// Goes past an object or an array, whatever is in there.
    fn skip(&mut self) -> Option<()> {
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.0 = &self.0[1..];
            if depth == 0 {
                return Some(());
            }
        }
    }
}
