//! Where a cluster keeps a key: its slot, and who has it.

use redis::Value;

pub(super) const SLOTS: u16 = 16_384;

/// CRC-16/XMODEM of what is in the first braces, or of the whole key.
pub(super) fn of(key: &[u8]) -> u16 {
    crc(tag(key)) % SLOTS
}

fn tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&byte| byte == b'{') else {
        return key;
    };
    let inside = &key[open + 1..];
    match inside.iter().position(|&byte| byte == b'}') {
        None | Some(0) => key,
        Some(close) => &inside[..close],
    }
}

const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let (mut crc, mut bit) = ((at as u16) << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
};

fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)]
    })
}

/// A key in one of these slots.
pub(super) fn probe(prefix: &str, first: u16, last: u16) -> String {
    (0..u32::MAX)
        .map(|number| format!("{prefix}:{{probe{number}}}"))
        .find(|key| (first..=last).contains(&of(key.as_bytes())))
        .unwrap_or_default()
}

/// Slots that one server has, of those that take writes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) host: String,
    pub(super) port: u16,
    /// Host and port.
    pub(super) address: String,
}

/// Reads the reply to `CLUSTER SLOTS` of a server on `host`.
pub(super) fn ranges(value: &Value, host: &str) -> Option<Vec<Range>> {
    let Value::Array(rows) = value else {
        return None;
    };
    rows.iter().map(|row| range(row, host)).collect()
}

fn range(row: &Value, own: &str) -> Option<Range> {
    let Value::Array(row) = row else {
        return None;
    };
    let [
        Value::Int(first),
        Value::Int(last),
        Value::Array(server),
        ..,
    ] = &row[..]
    else {
        return None;
    };
    let [name, Value::Int(port), ..] = &server[..] else {
        return None;
    };
    let host = match name {
        Value::BulkString(name) if !name.is_empty() => String::from_utf8(name.clone()).ok()?,
        Value::SimpleString(name) if !name.is_empty() => name.clone(),
        // It does not know by which name it was reached.
        _ => own.to_owned(),
    };
    let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
    let port = u16::try_from(*port).ok()?;
    (first <= last && last < SLOTS).then(|| Range {
        first,
        last,
        address: format!("{host}:{port}"),
        host,
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc(b"123456789"), 0x31c3);
        assert_eq!(of(b"foo"), 12_182);
        assert_eq!(of(b"{user1000}.following"), of(b"{user1000}.followers"));
        assert_eq!(of(b"foo{}{bar}"), crc(b"foo{}{bar}") % SLOTS);
        assert_eq!(of(b"foo{{bar}}zap"), crc(b"{bar") % SLOTS);
        assert_eq!(of(b"foo{bar}{zap}"), crc(b"bar") % SLOTS);
        assert_eq!(of(b"{open"), crc(b"{open") % SLOTS);
    }

    #[test]
    fn every_slot_has_a_probe() {
        for slot in [0, 1, 5_461, 16_383] {
            assert_eq!(of(probe("palisade", slot, slot).as_bytes()), slot);
        }
    }

    fn row(first: i64, last: i64, host: &str, port: i64) -> Value {
        let name = Value::BulkString(host.into());
        let server = Value::Array(vec![name, Value::Int(port), Value::Nil]);
        Value::Array(vec![Value::Int(first), Value::Int(last), server])
    }

    #[test]
    fn a_server_that_does_not_know_its_name_has_the_one_it_was_reached_by() {
        let rows = Value::Array(vec![row(0, 5, "10.0.0.1", 7000), row(6, 16_383, "", 7001)]);
        let ranges = ranges(&rows, "redis.local").unwrap();
        assert_eq!(ranges[0].address, "10.0.0.1:7000");
        assert_eq!(ranges[1].address, "redis.local:7001");
    }

    #[test]
    fn what_is_no_map_is_none() {
        for wrong in [
            Value::Okay,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![row(5, 4, "a", 1)]),
            Value::Array(vec![row(0, 16_384, "a", 1)]),
            Value::Array(vec![row(0, 1, "a", 70_000)]),
            Value::Array(vec![row(-1, 1, "a", 1)]),
        ] {
            assert_eq!(ranges(&wrong, "a"), None, "{wrong:?}");
        }
    }
}
