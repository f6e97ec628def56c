//! Netlink: messages and their attributes (RFC 3549 and include/uapi/linux/netlink.h), and the socket to netfilter.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

const HEADER: usize = 16;
/// `struct nfgenmsg`
const FAMILY_HEADER: usize = 4;
const FLAG_REQUEST: u16 = 1;
const FLAG_NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are its type.
const TYPE_MASK: u16 = 0x3fff;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The kernel answers at once, or never.
const ANSWER_TIMEOUT_SECONDS: i64 = 5;

/// One message in the making: header, netfilter's header, attributes.
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// `resource` is netfilter's `res_id`.
    pub(super) fn new(kind: u16, flags: u16, family: u8, resource: u16) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | FLAG_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[family, 0]);
        bytes.extend_from_slice(&resource.to_be_bytes());
        Self { bytes }
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |bytes| bytes.extend_from_slice(value));
    }

    /// Ends with a zero.
    pub(super) fn string(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |bytes| {
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        });
    }

    pub(super) fn nested(&mut self, kind: u16, inside: impl FnOnce(&mut Message)) {
        let start = self.begin(kind | FLAG_NESTED);
        inside(self);
        self.end(start);
    }

    fn attribute(&mut self, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.begin(kind);
        write(&mut self.bytes);
        self.end(start);
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    /// The length counts without the padding.
    fn end(&mut self, start: usize) {
        // One rule with its expressions takes a few hundred bytes.
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(&self, sequence: u32, to: &mut Vec<u8>) {
        let start = to.len();
        to.extend_from_slice(&self.bytes);
        // One message takes a few hundred bytes.
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        to[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        to[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
    }

    fn wants_answer(&self) -> bool {
        const FLAG_ACK: u16 = 4;
        u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) & FLAG_ACK != 0
    }
}

/// What the kernel says to a transaction.
pub(super) enum Answer {
    Done,
    /// With the kernel's own words, if it has any.
    Refused(io::Error, Option<String>),
}

/// A socket to netfilter, of this network namespace.
pub(super) struct Netfilter {
    socket: Socket,
    sequence: u32,
}

impl Netfilter {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        // Both make the answers better, and are not there in every kernel.
        _ = socket.set_cap_ack(true);
        _ = socket.set_ext_ack(true);
        setsockopt(
            &socket,
            sockopt::ReceiveTimeout,
            &TimeVal::seconds(ANSWER_TIMEOUT_SECONDS),
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends the messages at once, and waits for the first refusal, or the answer to the one that asked for it.
    pub(super) fn transact(&mut self, messages: &[Message]) -> io::Result<Answer> {
        let mut bytes = Vec::new();
        let mut answered = 0;
        for message in messages {
            self.sequence += 1;
            message.finish(self.sequence, &mut bytes);
            if message.wants_answer() {
                answered = self.sequence;
            }
        }
        self.send(&bytes)?;
        loop {
            let datagram = self.receive()?;
            for part in parts(&datagram) {
                if part.kind != ERROR {
                    continue;
                }
                match part.error() {
                    Some((0, _)) if part.sequence == answered => return Ok(Answer::Done),
                    Some((0, _)) | None => {}
                    Some((code, detail)) => return Ok(Answer::Refused(io::Error::from_raw_os_error(code), detail)),
                }
            }
        }
    }

    /// Asks for a list, and counts its elements of a kind.
    pub(super) fn count_rules(&mut self, request: &Message, counts: fn(u16, &[u8]) -> bool) -> io::Result<usize> {
        let mut bytes = Vec::new();
        self.sequence += 1;
        request.finish(self.sequence, &mut bytes);
        self.send(&bytes)?;
        let mut count = 0;
        loop {
            let datagram = self.receive()?;
            for part in parts(&datagram).filter(|part| part.sequence == self.sequence) {
                match part.kind {
                    DONE => return Ok(count),
                    ERROR => {
                        let code = part.error().map_or(Errno::EPROTO as i32, |(code, _)| code);
                        return Err(io::Error::from_raw_os_error(code));
                    }
                    kind if counts(kind, part.body.get(FAMILY_HEADER..).unwrap_or_default()) => count += 1,
                    _ => {}
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        match self.socket.recv_from_full() {
            Ok((datagram, _)) => Ok(datagram),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error),
        }
    }
}

/// One message of the kernel.
struct Part<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Part<'_> {
    /// The code of an error (0: all is well), and the kernel's words.
    fn error(&self) -> Option<(i32, Option<String>)> {
        /// The message that it is about was left out, and words follow.
        const CAPPED: u16 = 0x100;
        const WORDS_FOLLOW: u16 = 0x200;
        const WORDS: u16 = 1;
        let code = i32::from_ne_bytes(self.body.get(..4)?.try_into().ok()?).checked_neg()?;
        let words = || {
            let about = self.body.get(4..)?;
            let length = u32::from_ne_bytes(about.get(..4)?.try_into().ok()?) as usize;
            let skip = if self.flags & CAPPED != 0 {
                HEADER
            } else {
                length.checked_next_multiple_of(4)?
            };
            let words = attribute(about.get(skip..)?, WORDS)?;
            Some(String::from_utf8_lossy(words.strip_suffix(b"\0").unwrap_or(words)).into_owned())
        };
        let words = if self.flags & WORDS_FOLLOW != 0 { words() } else { None };
        Some((code, words))
    }
}

fn parts(mut datagram: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = datagram.first_chunk()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let part = Part {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            body: datagram.get(HEADER..length)?,
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(part)
    })
}

/// The value of the first attribute of a kind.
pub(super) fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let header: &[u8; 4] = attributes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Message, attribute, parts};

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut message = Message::new(0x0a06, 4, 1, 0);
        message.string(1, "outrigger");
        message.nested(4, |inside| {
            inside.bytes(1, &[7]);
            inside.bytes(2, &[8, 9]);
        });
        let mut bytes = Vec::new();
        message.finish(5, &mut bytes);
        assert_eq!(bytes.len() % 4, 0);
        let all: Vec<_> = parts(&bytes).collect();
        assert_eq!(
            (all.len(), all[0].kind, all[0].sequence, all[0].flags),
            (1, 0x0a06, 5, 5)
        );
        assert!(message.wants_answer());
        assert!(!Message::new(0x0a06, 0x400, 1, 0).wants_answer());
        let attributes = &all[0].body[4..];
        assert_eq!(attribute(attributes, 1), Some(&b"outrigger\0"[..]));
        let nested = attribute(attributes, 4).unwrap();
        assert_eq!(attribute(nested, 2), Some(&[8, 9][..]));
        assert_eq!(attribute(attributes, 3), None);
    }

    #[test]
    fn errors_with_and_without_words() {
        // NLMSG_ERROR, EPERM, about a message of 20 bytes that is left out, with words.
        let mut words = vec![0; 16];
        words[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        words[6..8].copy_from_slice(&0x300_u16.to_ne_bytes());
        words.extend_from_slice(&(-1_i32).to_ne_bytes());
        words.extend_from_slice(&20_u32.to_ne_bytes());
        words.extend_from_slice(&[0; 12]);
        words.extend_from_slice(&[7, 0, 1, 0, b'n', b'o', 0, 0]);
        let length = u32::try_from(words.len()).unwrap();
        words[..4].copy_from_slice(&length.to_ne_bytes());
        let part = parts(&words).next().unwrap();
        assert_eq!(part.error(), Some((1, Some("no".to_owned()))));
    }

    #[test]
    fn short_and_wrong_bytes_end_quietly() {
        let mut message = Message::new(2, 0, 1, 0);
        message.string(1, "x");
        let mut bytes = Vec::new();
        message.finish(1, &mut bytes);
        for end in 0..bytes.len() {
            assert!(parts(&bytes[..end]).all(|part| part.error().is_some() || part.body.len() < 4));
            attribute(&bytes[..end], 9);
        }
        bytes[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(parts(&bytes).count(), 0);
        bytes[..4].copy_from_slice(&0_u32.to_ne_bytes());
        assert_eq!(parts(&bytes).count(), 0);
        assert_eq!(attribute(&[0, 0, 0, 0], 1), None);
    }
}
