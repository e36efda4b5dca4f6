//! Reading a file to its last mistake, each with its place.

use std::{fmt, io, ops::Range, path::Path};

use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeTable, DeValue, Deserializer, Error},
};

use super::{Config, Mistake};

/// A mistake and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line, counted from 1; 0 when the file could not be read at all.
    pub line: usize,
    /// The column, counted from 1 in characters.
    pub column: usize,
    /// What is wrong.
    pub mistake: Mistake,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mistake {
            path,
            message,
            hint,
        } = &self.mistake;
        if self.line > 0 {
            write!(f, "{}:{}: ", self.line, self.column)?;
        }
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        f.write_str(message)?;
        match &**hint {
            "" => Ok(()),
            hint => write!(f, "\n    hint: {hint}"),
        }
    }
}

/// Reads a file.
///
/// # Errors
///
/// All that is wrong, not only the first.
pub fn load(path: &Path) -> Result<Config, Vec<Fault>> {
    let unreadable = |error: io::Error| {
        vec![Fault {
            line: 0,
            column: 0,
            mistake: Mistake::new("", error.to_string(), ""),
        }]
    };
    parse(&std::fs::read_to_string(path).map_err(unreadable)?)
}

/// Reads the text of a file.
///
/// # Errors
///
/// All that is wrong, not only the first.
pub fn parse(text: &str) -> Result<Config, Vec<Fault>> {
    let (mut table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let faults = errors.iter().map(|error| fault(text, "", error));
        return Err(in_order(faults.collect()));
    }
    let whole = table.clone();
    let mut faults = Vec::new();
    let config = loop {
        let error = match Config::deserialize(Deserializer::from(table.clone())) {
            Ok(config) => break Some(config),
            Err(error) => error,
        };
        let path = error.span().and_then(|span| cut(table.get_mut(), &span));
        let fault = fault(text, path.as_deref().unwrap_or_default(), &error);
        // What was cut out for being wrong is missing only therefore.
        if !faults.iter().any(|found| is_missed_for(&fault, found)) {
            faults.push(fault);
        }
        // What cannot be cut out hides what comes after it.
        if path.is_none() {
            break None;
        }
    };
    // A list that lost an entry is not what was meant: its other mistakes are shown when it is whole.
    if let Some(config) = config
        && faults.is_empty()
    {
        let mistakes = config.check();
        if mistakes.is_empty() {
            return Ok(config);
        }
        faults.extend(mistakes.into_iter().map(|mistake| {
            let at = find(whole.get_ref(), &mistake.path);
            place(text, at.unwrap_or(0), mistake)
        }));
    }
    Err(in_order(faults))
}

/// Whether a field is missing because it was cut out for another mistake.
fn is_missed_for(fault: &Fault, found: &Fault) -> bool {
    let field = fault.mistake.message.strip_prefix("missing field `");
    let field = field.and_then(|rest| rest.strip_suffix('`'));
    let below = found.mistake.path.strip_prefix(&fault.mistake.path);
    let (Some(field), Some(below)) = (field, below) else {
        return false;
    };
    below
        .strip_suffix(field)
        .is_some_and(|path| path.ends_with('.'))
}

fn in_order(mut faults: Vec<Fault>) -> Vec<Fault> {
    faults.sort_by_key(|fault| (fault.line, fault.column));
    faults
}

fn fault(text: &str, path: &str, error: &Error) -> Fault {
    let message = error.message().trim().to_owned();
    let hint = match hint(&message) {
        hint if hint.is_empty() && path.starts_with("prices.") => {
            "a name with dots needs quotes, as in `[prices.\"gpt-3.5-turbo\"]`".into()
        }
        hint => hint,
    };
    let at = error.span().map_or(0, |span| span.start);
    place(text, at, Mistake::new(path, message, hint))
}

fn place(text: &str, at: usize, mistake: Mistake) -> Fault {
    let before = &text[..text.floor_char_boundary(at)];
    let line = before.rsplit('\n').next().unwrap_or_default();
    Fault {
        line: before.matches('\n').count() + 1,
        column: line.chars().count() + 1,
        mistake,
    }
}

/// Cuts out the innermost entry that covers the span, and names it.
fn cut(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let covers = |of: Range<usize>| of.start <= span.start && span.end <= of.end;
    let mut found = None;
    for (key, value) in table.iter_mut() {
        let name = key.get_ref().to_string();
        if covers(key.span()) {
            found = Some((name, None));
            break;
        }
        let below = match value.get_mut() {
            DeValue::Table(table) => cut(table, span),
            DeValue::Array(array) => array
                .iter_mut()
                .enumerate()
                .find_map(|(at, item)| match item.get_mut() {
                    DeValue::Table(table) => cut(table, span).map(|path| format!("[{at}].{path}")),
                    _ => covers(item.span()).then(|| format!("[{at}]")),
                }),
            _ => None,
        };
        if let Some(below) = below {
            let is_item = below.starts_with('[') && !below.contains('.');
            if !is_item {
                let dot = if below.starts_with('[') { "" } else { "." };
                return Some(format!("{name}{dot}{below}"));
            }
            // An item is wrong in itself: the list goes as a whole.
            found = Some((name, Some(below)));
            break;
        }
        if covers(value.span()) {
            found = Some((name, None));
            break;
        }
    }
    let (name, below) = found?;
    table.remove(&*name);
    Some(name + below.as_deref().unwrap_or_default())
}

/// Where a path such as `rate_limits[1].window` stands, or what is nearest to it.
fn find(table: &DeTable<'_>, path: &str) -> Option<usize> {
    let (head, rest) = split(path);
    let (name, index) = match head.split_once('[') {
        Some((name, index)) => (name, index.trim_end_matches(']').parse::<usize>().ok()),
        None => (head, None),
    };
    let (key, value) = table.get_key_value(name)?;
    let value: &Spanned<DeValue<'_>> = match index {
        Some(index) => value.get_ref().as_array()?.get(index)?,
        None => value,
    };
    let below = match value.get_ref() {
        DeValue::Table(table) if !rest.is_empty() => find(table, rest),
        _ => None,
    };
    let here = match (index, value.get_ref()) {
        (None, DeValue::Table(_)) => key.span().start,
        _ => value.span().start,
    };
    Some(below.unwrap_or(here))
}

/// The first name of a path, without the quotes that a dot in it needs, and what comes after it.
fn split(path: &str) -> (&str, &str) {
    let quoted = path.strip_prefix('"').and_then(|path| path.split_once('"'));
    match quoted {
        Some((name, rest)) => (name, rest.strip_prefix('.').unwrap_or(rest)),
        None => path.split_once('.').unwrap_or((path, "")),
    }
}

/// The name that was probably meant, when a message lists those there are.
fn hint(message: &str) -> String {
    if !message.starts_with("unknown") {
        return String::new();
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let Some(wrong) = names.next() else {
        return String::new();
    };
    let nearest = names.min_by_key(|name| distance(wrong, name));
    match nearest {
        Some(name) if distance(wrong, name) <= name.len().div_ceil(3) => {
            format!("did you mean `{name}`?")
        }
        _ => String::new(),
    }
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<(usize, usize, String)> {
        let faults = parse(text).unwrap_err().into_iter();
        let told = |fault: Fault| (fault.line, fault.column, fault.to_string());
        faults.map(told).collect()
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn all_mistakes_are_found_in_one_reading() {
        let found = faults(
            "lisen = \"127.0.0.1:8000\"\n\
             strategy = \"adaptiv\"\n\
             health_interval = 5\n\
             \n\
             [server]\n\
             body_limit = \"big\"\n\
             \n\
             [[backends]]\n\
             url = \"http://127.0.0.1:1\"\n\
             wieght = 2\n",
        );
        let places: Vec<_> = found
            .iter()
            .map(|(line, column, _)| (*line, *column))
            .collect();
        assert_eq!(
            places,
            [(1, 1), (2, 12), (3, 19), (6, 14), (10, 1)],
            "{found:#?}"
        );
        for (at, says) in [
            (0, "did you mean `listen`?"),
            (1, "did you mean `adaptive`?"),
            (2, "health_interval"),
            (3, "server.body_limit"),
            (4, "backends[0].wieght"),
        ] {
            assert!(found[at].2.contains(says), "{found:#?}");
        }
    }

    #[test]
    fn a_value_that_cannot_be_is_found_where_it_stands() {
        let found = faults(
            "[[rate_limits]]\n\
             name = \"all\"\n\
             identifier = \"global\"\n\
             max_requests = 0\n\
             window = \"60s\"\n\
             [timeouts]\n\
             first_byte = \"0s\"\n",
        );
        let places: Vec<_> = found
            .iter()
            .map(|(line, column, _)| (*line, *column))
            .collect();
        assert_eq!(places, [(4, 16), (7, 14)], "{found:#?}");
    }

    #[test]
    fn a_field_that_is_missing_is_told_with_its_table() {
        let found = faults("[[backends]]\nid = \"a\"\n");
        assert_eq!(found[0].0, 1, "{found:#?}");
        assert!(found[0].2.contains("missing field `url`"), "{found:#?}");
    }

    #[test]
    fn broken_toml_is_told_with_its_place() {
        let found = faults("listen = \n[server\n");
        assert!(found.len() >= 2, "{found:#?}");
        assert_eq!((found[0].0, found[1].0), (1, 2), "{found:#?}");
    }
}
