//! The binary form: a message of Protocol Buffers in base64, of which five fields matter.

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::{LONGEST, Said};

/// gRPC leaves the padding away, others may not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

const CPU_UTILIZATION: u64 = 1;
const RPS_FRACTIONAL: u64 = 6;
const EPS: u64 = 7;
const NAMED_METRICS: u64 = 8;
const APPLICATION_UTILIZATION: u64 = 9;

/// `None` if it is no base64 of a message. Of several values that were joined, the first counts.
#[inline(never)]
pub(super) fn parse_base64(value: &[u8]) -> Option<Said> {
    let first = value.split(|&byte| byte == b',').next()?.trim_ascii();
    let mut decoded = [0; LONGEST];
    let length = BASE64.decode_slice(first, &mut decoded).ok()?;
    parse(&decoded[..length])
}

pub(super) fn parse(mut message: &[u8]) -> Option<Said> {
    let mut said = Said::default();
    while !message.is_empty() {
        match field(&mut message)? {
            (CPU_UTILIZATION, Value::Double(value)) => said.hear(b"cpu_utilization", value),
            (RPS_FRACTIONAL, Value::Double(value)) => said.hear(b"rps_fractional", value),
            (EPS, Value::Double(value)) => said.hear(b"eps", value),
            (APPLICATION_UTILIZATION, Value::Double(value)) => {
                said.hear(b"application_utilization", value);
            }
            (NAMED_METRICS, Value::Bytes(entry)) => {
                let (name, value) = named(entry)?;
                said.hear(name, value);
            }
            _ => {}
        }
    }
    Some(said)
}

/// An entry of a map: a message of a key and a value, and what it leaves away is empty or 0.
fn named(mut entry: &[u8]) -> Option<(&[u8], f64)> {
    let (mut name, mut value) = (&[][..], 0.0);
    while !entry.is_empty() {
        match field(&mut entry)? {
            (1, Value::Bytes(bytes)) => name = bytes,
            (2, Value::Double(double)) => value = double,
            _ => {}
        }
    }
    Some((name, value))
}

enum Value<'a> {
    Double(f64),
    Bytes(&'a [u8]),
    Other,
}

fn field<'a>(message: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = varint(message)?;
    let value = match tag & 7 {
        0 => {
            varint(message)?;
            Value::Other
        }
        1 => {
            let (bytes, rest) = message.split_first_chunk()?;
            *message = rest;
            Value::Double(f64::from_le_bytes(*bytes))
        }
        2 => {
            let length = usize::try_from(varint(message)?).ok()?;
            let (bytes, rest) = message.split_at_checked(length)?;
            *message = rest;
            Value::Bytes(bytes)
        }
        5 => {
            *message = message.get(4..)?;
            Value::Other
        }
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
