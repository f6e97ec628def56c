//! The part of Redis' protocol (RESP, version 2) that is needed: commands of binary strings, whose length stands before them, so that nothing in
//! them is read as anything else; and replies of numbers, of a short text, or an error.
//!
//! What a server says is bounded: whoever named it in a policy may have named anything.

use bytes::{Buf, Bytes, BytesMut};

/// Of a line, and of a text.
const LONGEST: usize = 4096;
/// Of an array.
const MOST_NUMBERS: usize = 4096;
/// What has come and is no whole reply yet.
pub(super) const MOST_INPUT: usize = 128 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Numbers(Vec<i64>),
    Text(Bytes),
    Error(String),
}

/// It is no Redis, or not one that this was written for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("what it says is not understood")]
pub(super) struct Malformed;

/// Writes a command, or the rest of one.
pub(super) struct Writer<'a>(pub(super) &'a mut Vec<u8>);

impl Writer<'_> {
    /// How many strings come.
    pub(super) fn begin(&mut self, strings: usize) {
        self.0.extend_from_slice(format!("*{strings}\r\n").as_bytes());
    }

    pub(super) fn string(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
        self.0.extend_from_slice(bytes);
        self.0.extend_from_slice(b"\r\n");
    }

    pub(super) fn number(&mut self, number: impl ToString) {
        self.string(number.to_string().as_bytes());
    }
}

/// Takes a reply. `None`: not all of it is there.
pub(super) fn read(input: &mut BytesMut) -> Result<Option<Reply>, Malformed> {
    let mut rest: &[u8] = input;
    let Some(reply) = reply(&mut rest)? else {
        return match input.len() > MOST_INPUT {
            true => Err(Malformed),
            false => Ok(None),
        };
    };
    let read = input.len() - rest.len();
    input.advance(read);
    Ok(Some(reply))
}

fn reply(input: &mut &[u8]) -> Result<Option<Reply>, Malformed> {
    let Some((kind, text)) = line(input)? else {
        return Ok(None);
    };
    Ok(Some(match kind {
        b'+' => Reply::Text(Bytes::copy_from_slice(text)),
        b'-' => Reply::Error(String::from_utf8_lossy(text).into_owned()),
        b':' => Reply::Numbers(vec![number(text)?]),
        b'$' => {
            let length = bounded(text, LONGEST)?;
            let Some((text, rest)) = input.split_at_checked(length + 2) else {
                return Ok(None);
            };
            *input = rest;
            let text = text.strip_suffix(b"\r\n").ok_or(Malformed)?;
            Reply::Text(Bytes::copy_from_slice(text))
        }
        b'*' => {
            let mut numbers = Vec::new();
            for _ in 0..bounded(text, MOST_NUMBERS)? {
                match line(input)? {
                    Some((b':', text)) => numbers.push(number(text)?),
                    Some(_) => return Err(Malformed),
                    None => return Ok(None),
                }
            }
            Reply::Numbers(numbers)
        }
        _ => return Err(Malformed),
    }))
}

/// The first byte of a line, and the others without its end.
fn line<'a>(input: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, Malformed> {
    let Some(end) = input.iter().take(LONGEST).position(|&byte| byte == b'\n') else {
        return match input.len() < LONGEST {
            true => Ok(None),
            false => Err(Malformed),
        };
    };
    let (line, rest) = input.split_at(end + 1);
    *input = rest;
    let line = line.strip_suffix(b"\r\n").ok_or(Malformed)?;
    line.split_first()
        .map(|(kind, text)| Some((*kind, text)))
        .ok_or(Malformed)
}

fn number(text: &[u8]) -> Result<i64, Malformed> {
    let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
    text.parse().map_err(|_| Malformed)
}

fn bounded(text: &[u8], most: usize) -> Result<usize, Malformed> {
    let length = usize::try_from(number(text)?).map_err(|_| Malformed)?;
    (length <= most).then_some(length).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn replies_come_in_any_pieces() {
        let all = b"+OK\r\n:-7\r\n*3\r\n:0\r\n:1\r\n:9223372036854775807\r\n$3\r\na\r\n\r\n*0\r\n-OOM command not allowed\r\n";
        let expected = [
            Reply::Text("OK".into()),
            Reply::Numbers(vec![-7]),
            Reply::Numbers(vec![0, 1, i64::MAX]),
            Reply::Text("a\r\n".into()),
            Reply::Numbers(vec![]),
            Reply::Error("OOM command not allowed".to_owned()),
        ];
        for size in 1..all.len() {
            let (mut input, mut read_so_far) = (BytesMut::new(), Vec::new());
            for piece in all.chunks(size) {
                input.extend_from_slice(piece);
                while let Some(reply) = read(&mut input).unwrap() {
                    read_so_far.push(reply);
                }
            }
            assert_eq!(read_so_far, expected, "{size}");
            assert!(input.is_empty());
        }
    }

    #[test]
    fn what_is_no_reply_or_too_much_is_refused() {
        let long = [b"-".as_slice(), &[b'x'; LONGEST]].concat();
        let many = format!("*4096\r\n{}", format!(":{:0>40}\r\n", 1).repeat(3100));
        for wrong in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"\r\n",
            b"+OK\n",
            b"$4097\r\n",
            b"$-1\r\n",
            b"$99999999999999999999\r\n",
            b"*4097\r\n",
            b"*-1\r\n",
            b"*1\r\n*1\r\n",
            b"*1\r\n$1\r\na\r\n",
            b":1x\r\n",
            b":\r\n",
            b"$1\r\nabc",
            &long,
            many.as_bytes(),
        ] {
            assert_eq!(
                read(&mut BytesMut::from(wrong)),
                Err(Malformed),
                "{}",
                String::from_utf8_lossy(&wrong[..wrong.len().min(40)])
            );
        }
    }

    #[test]
    fn nothing_in_a_string_is_read_as_a_command() {
        let mut out = Vec::new();
        let mut writer = Writer(&mut out);
        writer.begin(2);
        writer.string(b"a\r\n*1\r\n");
        writer.number(-7);
        assert_eq!(out, b"*2\r\n$7\r\na\r\n*1\r\n\r\n$2\r\n-7\r\n");
    }
}
