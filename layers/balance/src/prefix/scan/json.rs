//! Finds the prompt in the JSON of language models: OpenAI's and Anthropic's, and what is like them.
//!
//! Only values count, in the order in which they come: not names, spaces or braces, and not `type` and
//! `cache_control`, so that a text is the same as a block of text, and a mark that moves on with the conversation
//! changes nothing.

use super::Digest;

/// Of the values of these names the first one is the prompt.
const PROMPTS: [&[u8]; 5] = [b"messages", b"prompt", b"input", b"inputs", b"contents"];
/// The values of these count as well, if they come before it.
const PREAMBLES: [&[u8]; 2] = [b"system", b"instructions"];
/// The values of these say how, not what.
const MARKS: [&[u8]; 2] = [b"cache_control", b"type"];
const ROLE: &[u8] = b"role";
const USER: &[u8] = b"user";

/// The level of the outer object.
const OUTER: u32 = 1;
/// The level within a message: in an object in the array of the prompt.
const MESSAGE: u32 = 3;

#[derive(Debug)]
pub(super) struct Json {
    pub(super) digest: Digest,
    prefix: usize,
    /// How much more of this part counts.
    room: usize,
    /// How many objects and arrays are open.
    depth: u32,
    /// Which of the first 64 of them are objects.
    objects: u64,
    token: Token,
    /// The next string is a name.
    naming: bool,
    /// The name or the role that is being read, or was read last.
    word: Word,
    part: Part,
    /// The level of the mark whose value is passed over, or 0.
    marked: u32,
    role: Role,
    /// A message has been seen.
    messages: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    None,
    Text,
    Escape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Elsewhere,
    Preamble,
    Prompt,
}

/// Whose message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Unknown,
    /// The next string says.
    Next,
    User,
}

/// The beginning of a string, as long as all that are looked for and one more.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    bytes: [u8; 16],
    len: usize,
}

impl Word {
    fn push(&mut self, byte: u8) {
        if let Some(next) = self.bytes.get_mut(self.len) {
            *next = byte;
            self.len += 1;
        }
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Json {
    /// After the first brace.
    pub(super) fn new(prefix: usize) -> Self {
        Self {
            digest: Digest::default(),
            prefix,
            room: 0,
            depth: OUTER,
            objects: 1,
            token: Token::None,
            naming: true,
            word: Word::default(),
            part: Part::Elsewhere,
            marked: 0,
            role: Role::Unknown,
            messages: false,
        }
    }

    /// Says whether the prompt is known.
    pub(super) fn byte(&mut self, byte: u8) -> bool {
        match (self.token, byte) {
            (Token::Escape, _) => self.text(byte, Token::Text),
            (Token::Text, b'\\') => self.text(byte, Token::Escape),
            (Token::Text, b'"') => self.text_ends(),
            (Token::Text, _) => self.text(byte, Token::Text),
            (Token::None, b'"') => {
                self.token = Token::Text;
                self.word = Word::default();
            }
            (Token::None, b':') => self.named(),
            (Token::None, b',') => {
                if self.value_ends() {
                    return true;
                }
                self.naming = self.in_object();
                if !self.naming {
                    self.count(byte);
                }
            }
            (Token::None, b'{' | b'[') => self.open(byte == b'{'),
            (Token::None, b'}' | b']') => return self.close(),
            (Token::None, _) if byte.is_ascii_whitespace() => {}
            (Token::None, _) => self.count(byte),
        }
        self.is_full()
    }

    /// Whether it is in a text of which only the end matters.
    pub(super) fn skims(&self) -> bool {
        self.token == Token::Text && !self.naming && self.role != Role::Next && !self.counts()
    }

    /// Nothing that follows would change the outcome.
    fn is_full(&self) -> bool {
        self.part == Part::Prompt && self.room == 0 && (self.role == Role::User || !self.messages)
    }

    fn text(&mut self, byte: u8, next: Token) {
        self.token = next;
        if self.naming {
            self.word.push(byte);
            return;
        }
        if self.role == Role::Next {
            self.word.push(byte);
        }
        self.count(byte);
    }

    fn text_ends(&mut self) {
        self.token = Token::None;
        if self.naming {
            return;
        }
        // So that two texts are not one.
        self.count(b'"');
        if self.role == Role::Next {
            self.role = if self.word.get() == USER {
                Role::User
            } else {
                Role::Unknown
            };
        }
    }

    /// The value of a name comes next.
    fn named(&mut self) {
        if !self.naming {
            return;
        }
        self.naming = false;
        let name = self.word.get();
        if self.depth == OUTER {
            let part = if PROMPTS.contains(&name) {
                Part::Prompt
            } else if PREAMBLES.contains(&name) {
                Part::Preamble
            } else {
                return;
            };
            self.part = part;
            self.room = self.prefix;
        } else if self.depth == MESSAGE && self.messages && name == ROLE {
            self.role = Role::Next;
        } else if self.marked == 0 && MARKS.contains(&name) {
            self.marked = self.depth;
        }
    }

    fn open(&mut self, object: bool) {
        let list = self.part == Part::Prompt && self.depth + 1 == MESSAGE && !self.in_object();
        if list && object {
            self.messages = true;
            self.role = Role::Unknown;
            self.room = self.prefix;
        }
        if self.depth < 64 {
            let bit = 1 << self.depth;
            self.objects = self.objects & !bit | if object { bit } else { 0 };
        }
        self.depth = self.depth.saturating_add(1);
        self.naming = object;
    }

    /// Says whether the prompt is known.
    fn close(&mut self) -> bool {
        let over = self.value_ends();
        self.depth = self.depth.saturating_sub(1);
        self.naming = false;
        if over || self.depth == 0 {
            return true;
        }
        if self.depth + 1 == MESSAGE && self.messages && !self.in_object() {
            if self.role == Role::User {
                return true;
            }
            // Commas between messages must not look as if the prompt were full.
            self.room = self.prefix;
        }
        false
    }

    /// A value of an object, or an element of an array. Says whether it was the prompt.
    fn value_ends(&mut self) -> bool {
        if self.depth == self.marked {
            self.marked = 0;
        }
        if self.role == Role::Next && self.depth == MESSAGE {
            self.role = Role::Unknown;
        }
        if self.depth != OUTER {
            return false;
        }
        let over = self.part == Part::Prompt && self.digest.len > 0;
        self.part = Part::Elsewhere;
        over
    }

    fn in_object(&self) -> bool {
        (1..=64).contains(&self.depth) && self.objects >> (self.depth - 1) & 1 == 1
    }

    fn counts(&self) -> bool {
        self.part != Part::Elsewhere && self.marked == 0 && self.room > 0
    }

    fn count(&mut self, byte: u8) {
        if self.counts() {
            self.digest.eat(byte);
            self.room -= 1;
        }
    }
}
