//! Which metrics an expression is about.

use std::collections::BTreeSet;

/// Words that stand between operands, or before the labels of an aggregation.
const WORDS: [&str; 12] = [
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "atan2",
];

const AGGREGATIONS: [&str; 12] = [
    "sum",
    "min",
    "max",
    "avg",
    "group",
    "stddev",
    "stdvar",
    "count",
    "count_values",
    "bottomk",
    "topk",
    "quantile",
];

/// The names of all metrics in an expression of PromQL.
pub(crate) fn metrics(expression: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = expression;
    let mut labels_follow = false;
    while let Some(char) = rest.chars().next() {
        match char {
            '"' | '\'' | '`' => rest = after_text(rest, char),
            '{' => rest = after_matchers(rest),
            '[' => rest = rest.split_once(']').expect("a range ends").1,
            '(' if labels_follow => {
                rest = rest.split_once(')').expect("labels end").1;
                labels_follow = false;
            }
            '0'..='9' | '.' => {
                let end = rest.find(|char: char| !char.is_ascii_alphanumeric() && char != '.');
                rest = &rest[end.unwrap_or(rest.len())..];
            }
            char if is_of_name(char) => {
                let end = rest.find(|char| !is_of_name(char)).unwrap_or(rest.len());
                let (name, behind) = rest.split_at(end);
                rest = behind;
                let is_call = behind.trim_start().starts_with('(');
                if WORDS.contains(&name) {
                    labels_follow = is_call && !matches!(name, "and" | "or" | "unless" | "bool");
                } else if !is_call && !AGGREGATIONS.contains(&name) {
                    found.insert(name.to_owned());
                }
            }
            _ => rest = &rest[char.len_utf8()..],
        }
    }
    found
}

fn is_of_name(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_' || char == ':'
}

fn after_text(text: &str, quote: char) -> &str {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, char)) = chars.next() {
        if char == '\\' && quote != '`' {
            chars.next();
        } else if char == quote {
            return &text[at + 1..];
        }
    }
    panic!("a text does not end: {text}");
}

fn after_matchers(text: &str) -> &str {
    let mut rest = &text[1..];
    loop {
        match rest.chars().next().expect("matchers end") {
            '}' => return &rest[1..],
            quote @ ('"' | '\'' | '`') => rest = after_text(rest, quote),
            char => rest = &rest[char.len_utf8()..],
        }
    }
}

#[test]
fn names_are_told_from_functions_labels_and_texts() {
    for (expression, names) in [
        ("up == 0", &["up"][..]),
        (
            r#"sum by (job, le) (rate(a_bucket{le=~"2(\\.0)?",x="}"}[5m])) / 1e3 > bool 0.5"#,
            &["a_bucket"],
        ),
        (
            r#"level:a:rate5m{x="b"} and ignoring (window) c offset 5m or vector(0)"#,
            &["c", "level:a:rate5m"],
        ),
        (
            r#"histogram_quantile(0.9, sum(rate(a[1m])) by (le)) * on (job) group_left (x) (b - min(c))"#,
            &["a", "b", "c"],
        ),
        (r#"label_replace(a, "at", "b", "", "")"#, &["a"]),
        ("absent(up) or (a or b)", &["a", "b", "up"]),
    ] {
        let found = metrics(expression);
        let found: Vec<_> = found.iter().map(String::as_str).collect();
        assert_eq!(found, names, "{expression}");
    }
}
