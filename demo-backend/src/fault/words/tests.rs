use super::*;

fn mistake(line: &str) -> String {
    line.parse::<Fault>().unwrap_err().to_string()
}

#[test]
fn each_fault_is_written_as_it_is_read_as_a_line_and_as_json() {
    for line in [
        "latency,delay=50ms",
        "latency,min=1ms,max=2s",
        "latency,median=50ms,sigma=0.5",
        "error",
        "error,status=503,retry-after=2s",
        "rate-limit",
        "rate_limit,retry_after=1500ms",
        "hang,share=0.25",
        "refuse,for=3s",
        "reset,after=7",
        "stall,from=1m",
        "drip,bytes=3,every=20ms",
        "malformed,on=all",
        "content-length,by=-3",
        "crash,share=0.1,on=health",
    ] {
        let fault: Fault = line.parse().expect(line);
        assert_eq!(fault.to_string().parse(), Ok(fault.clone()), "{line}");
        let json = serde_json::to_string(&fault).unwrap();
        let read: Fault = serde_json::from_str(&json).expect(&json);
        assert_eq!(read, fault, "{line}");
        assert!(line.replace('_', "-").starts_with(fault.name()), "{line}");
    }
}

#[test]
fn mistakes_say_what_and_where() {
    for (line, says) in [
        ("", r#"column 1: "" is no fault; there are latency, error"#),
        (
            "eror",
            r#"column 1: "eror" is no fault; there are latency, error"#,
        ),
        (
            "hang,share",
            r#"column 6: "share" is not of the form key=value"#,
        ),
        ("hang,share=2", "column 6: share: 2 is not from 0 to 1"),
        ("hang,share=x", r#"column 6: share: "x" is no number"#),
        (
            "error,share=1,status=200",
            r#"column 15: status: "200" is no number from 400 to 599"#,
        ),
        ("hang,from=10", r#"column 6: from: "10" is no span of time"#),
        (
            "hang,colour=red",
            r#"column 6: no fault has a key "colour""#,
        ),
        ("hang,status=500", r#"hang has no key "status""#),
        ("refuse,on=health", r#"refuse has no key "on""#),
        (
            "hang,on=weekends",
            r#"column 6: on: "weekends" is not requests, health or all"#,
        ),
        (
            "latency",
            "latency takes either delay, or min and max, or median and sigma",
        ),
        ("latency,delay=1s,min=1s,max=2s", "latency takes either"),
        ("latency,min=2s,max=1s", "min 2s is longer than max 1s"),
        (
            "latency,median=1s,sigma=-1",
            "sigma: -1 is no number of at least 0",
        ),
        (
            "drip,bytes=0",
            r#"column 6: bytes: "0" is no whole number above 0"#,
        ),
        ("content-length,by=0", "by: 0 would be the right length"),
    ] {
        let said = mistake(line);
        assert!(said.starts_with(says), "{line}: {said}");
    }
}

#[test]
fn mistakes_in_json_say_what_and_where() {
    for (json, says) in [
        (
            r#"{"fault":"hang","share":2}"#,
            "share: 2 is not from 0 to 1",
        ),
        (r#"{"fault":"hang","colour":1}"#, "unknown field `colour`"),
        (
            r#"{"fault":"eror"}"#,
            "unknown variant `eror`, expected one of `latency`",
        ),
        (r#"{"share":1}"#, "missing field `fault`"),
        (
            r#"{"fault":"error","status":200}"#,
            "status: 200 is not from 400 to 599",
        ),
        (
            r#"{"fault":"hang","for":"soon"}"#,
            "\"soon\" is no span of time",
        ),
    ] {
        let said = serde_json::from_str::<Fault>(json).unwrap_err().to_string();
        assert!(said.starts_with(says), "{json}: {said}");
    }
    let seconds: Fault = serde_json::from_str(r#"{"fault":"hang","for":1.5}"#).unwrap();
    assert_eq!(seconds.lasting, Some(Duration::from_millis(1500)));
}
