//! The part of Redis' protocol (RESP, version 2) that is needed: commands of binary strings, whose length stands before them, so that nothing in
//! them is read as anything else; and replies of numbers, of a short text, or an error.
//!
//! What a server says is bounded: whoever named it in a policy may have named anything.

use bytes::{Bytes, BytesMut};

/// Of a line, and of a text.
const LONGEST: usize = 4096;
/// Of an array.
const MOST_NUMBERS: usize = 4096;

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

/// Reads replies as they come: each byte once, however small the pieces are that they come in.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Bytes of a line that has no end yet.
    seen: usize,
    /// How long the text is that comes now.
    text: Option<usize>,
    /// The numbers of an array so far, and how many it has.
    array: Option<(Vec<i64>, usize)>,
}

impl Reader {
    /// Takes a reply. `None`: not all of it is there. What is left of `input` is shorter than a line or a text may be.
    pub(super) fn read(&mut self, input: &mut BytesMut) -> Result<Option<Reply>, Malformed> {
        loop {
            if let Some(length) = self.text {
                if input.len() < length + 2 {
                    return Ok(None);
                }
                self.text = None;
                let text = input.split_to(length + 2);
                let text = text.strip_suffix(b"\r\n").ok_or(Malformed)?;
                return Ok(Some(Reply::Text(Bytes::copy_from_slice(text))));
            }
            if let Some((numbers, _)) = self.array.take_if(|(numbers, all)| numbers.len() == *all) {
                return Ok(Some(Reply::Numbers(numbers)));
            }
            let Some(line) = self.line(input)? else {
                return Ok(None);
            };
            let line = line.strip_suffix(b"\r\n").ok_or(Malformed)?;
            let (kind, text) = line.split_first().ok_or(Malformed)?;
            match (kind, &mut self.array) {
                (b':', Some((numbers, _))) => numbers.push(number(text)?),
                (_, Some(_)) => return Err(Malformed),
                (b'+', None) => return Ok(Some(Reply::Text(Bytes::copy_from_slice(text)))),
                (b'-', None) => return Ok(Some(Reply::Error(String::from_utf8_lossy(text).into_owned()))),
                (b':', None) => return Ok(Some(Reply::Numbers(vec![number(text)?]))),
                (b'$', None) => self.text = Some(bounded(text, LONGEST)?),
                (b'*', None) => self.array = Some((Vec::new(), bounded(text, MOST_NUMBERS)?)),
                (_, None) => return Err(Malformed),
            }
        }
    }

    /// A line with its end.
    fn line(&mut self, input: &mut BytesMut) -> Result<Option<BytesMut>, Malformed> {
        let most = input.len().min(LONGEST);
        let unseen = input.get(self.seen..most).unwrap_or_default();
        let Some(end) = unseen.iter().position(|&byte| byte == b'\n') else {
            self.seen = most;
            return if input.len() < LONGEST {
                Ok(None)
            } else {
                Err(Malformed)
            };
        };
        let length = std::mem::take(&mut self.seen) + end + 1;
        Ok(Some(input.split_to(length)))
    }
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
            let (mut input, mut read_so_far, mut reader) = (BytesMut::new(), Vec::new(), Reader::default());
            for piece in all.chunks(size) {
                input.extend_from_slice(piece);
                while let Some(reply) = reader.read(&mut input).unwrap() {
                    read_so_far.push(reply);
                }
            }
            assert_eq!(read_so_far, expected, "{size}");
            assert!(input.is_empty());
        }
    }

    /// A store that says one byte at a time is read once, and not from the beginning of its reply each time.
    #[test]
    fn what_was_read_is_not_kept() {
        let most = format!("*{MOST_NUMBERS}\r\n{}", format!(":{:0>40}\r\n", 7).repeat(MOST_NUMBERS));
        let (mut input, mut reader) = (BytesMut::new(), Reader::default());
        let mut replies = Vec::new();
        for byte in most.bytes() {
            input.extend_from_slice(&[byte]);
            replies.extend(reader.read(&mut input).unwrap());
            assert!(input.len() < 43 && reader.seen == input.len());
        }
        assert_eq!(replies, [Reply::Numbers(vec![7; MOST_NUMBERS])]);
    }

    #[test]
    fn what_is_no_reply_or_too_much_is_refused() {
        let long = [b"-".as_slice(), &[b'x'; LONGEST]].concat();
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
        ] {
            assert_eq!(
                Reader::default().read(&mut BytesMut::from(wrong)),
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
