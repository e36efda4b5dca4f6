use proptest::prelude::*;

use super::*;

/// A value as the dumbest reader of the RFC has it: copied, character by character, straight down the grammar.
#[derive(Clone, Debug, PartialEq)]
enum Plain {
    Integer(i64),
    Decimal(i64),
    Text(String),
    Token(String),
    Bytes(String),
    Boolean(bool),
    Date(i64),
    Display(String),
    Inner,
}

type Parameters = Vec<(String, Plain)>;

struct Model(Vec<char>);

impl Model {
    fn list(line: &str) -> Option<Vec<(Plain, Parameters)>> {
        let mut model = Self::of(line);
        let mut all = Vec::new();
        while !model.0.is_empty() {
            all.push(model.item()?);
            if !model.comma()? {
                break;
            }
        }
        Some(all)
    }

    fn dictionary(line: &str) -> Option<Vec<(String, Plain, Parameters)>> {
        let mut model = Self::of(line);
        let mut all = Vec::new();
        while !model.0.is_empty() {
            let key = model.key()?;
            let (value, parameters) = if model.next_is('=') {
                model.0.pop();
                model.item()?
            } else {
                (Plain::Boolean(true), model.parameters()?)
            };
            all.push((key, value, parameters));
            if !model.comma()? {
                break;
            }
        }
        Some(all)
    }

    /// Backwards, so that the next character is the last.
    fn of(line: &str) -> Self {
        let mut model = Self(line.chars().rev().collect());
        while model.next_is(' ') {
            model.0.pop();
        }
        model
    }

    fn next_is(&self, char: char) -> bool {
        self.0.last() == Some(&char)
    }

    fn comma(&mut self) -> Option<bool> {
        let blank = |model: &mut Self| {
            while model.next_is(' ') || model.next_is('\t') {
                model.0.pop();
            }
        };
        blank(self);
        match self.0.pop() {
            None => return Some(false),
            Some(',') => {}
            Some(_) => return None,
        }
        blank(self);
        (!self.0.is_empty()).then_some(true)
    }

    fn item(&mut self) -> Option<(Plain, Parameters)> {
        let value = if self.next_is('(') {
            self.0.pop();
            loop {
                while self.next_is(' ') {
                    self.0.pop();
                }
                if self.next_is(')') {
                    self.0.pop();
                    break Plain::Inner;
                }
                self.bare()?;
                self.parameters()?;
                if !self.next_is(' ') && !self.next_is(')') {
                    return None;
                }
            }
        } else {
            self.bare()?
        };
        Some((value, self.parameters()?))
    }

    fn parameters(&mut self) -> Option<Parameters> {
        let mut all = Vec::new();
        while self.next_is(';') {
            self.0.pop();
            while self.next_is(' ') {
                self.0.pop();
            }
            let key = self.key()?;
            let mut value = Plain::Boolean(true);
            if self.next_is('=') {
                self.0.pop();
                value = self.bare()?;
            }
            all.push((key, value));
        }
        Some(all)
    }

    fn key(&mut self) -> Option<String> {
        let mut key = String::new();
        match self.0.pop()? {
            char @ ('a'..='z' | '*') => key.push(char),
            _ => return None,
        }
        while let Some('a'..='z' | '0'..='9' | '_' | '-' | '.' | '*') = self.0.last() {
            key.push(self.0.pop()?);
        }
        Some(key)
    }

    fn bare(&mut self) -> Option<Plain> {
        match self.0.pop()? {
            char @ ('-' | '0'..='9') => self.number(char),
            '"' => {
                let mut text = String::new();
                loop {
                    match self.0.pop()? {
                        '"' => return Some(Plain::Text(text)),
                        '\\' => match self.0.pop()? {
                            char @ ('"' | '\\') => text.push(char),
                            _ => return None,
                        },
                        char @ ' '..='~' => text.push(char),
                        _ => return None,
                    }
                }
            }
            ':' => {
                let mut text = String::new();
                loop {
                    match self.0.pop()? {
                        ':' => return Some(Plain::Bytes(text)),
                        char @ ('a'..='z' | 'A'..='Z' | '0'..='9' | '+' | '/' | '=') => {
                            text.push(char);
                        }
                        _ => return None,
                    }
                }
            }
            '?' => match self.0.pop()? {
                '1' => Some(Plain::Boolean(true)),
                '0' => Some(Plain::Boolean(false)),
                _ => None,
            },
            '@' => {
                let first = self.0.pop()?;
                match self.number(first)? {
                    Plain::Integer(number) => Some(Plain::Date(number)),
                    _ => None,
                }
            }
            '%' => {
                if self.0.pop()? != '"' {
                    return None;
                }
                let mut text = String::new();
                loop {
                    match self.0.pop()? {
                        '"' => return Some(Plain::Display(text)),
                        '%' => {
                            text.push('%');
                            for _ in 0..2 {
                                match self.0.pop()? {
                                    char @ ('0'..='9' | 'a'..='f') => text.push(char),
                                    _ => return None,
                                }
                            }
                        }
                        char @ ' '..='~' => text.push(char),
                        _ => return None,
                    }
                }
            }
            char @ ('a'..='z' | 'A'..='Z' | '*') => {
                let mut token = String::from(char);
                while let Some(&char) = self.0.last() {
                    if !char.is_ascii_alphanumeric() && !"!#$%&'*+-.^_`|~:/".contains(char) {
                        break;
                    }
                    token.push(char);
                    self.0.pop();
                }
                Some(Plain::Token(token))
            }
            _ => None,
        }
    }

    fn number(&mut self, first: char) -> Option<Plain> {
        let (mut digits, mut after_point) = (String::new(), None);
        if first != '-' {
            if !first.is_ascii_digit() {
                return None;
            }
            digits.push(first);
        }
        while let Some(&char) = self.0.last() {
            match char {
                '0'..='9' => {
                    digits.push(char);
                    after_point = after_point.map(|many| many + 1);
                }
                '.' if after_point.is_none() && digits.len() <= 12 => after_point = Some(0),
                '.' if after_point.is_none() => return None,
                _ => break,
            }
            self.0.pop();
            if after_point.is_none() && digits.len() > 15 {
                return None;
            }
        }
        let sign = if first == '-' { -1 } else { 1 };
        match after_point {
            None => Some(Plain::Integer(sign * digits.parse::<i64>().ok()?)),
            Some(many @ 1..=3) if digits.len() > many => {
                let number: i64 = digits.parse().ok()?;
                Some(Plain::Decimal(sign * number * 10_i64.pow(3 - many as u32)))
            }
            Some(_) => None,
        }
    }
}

fn plain(bare: Bare<'_>) -> Plain {
    match bare {
        Bare::Integer(number) => Plain::Integer(number),
        Bare::Decimal(number) => Plain::Decimal(number),
        Bare::Text(text) => Plain::Text(unescaped(text).collect()),
        Bare::Token(text) => Plain::Token(text.into()),
        Bare::Bytes(text) => Plain::Bytes(text.into()),
        Bare::Boolean(is) => Plain::Boolean(is),
        Bare::Date(seconds) => Plain::Date(seconds),
        Bare::Display(text) => Plain::Display(text.into()),
        Bare::Inner => Plain::Inner,
    }
}

fn parameters(item: &Item<'_>) -> Parameters {
    let mut all = Vec::new();
    let read =
        Cursor(item.parameters).parameters(|key, value| all.push((key.into(), plain(value))));
    assert_eq!(read, Some(()), "read before");
    all
}

fn read_list(line: &str) -> Option<Vec<(Plain, Parameters)>> {
    let mut all = Vec::new();
    let read = list(line, |item| {
        all.push((plain(item.value), parameters(&item)));
    });
    assert!(read.is_some() || all.is_empty(), "of a malformed one, none");
    read.map(|()| all)
}

fn read_dictionary(line: &str) -> Option<Vec<(String, Plain, Parameters)>> {
    let mut all = Vec::new();
    let read = dictionary(line, |key, item| {
        all.push((key.into(), plain(item.value), parameters(&item)));
    });
    read.map(|()| all)
}

/// Pieces that make lines which are nearly right, and often are.
fn line() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => prop::sample::select(vec![
            "\"default\"", "\"a\\\"b\\\\\"", "tok/en:1", "*", "a", "r=1", "1", "-15", "999999999999999",
            "1.5", "-0.25", "123456789012.123", ":YWI=:", "?1", "?0", "@17", "%\"a%c3%a9\"", "(a \"b\";x 1)",
        ]).prop_map(String::from),
        6 => prop::sample::select(vec![
            ";r=50", ";t=30", "; w=1.25", ";pk=:Zm9v:", ";x", ";q=?0", ";n=\"s\"", ", ", ",", " ,\t", "=",
        ]).prop_map(String::from),
        1 => prop::sample::select(vec![
            "\"", "\\", "(", ")", ":", "?", "@", "%", "%\"", "%\"%C3\"", ".", "-", "1234567890123456", "1.2345",
            "1.", "1234567890123.1", ";", " ", "\t", "A", "\u{e9}", "_", "?2", "\"\\n\"", "@1.5",
        ]).prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn it_reads_what_the_dumbest_reader_of_the_grammar_reads(line in line()) {
        prop_assert_eq!(read_list(&line), Model::list(&line), "{}", line);
        prop_assert_eq!(read_dictionary(&line), Model::dictionary(&line), "{}", line);
    }

    #[test]
    fn no_text_makes_it_panic(line in "\\PC{0,60}") {
        prop_assert_eq!(read_list(&line), Model::list(&line));
    }

    #[test]
    fn what_is_written_down_is_read_back(items in prop::collection::vec((written(), prop::collection::vec(("[a-z*][a-z0-9_.*-]{0,4}", written()), 0..4)), 0..6)) {
        let line: Vec<String> = items.iter().map(|(value, parameters)| {
            let parameters: String = parameters.iter().map(|(key, value)| format!(";{key}={}", write(value))).collect();
            write(value) + &parameters
        }).collect();
        prop_assert_eq!(read_list(&line.join(", ")), Some(items));
    }
}

fn written() -> impl Strategy<Value = Plain> {
    prop_oneof![
        (-999_999_999_999_999..=999_999_999_999_999_i64).prop_map(Plain::Integer),
        (-999_999_999_999_999..=999_999_999_999_999_i64).prop_map(Plain::Decimal),
        "[ -~]{0,9}".prop_map(Plain::Text),
        "[a-zA-Z*][a-zA-Z0-9:/!#$%&'*+.^_`|~-]{0,9}".prop_map(Plain::Token),
        "[a-zA-Z0-9+/=]{0,9}".prop_map(Plain::Bytes),
        any::<bool>().prop_map(Plain::Boolean),
        (-9_999_999..9_999_999_i64).prop_map(Plain::Date),
    ]
}

fn write(value: &Plain) -> String {
    match value {
        Plain::Integer(number) => number.to_string(),
        Plain::Decimal(number) => {
            let sign = if *number < 0 { "-" } else { "" };
            format!("{sign}{}.{:03}", number.abs() / 1000, number.abs() % 1000)
        }
        Plain::Text(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        Plain::Token(text) => text.clone(),
        Plain::Bytes(text) => format!(":{text}:"),
        Plain::Boolean(is) => format!("?{}", u8::from(*is)),
        Plain::Date(seconds) => format!("@{seconds}"),
        Plain::Display(_) | Plain::Inner => unreachable!("never written"),
    }
}

#[test]
fn of_several_parameters_of_one_name_the_last_counts() {
    let mut found = Vec::new();
    list(r#""a";r=1;t=?0;r=7, "b";r=-1"#, |item| {
        found.push((item.count("r"), item.get("t")));
    });
    assert_eq!(found, [(Some(7), Some(Bare::Boolean(false))), (None, None)]);
}

#[test]
fn names_are_compared_without_their_escapes() {
    assert!(says(r#"a\"b\\c"#, r#"a"b\c"#) && !says("ab", "a") && !says("a", "ab"));
}
