use proptest::prelude::*;

use super::*;

const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn headers(parents: &[&str], states: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for parent in parents {
        headers.append(PARENT, HeaderValue::from_bytes(parent.as_bytes()).unwrap());
    }
    for state in states {
        headers.append(STATE, HeaderValue::from_bytes(state.as_bytes()).unwrap());
    }
    headers
}

fn read(parent: &str) -> Option<TraceContext> {
    TraceContext::read(&headers(&[parent], &[]))
}

fn state(states: &[&str]) -> Option<String> {
    let context = TraceContext::read(&headers(&[GOOD], states));
    let context = context.expect("the parent is fine whatever the state is");
    context.vendors().map(str::to_owned)
}

#[test]
fn what_was_written_is_read() {
    let context = read(GOOD).unwrap();
    assert_eq!(context.to_string(), GOOD);
    assert_eq!(context.span_id().to_string(), "00f067aa0ba902b7");
    let mut there = headers(&[GOOD, GOOD], &["old=1"]);
    let context = context.state("a=1,b@c=2");
    context.write(&mut there);
    assert_eq!(TraceContext::read(&there), Some(context.clone()));
    // None of somebody else's state is left.
    TraceContext {
        state: None,
        ..context
    }
    .write(&mut there);
    assert!(!there.contains_key(STATE));
}

#[test]
fn a_later_version_is_read_as_far_as_it_is_known() {
    for later in ["", "-", "-more", "-what-the-future-brings"] {
        let text = format!("cc{}{later}", &GOOD[2..]);
        assert_eq!(read(&text).unwrap().to_string(), GOOD, "{text}");
    }
    let flags = |digits: &str| read(&format!("{}{digits}", &GOOD[..53])).unwrap().flags();
    assert_eq!((flags("ff"), flags("fe"), flags("00")), (3, 2, 0));
}

#[test]
fn what_is_not_well_formed_begins_a_new_trace() {
    let zeros = |from: usize, to: usize| {
        let zeros = "0".repeat(to - from);
        format!("{}{zeros}{}", &GOOD[..from], &GOOD[to..])
    };
    let wrong = [
        String::new(),
        GOOD[..54].into(),
        format!("{GOOD}-"),
        format!("{GOOD}0"),
        format!(" {GOOD}"),
        format!("ff{}", &GOOD[2..]),
        format!("cc{}.more", &GOOD[2..]),
        format!("cc{}-{}", &GOOD[2..], "x".repeat(LONGEST_PARENT)),
        GOOD.to_uppercase(),
        GOOD.replace('-', "_"),
        GOOD.replace('4', "g"),
        GOOD.replace('4', "é"),
        zeros(3, 35),
        zeros(36, 52),
    ];
    for text in wrong {
        assert_eq!(read(&text), None, "{text:?}");
    }
    assert_eq!(TraceContext::read(&headers(&[], &["a=1"])), None);
    assert_eq!(TraceContext::read(&headers(&[GOOD, GOOD], &[])), None);
}

#[test]
fn vendors_are_heard_if_each_makes_sense() {
    for fine in [
        "a=1",
        "a=1,b=2",
        "a=1, ,\tb=2",
        "0ten@vendor=x y",
        "a/*-_=!~",
    ] {
        assert_eq!(state(&[fine]).as_deref(), Some(fine));
    }
    assert_eq!(state(&["a=1", "b=2"]).as_deref(), Some("a=1,b=2"));
    let many = |many: usize| {
        (0..many)
            .map(|at| format!("k{at}=v"))
            .collect::<Vec<_>>()
            .join(",")
    };
    let long = |long: usize| format!("a={}", "x".repeat(long - 2));
    assert_eq!(state(&[&many(32)]), Some(many(32)));
    assert_eq!(state(&[&long(258)]), Some(long(258)));
    let wrong = [
        "", ",", "a", "=1", "a=", "A=1", "a=1=2", "a=1,a=2", "a@b@c=1", "_a=1", "a=\u{e9}",
    ];
    let wrong = wrong.map(str::to_owned).into_iter();
    for wrong in wrong.chain([many(33), long(259), [long(256), long(256)].join(",b")]) {
        assert_eq!(state(&[&wrong]), None, "{wrong}");
    }
    assert_eq!(state(&["a=1", "nothing"]), None);
    let endless = vec!["a=1"; 10_000];
    assert_eq!(state(&endless), None);
}

/// The dumbest reading: split it, and look at each part.
fn model(text: &str) -> Option<String> {
    let parts: Vec<_> = text.split('-').collect();
    let hex = |text: &&str, length| {
        text.len() == length && text.chars().all(|c| "0123456789abcdef".contains(c))
    };
    let [version, trace, span, flags, ..] = parts[..] else {
        return None;
    };
    let whole = hex(&version, 2) && hex(&trace, 32) && hex(&span, 16) && hex(&flags, 2);
    let fits = if version == "00" {
        parts.len() == 4
    } else {
        version != "ff"
    };
    let named = [trace, span].iter().all(|id| id.chars().any(|c| c != '0'));
    if !whole || !fits || !named || text.len() > LONGEST_PARENT {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()? & 3;
    Some(format!("00-{trace}-{span}-{flags:02x}"))
}

proptest! {
    #[test]
    fn it_reads_what_the_dumbest_reader_reads(
        text in "(00|01|ff|0|[0-9a-fA-F]{2})-([0-9a-f]{32}|0{32}|[0-9A-F]{32}|[0-9a-f]{30,34})\
                 -([0-9a-f]{16}|0{16}|[0-9a-f]{15,17})-([0-9a-f]{2}|[0-9a-f]{1,3})(|-|-[a-z]{1,9}|[a-z])",
    ) {
        prop_assert_eq!(read(&text).map(|context| context.to_string()), model(&text));
    }

    #[test]
    fn nothing_that_a_header_can_hold_makes_it_panic(
        parent in proptest::collection::vec(32u8..=255, 0..80),
        state in proptest::collection::vec(32u8..=126, 0..600),
    ) {
        let mut there = HeaderMap::new();
        let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes);
        if let (Ok(parent), Ok(state)) = (value(&parent), value(&state)) {
            there.insert(PARENT, parent);
            there.insert(STATE, state.clone());
            let _any = TraceContext::read(&there);
            there.insert(PARENT, HeaderValue::from_static(GOOD));
            let read = TraceContext::read(&there).expect("the parent is fine");
            prop_assert!(read.vendors().is_none_or(|kept| kept.as_bytes() == state.as_bytes()));
        }
    }
}
