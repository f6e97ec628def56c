//! New inputs from known ones.

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

/// Longer than any limit of a parser that looks at connections' first bytes.
const MAX_LENGTH: usize = 24 * 1024;
/// Numbers at whose neighbours parsers go wrong.
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "007",
    "255",
    "65535",
    "65536",
    "2147483648",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "1e9",
];
const BYTES: [u8; 16] = [
    0, 1, 0x7f, 0x80, 0xff, b'\n', b'\r', b' ', b'"', b'%', b',', b'-', b'/', b':', b';', b'=',
];

/// One of the pool with a few changes; now and then bytes of no origin.
pub(crate) fn mutate(pool: &[Vec<u8>], rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = match rng.random_range(0..20) {
        0 => random_bytes(rng, 64),
        _ => pool.choose(rng).cloned().unwrap_or_default(),
    };
    for _ in 0..1 << rng.random_range(0..4) {
        change(&mut bytes, pool, rng);
    }
    bytes.truncate(MAX_LENGTH);
    bytes
}

fn change(bytes: &mut Vec<u8>, pool: &[Vec<u8>], rng: &mut SmallRng) {
    let at = rng.random_range(0..=bytes.len());
    let part = at..bytes.len().min(at + rng.random_range(1..=16));
    match rng.random_range(0..10) {
        0 => bytes
            .iter_mut()
            .skip(at)
            .take(1)
            .for_each(|byte| *byte ^= 1 << rng.random_range(0..8)),
        1 => bytes
            .iter_mut()
            .skip(at)
            .take(1)
            .for_each(|byte| *byte = BYTES[rng.random_range(0..BYTES.len())]),
        2 => insert(bytes, at, &random_bytes(rng, 8)),
        3 => drop(bytes.drain(part)),
        4 => {
            let copy = bytes[part].to_vec();
            let times = rng.random_range(1..20);
            insert(bytes, rng.random_range(0..=bytes.len()), &copy.repeat(times));
        }
        5 => bytes.truncate(at),
        6 => {
            // The tail of another.
            let other = pool.choose(rng).map_or(&[][..], Vec::as_slice);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[rng.random_range(0..=other.len())..]);
        }
        7 => {
            let other = pool.choose(rng).map_or(&[][..], Vec::as_slice);
            let from = rng.random_range(0..=other.len());
            let to = other.len().min(from + rng.random_range(1..=64));
            insert(bytes, at, &other[from..to]);
        }
        8 => {
            // A number for a number.
            if let Some(begin) = bytes.iter().skip(at).position(u8::is_ascii_digit) {
                let begin = at + begin;
                let digits = bytes[begin..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                let number = NUMBERS[rng.random_range(0..NUMBERS.len())];
                bytes.splice(begin..begin + digits, number.bytes());
            }
        }
        _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = rng.random()),
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    bytes.splice(at..at, new.iter().copied());
}

fn random_bytes(rng: &mut SmallRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(1..=most)];
    rng.fill(&mut bytes[..]);
    bytes
}
