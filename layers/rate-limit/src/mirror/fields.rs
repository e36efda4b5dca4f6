//! Lists and dictionaries of structured fields (RFC 9651), read where they stand: nothing is copied.

/// A value without its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bare<'a> {
    Integer(i64),
    /// In thousandths.
    Decimal(i64),
    /// Between its quotes, with its escapes.
    Text(&'a str),
    Token(&'a str),
    /// Between its colons, in base64.
    Bytes(&'a str),
    Boolean(bool),
    /// In seconds since 1970.
    Date(i64),
    /// Between its quotes, percent-encoded.
    Display(&'a str),
    /// An inner list, whose items nobody here wants.
    Inner,
}

/// A member of a list, or the value of a member of a dictionary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'a> {
    pub(super) value: Bare<'a>,
    parameters: &'a str,
}

impl<'a> Item<'a> {
    /// The value of a parameter: of several of one name the last, as the RFC has it.
    pub(super) fn get(&self, name: &str) -> Option<Bare<'a>> {
        let mut cursor = Cursor(self.parameters);
        let mut found = None;
        cursor.parameters(|key, value| {
            if key == name {
                found = Some(value);
            }
        })?;
        found
    }

    /// The value of a parameter that is a whole number of zero or more.
    pub(super) fn count(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Bare::Integer(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }
}

/// Visits the members of a list; of one that is malformed anywhere, none.
pub(super) fn list<'a>(line: &'a str, mut visit: impl FnMut(Item<'a>)) -> Option<()> {
    let walk = |visit: &mut dyn FnMut(Item<'a>)| {
        members(line, |cursor| {
            visit(cursor.item()?);
            Some(())
        })
    };
    walk(&mut |_| ())?;
    walk(&mut visit)
}

/// Visits the members of a dictionary; of one that is malformed anywhere, none.
pub(super) fn dictionary<'a>(
    line: &'a str,
    mut visit: impl FnMut(&'a str, Item<'a>),
) -> Option<()> {
    let walk = |visit: &mut dyn FnMut(&'a str, Item<'a>)| {
        members(line, |cursor| {
            let key = cursor.key()?;
            let item = if cursor.eat('=') {
                cursor.item()?
            } else {
                let value = Bare::Boolean(true);
                let parameters = cursor.skim(|cursor| cursor.parameters(|_, _| ()))?;
                Item { value, parameters }
            };
            visit(key, item);
            Some(())
        })
    };
    walk(&mut |_, _| ())?;
    walk(&mut visit)
}

/// Whether a text with its escapes says `plain`.
pub(super) fn says(text: &str, plain: &str) -> bool {
    unescaped(text).eq(plain.chars())
}

/// A text without its escapes.
pub(super) fn unescaped(text: &str) -> impl Iterator<Item = char> {
    let mut chars = text.chars();
    std::iter::from_fn(move || match chars.next()? {
        '\\' => chars.next(),
        char => Some(char),
    })
}

fn members<'a>(line: &'a str, mut member: impl FnMut(&mut Cursor<'a>) -> Option<()>) -> Option<()> {
    let mut cursor = Cursor(line);
    cursor.spaces(&[' ']);
    while !cursor.0.is_empty() {
        member(&mut cursor)?;
        cursor.spaces(&[' ', '\t']);
        if cursor.0.is_empty() {
            break;
        }
        if !cursor.eat(',') {
            return None;
        }
        cursor.spaces(&[' ', '\t']);
        // A comma is followed by a member.
        if cursor.0.is_empty() {
            return None;
        }
    }
    Some(())
}

/// What is left to read. Reading fails with `None`.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn item(&mut self) -> Option<Item<'a>> {
        let value = if self.0.starts_with('(') {
            self.inner_list()?
        } else {
            self.bare()?
        };
        let parameters = self.skim(|cursor| cursor.parameters(|_, _| ()))?;
        Some(Item { value, parameters })
    }

    fn inner_list(&mut self) -> Option<Bare<'a>> {
        self.eat('(').then_some(())?;
        loop {
            self.spaces(&[' ']);
            if self.eat(')') {
                return Some(Bare::Inner);
            }
            self.bare()?;
            self.parameters(|_, _| ())?;
            if !self.0.starts_with([' ', ')']) {
                return None;
            }
        }
    }

    fn parameters(&mut self, mut visit: impl FnMut(&'a str, Bare<'a>)) -> Option<()> {
        while self.eat(';') {
            self.spaces(&[' ']);
            let key = self.key()?;
            let value = if self.eat('=') {
                self.bare()?
            } else {
                Bare::Boolean(true)
            };
            visit(key, value);
        }
        Some(())
    }

    fn key(&mut self) -> Option<&'a str> {
        let inside = |char: char| {
            char.is_ascii_lowercase() || char.is_ascii_digit() || "_-.*".contains(char)
        };
        let begins = |char: char| char.is_ascii_lowercase() || char == '*';
        self.0.starts_with(begins).then(|| self.run(inside))
    }

    fn bare(&mut self) -> Option<Bare<'a>> {
        match self.0.chars().next()? {
            '-' | '0'..='9' => self.number(),
            '"' => self.text(),
            ':' => self.bytes(),
            '?' => self.boolean(),
            '@' => self.date(),
            '%' => self.display(),
            '*' | 'a'..='z' | 'A'..='Z' => {
                let inside =
                    |char: char| char.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(char);
                Some(Bare::Token(self.run(inside)))
            }
            _ => None,
        }
    }

    fn number(&mut self) -> Option<Bare<'a>> {
        let sign = if self.eat('-') { -1 } else { 1 };
        let whole = self.run(|char| char.is_ascii_digit());
        if !self.0.starts_with('.') {
            return match whole.len() {
                1..=15 => Some(Bare::Integer(sign * whole.parse::<i64>().ok()?)),
                _ => None,
            };
        }
        self.eat('.');
        let fraction = self.run(|char| char.is_ascii_digit());
        if !(1..=12).contains(&whole.len()) || !(1..=3).contains(&fraction.len()) {
            return None;
        }
        let scale = [100, 10, 1][fraction.len() - 1];
        let thousandths = whole.parse::<i64>().ok()? * 1000 + fraction.parse::<i64>().ok()? * scale;
        Some(Bare::Decimal(sign * thousandths))
    }

    fn text(&mut self) -> Option<Bare<'a>> {
        self.eat('"').then_some(())?;
        let rest = self.0;
        let mut escaped = false;
        for (at, byte) in rest.bytes().enumerate() {
            match byte {
                b'"' | b'\\' if escaped => escaped = false,
                _ if escaped => return None,
                b'\\' => escaped = true,
                b'"' => {
                    self.0 = &rest[at + 1..];
                    return Some(Bare::Text(&rest[..at]));
                }
                0x20..=0x7e => {}
                _ => return None,
            }
        }
        None
    }

    fn bytes(&mut self) -> Option<Bare<'a>> {
        self.eat(':').then_some(())?;
        let bytes = self.run(|char| char.is_ascii_alphanumeric() || "+/=".contains(char));
        self.eat(':').then_some(Bare::Bytes(bytes))
    }

    fn boolean(&mut self) -> Option<Bare<'a>> {
        self.eat('?').then_some(())?;
        if self.eat('1') {
            return Some(Bare::Boolean(true));
        }
        self.eat('0').then_some(Bare::Boolean(false))
    }

    fn date(&mut self) -> Option<Bare<'a>> {
        self.eat('@').then_some(())?;
        match self.number()? {
            Bare::Integer(seconds) => Some(Bare::Date(seconds)),
            _ => None,
        }
    }

    fn display(&mut self) -> Option<Bare<'a>> {
        self.0 = self.0.strip_prefix("%\"")?;
        let text = self.run(|char| char != '"' && (' '..='~').contains(&char));
        self.eat('"').then_some(())?;
        let mut pieces = text.split('%').skip(1);
        let hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        let encoded = |piece: &str| piece.len() >= 2 && piece.as_bytes()[..2].iter().all(hex);
        pieces.all(encoded).then_some(Bare::Display(text))
    }

    /// What `read` has read.
    fn skim(&mut self, read: impl FnOnce(&mut Self) -> Option<()>) -> Option<&'a str> {
        let before = self.0;
        read(self)?;
        Some(&before[..before.len() - self.0.len()])
    }

    fn run(&mut self, inside: impl Fn(char) -> bool) -> &'a str {
        let end = self.0.find(|char| !inside(char)).unwrap_or(self.0.len());
        let (run, rest) = self.0.split_at(end);
        self.0 = rest;
        run
    }

    fn eat(&mut self, char: char) -> bool {
        let rest = self.0.strip_prefix(char);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn spaces(&mut self, which: &[char]) {
        self.0 = self.0.trim_start_matches(which);
    }
}

#[cfg(test)]
mod tests;
