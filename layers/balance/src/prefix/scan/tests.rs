use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds {
    read: 16 * 1024,
    prefix: 1024,
};

fn scan(body: &str, bounds: Bounds, content: Content) -> Scan {
    let mut scan = Scan::new(bounds, content);
    scan.read(body.as_bytes());
    scan
}

fn of(body: &str) -> u64 {
    of_prefix(body, BOUNDS.prefix)
}

fn of_prefix(body: &str, prefix: usize) -> u64 {
    let bounds = Bounds { prefix, ..BOUNDS };
    scan(body, bounds, Content::Open)
        .affinity()
        .expect("it has a beginning")
        .0
}

/// What a text has if all of it counts and nothing else does.
fn text(text: &str) -> u64 {
    let mut digest = Digest::default();
    text.bytes().for_each(|byte| digest.eat(byte));
    digest.value().unwrap()
}

/// After how many bytes enough is known.
fn needed(body: &str) -> Option<usize> {
    let mut scan = Scan::new(BOUNDS, Content::Open);
    let mut bytes = body.as_bytes().chunks(1);
    bytes.position(|byte| scan.read(byte)).map(|at| at + 1)
}

#[test]
fn the_turns_of_a_conversation_are_alike() {
    let first = r#"{"model":"m","messages":[{"role":"system","content":"Be kind."},{"role":"user","content":"Hi"}]}"#;
    let turns = [
        r#"{"model":"m","messages":[{"role":"system","content":"Be kind."},{"role":"user","content":"Hi"},
            {"role":"assistant","content":"Hello"},{"role":"user","content":"How are you?"}]}"#,
        r#"{"messages":[{"role":"system","content":"Be kind."},{"role":"user","content":"Hi"},
            {"role":"assistant","tool_calls":[{"id":"7"}]}],"model":"m","stream":true}"#,
    ];
    for turn in turns {
        assert_eq!(of(turn), of(first), "{turn}");
    }
    let others = [
        first.replace("Hi", "Hey"),
        first.replace("kind", "rude"),
        first
            .replace("\"Be kind.\"", "\"Be kind.Hi\"")
            .replace("\"Hi\"", "\"\""),
    ];
    for other in others {
        assert_ne!(of(&other), of(first), "{other}");
    }
}

#[test]
fn what_counts_is_what_was_said() {
    for (body, counts) in [
        (
            r#"{"prompt": "Once \"upon\" a time"}"#,
            r#"Once \"upon\" a time""#,
        ),
        (r#"{"prompt":["a","b"],"n":1}"#, r#"a",b""#),
        (r#"{"prompt": [1, 23, 4]}"#, "1,23,4"),
        (r#"{"prompt": [[1, 23], [4]]}"#, "1,23,4"),
        (r#"{"inputs":"x"}"#, r#"x""#),
        (
            r#"{"system":"s","max_tokens":9,"messages":[{"content":"c","role":"user"}]}"#,
            r#"s"c"user""#,
        ),
        (
            r#"{"messages":[{"content":"c","role":"user"}],"system":"s"}"#,
            r#"c"user""#,
        ),
        (r#"{"system":"s","max_tokens":9}"#, r#"s""#),
        (
            r#"{"instructions":"s","input":[{"type":"message","role":"developer","content":"d"},{"role":"user","content":"u"}]}"#,
            r#"s"developer"d",user"u""#,
        ),
        (
            r#"{"contents":[{"role":"user","parts":[{"text":"a"},{"text":"b"}]}]}"#,
            r#"user"a",b""#,
        ),
        // Only the outermost names say where it is, and only names do.
        (
            r#"{"meta":{"prompt":"no"},"user":"prompt","x":["messages"],"prompt":"yes"}"#,
            r#"yes""#,
        ),
        (r#"{"say":"\"prompt\":\"no\"","prompt":"yes"}"#, r#"yes""#),
        // Nothing in there: the next.
        (r#"{"messages":[],"prompt":"","input":"yes"}"#, r#"""#),
        (r#"{"messages":[],"input":"yes"}"#, r#"yes""#),
        // Whose message it is says only the message itself.
        (
            r#"{"messages":[{"role":"system","content":{"role":"user"}},{"role":"user","content":"u"}]}"#,
            r#"system"user",user"u""#,
        ),
        (
            r#"{"messages":[{"role":"users","content":"a"},{"role":["user"]}]}"#,
            r#"users"a",user""#,
        ),
    ] {
        assert_eq!(of(body), text(counts), "{body}");
    }
}

#[test]
fn a_text_is_the_same_as_a_block_of_text_and_marks_move_on() {
    let plain =
        r#"{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"a"}]}"#;
    for same in [
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}]}"#,
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"Hi","cache_control":{"type":"ephemeral","ttl":"1h"}}]}]}"#,
        r#"{"messages":[{"role":"user","content":[{"cache_control":{"x":["{","[",1]},"text":"Hi","type":"text"}]}]}"#,
        "{ \"messages\" :\t[ {\r\n\"role\" : \"user\" , \"content\" : \"Hi\" } ] }",
    ] {
        assert_eq!(of(same), of(plain), "{same}");
    }
}

#[test]
fn only_the_beginning_of_a_message_counts_and_a_long_one_does_not_hide_the_next() {
    let chat = |system: &str, user: &str| {
        format!(
            r#"{{"messages":[{{"role":"system","content":"{system}"}},{{"role":"user","content":"{user}"}}]}}"#
        )
    };
    let long = "s".repeat(5000);
    assert_ne!(of(&chat(&long, "a")), of(&chat(&long, "b")));
    assert_eq!(of(&chat(&(long.clone() + "x"), "a")), of(&chat(&long, "a")));
    assert_ne!(
        of(&chat(&("x".to_owned() + &long), "a")),
        of(&chat(&long, "a"))
    );
    assert_eq!(of(&chat("", &(long.clone() + "x"))), of(&chat("", &long)));

    let prompt = |text: &str| of_prefix(&format!(r#"{{"prompt":"{text}"}}"#), 4);
    assert_eq!(prompt("abcd"), prompt("abcde"));
    assert_ne!(prompt("abc"), prompt("abcd"));
    assert_eq!(prompt("abcd"), text("abcd"));
}

#[test]
fn no_more_is_read_than_is_needed() {
    let chat = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant"}]}"#;
    assert_eq!(needed(chat), chat.find(r#",{"role":"assistant""#));
    let long = "u".repeat(2000);
    let chat = format!(r#"{{"messages":[{{"role":"user","content":"{long}"}}]}}"#);
    // What says whose it is counts as well.
    assert_eq!(
        needed(&chat),
        Some(chat.find("uuu").unwrap() + 1024 - "user\"".len())
    );
    let chat = format!(r#"{{"messages":[{{"content":"{long}","role":"user","name":"x"}}]}}"#);
    assert_eq!(needed(&chat), chat.find(r#","name""#));
    let prompt = r#"{"prompt":"p","stream":true}"#;
    assert_eq!(needed(prompt), Some(prompt.find(",").unwrap() + 1));
    let long = format!(r#"{{"prompt":"{long}"}}"#);
    assert_eq!(needed(&long), Some(r#"{"prompt":""#.len() + 1024));
    assert_eq!(needed(r#"{"query":"q"}"#), Some(r#"{"query":"q"}"#.len()));
    assert_eq!(needed(r#"{"messages":[{"role":"user","content":"u""#), None);
    assert_eq!(needed(&"x".repeat(2000)), Some(1024));
}

#[test]
fn what_lies_beyond_the_bound_does_not_count() {
    let of_read =
        |body: &str, read| scan(body, Bounds { read, ..BOUNDS }, Content::Open).affinity();
    let body = r#"{"messages":[{"role":"user","content":"abc"}]}"#;
    let end = body.find("abc").unwrap() + 2;
    assert_eq!(of_read(body, end), Some(Affinity(text("user\"ab"))));
    assert_eq!(of_read(&body[..end], 1 << 20), of_read(body, end));
    // The prompt itself is beyond it: as it is.
    assert_eq!(of_read(body, 5), Some(Affinity(text("{\"mes"))));
    assert_eq!(of_read("", 5), None);
}

#[test]
fn other_bodies_count_as_they_are() {
    for body in [
        "plain text",
        "[{\"prompt\":\"a\"}]",
        "\u{feff}{\"prompt\":\"a\"}",
        "{\"query\":\"q\"}",
        "  ",
    ] {
        assert_eq!(of(body), text(body), "{body}");
    }
    let long = "x".repeat(1024);
    assert_eq!(of(&(long.clone() + "y")), text(&long));
    let prompt = r#"{"prompt":"a"}"#;
    let opaque = scan(prompt, BOUNDS, Content::Opaque).affinity();
    assert_eq!(opaque, Some(Affinity(text(prompt))));
    // Its length grows with the conversation.
    let grpc = |message: &str| scan(message, BOUNDS, Content::Grpc).affinity();
    assert_eq!(grpc("\0\0\0\0\x05abcde"), Some(Affinity(text("abcde"))));
    assert_eq!(grpc("\0\0\0\0\x05abcde"), grpc("\0\0\0\x01\x05abcde"));
    assert_eq!(grpc("\0\0\0\0\0"), None);
}

#[test]
fn long_texts_that_do_not_count_end_where_they_end() {
    let long = r#"a\"b"#.repeat(2000);
    for body in [
        format!(r#"{{"query":"{long}","prompt":"yes"}}"#),
        format!(r#"{{"query":"{long}\\","prompt":"yes"}}"#),
        format!(r#"{{"query":["{long}",{{"x":"{long}"}}],"prompt":"yes"}}"#),
    ] {
        let bounds = Bounds {
            read: 1 << 20,
            ..BOUNDS
        };
        let found = scan(&body, bounds, Content::Open).affinity();
        assert_eq!(found, Some(Affinity(text("yes\""))));
    }
}

fn json_like() -> impl Strategy<Value = Vec<u8>> {
    let piece = proptest::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\\",
        " ",
        "\"messages\":[",
        "{\"role\":",
        "\"user\"",
        "\"system\"",
        "\"content\":",
        "\"prompt\":",
        "\"system\":",
        "\"cache_control\":{",
        "\"type\":",
        "abc",
        "17",
        "\\\"",
        "é",
        "\n",
    ]);
    let pieces = proptest::collection::vec(piece, 0..60);
    let garbage = proptest::collection::vec(any::<u8>(), 0..80);
    prop_oneof![
        4 => pieces.prop_map(|pieces| format!("{{{}", pieces.concat()).into_bytes()),
        1 => garbage,
    ]
}

proptest! {
    #[test]
    fn the_cuts_do_not_matter(
        body in json_like(),
        cuts in proptest::collection::vec(0usize..20, 1..40),
        prefix in 1usize..40,
        read in 1usize..200,
        content in proptest::sample::select(vec![Content::Open, Content::Opaque, Content::Grpc]),
    ) {
        let bounds = Bounds { read, prefix };
        let mut whole = Scan::new(bounds, content);
        let whole_known = whole.read(&body);
        let mut cut = Scan::new(bounds, content);
        let (mut rest, mut known) = (&body[..], false);
        for length in cuts.iter().cycle().take(1000) {
            let (piece, after) = rest.split_at(rest.len().min(*length));
            rest = after;
            known = cut.read(piece);
            if known {
                break;
            }
        }
        if rest.is_empty() || known {
            prop_assert_eq!(known, whole_known);
            prop_assert_eq!(cut.affinity(), whole.affinity());
        }
    }

    /// A conversation as clients write it, and what of it counts.
    #[test]
    fn of_messages_all_up_to_the_first_of_the_user_count(
        messages in proptest::collection::vec(
            (proptest::sample::select(vec!["system", "developer", "assistant", "user"]), "[ -!#-\\[\\]-~é]{0,20}", 0..4u8),
            1..5,
        ),
        prefix in 1usize..30,
    ) {
        let (mut parts, mut counted) = (Vec::new(), Vec::new());
        let mut known = false;
        for (role, text, style) in &messages {
            let (part, said) = match style {
                0 => (format!(r#"{{"role":"{role}","content":"{text}"}}"#), format!("{role}\"{text}\"")),
                1 => (format!(r#"{{"content":"{text}", "role":"{role}"}}"#), format!("{text}\"{role}\"")),
                2 => (
                    format!(r#"{{"role":"{role}","content":[{{"type":"text","text":"{text}","cache_control":{{"a":1}}}}]}}"#),
                    format!("{role}\"{text}\""),
                ),
                _ => (
                    format!("{{\n\t\"role\": \"{role}\",\n\t\"name\": \"n\",\n\t\"content\": \"{text}\"\n}}"),
                    format!("{role}\"n\"{text}\""),
                ),
            };
            parts.push(part);
            if !known {
                counted.push(said.as_bytes()[..said.len().min(prefix)].to_vec());
            }
            known |= *role == "user";
        }
        let body = format!(r#"{{"model":"m","messages":[{}],"stream":true}}"#, parts.join(","));
        let mut digest = Digest::default();
        counted.join(&b',').iter().for_each(|&byte| digest.eat(byte));
        prop_assert_eq!(Some(of_prefix(&body, prefix)), digest.value(), "{}", body);
    }
}
