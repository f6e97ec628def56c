//! Tells mesh TLS from the app's own by the ALPN protocols that a ClientHello offers (RFC 8446 section 4.1.2, RFC 7301).

use std::borrow::Cow;

use super::MeshProtocol;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// It cannot be said yet.
    NeedMore,
    /// A ClientHello that offers one of our protocols.
    Mesh,
    /// Another ClientHello: the app's own TLS.
    OtherTls,
    NotTls,
}

/// A ClientHello that is longer is another's: ours has about 1.7 KB.
const MAX_HELLO: usize = 16 * 1024;
const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;

/// Whether the first bytes of a connection are a ClientHello that offers one of our ALPN protocols. A hello that does not
/// end within 16 KiB is another's.
pub fn inspect_hello(bytes: &[u8]) -> Hello {
    match handshake(bytes) {
        Err(hello) => hello,
        Ok(handshake) => match offers_mesh(&handshake) {
            Some(true) => Hello::Mesh,
            // Malformed: whoever it is meant for will say so.
            Some(false) | None => Hello::OtherTls,
        },
    }
}

/// The body of the ClientHello, put together from its records.
fn handshake(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Hello> {
    // Content type handshake, version 3.x, whatever x says (RFC 8446 appendix D).
    if bytes.iter().zip([22, 3]).any(|(byte, expected)| *byte != expected) {
        return Err(Hello::NotTls);
    }
    let mut rest = bytes;
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    loop {
        let Some((header, tail)) = rest.split_first_chunk::<RECORD_HEADER>() else {
            return Err(too_long_or_more(bytes));
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[0] != 22 || header[1] != 3 || length == 0 || length > MAX_HELLO {
            return Err(if message.is_empty() {
                Hello::NotTls
            } else {
                Hello::OtherTls
            });
        }
        let part = &tail[..length.min(tail.len())];
        if message.is_empty() {
            message = Cow::Borrowed(part);
        } else {
            message.to_mut().extend_from_slice(part);
        }
        if message.first().is_some_and(|&kind| kind != 1) {
            return Err(Hello::NotTls);
        }
        if let Some((head, _)) = message.split_first_chunk::<HANDSHAKE_HEADER>() {
            let length = usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
            let end = HANDSHAKE_HEADER + length;
            if end > MAX_HELLO {
                return Err(Hello::OtherTls);
            }
            if message.len() >= end {
                return Ok(match message {
                    Cow::Borrowed(all) => Cow::Borrowed(&all[HANDSHAKE_HEADER..end]),
                    Cow::Owned(all) => Cow::Owned(all[HANDSHAKE_HEADER..end].to_vec()),
                });
            }
        }
        if part.len() < length || bytes.len() >= MAX_HELLO {
            return Err(too_long_or_more(bytes));
        }
        rest = &tail[length..];
    }
}

fn too_long_or_more(bytes: &[u8]) -> Hello {
    match bytes.len() < MAX_HELLO {
        true => Hello::NeedMore,
        false => Hello::OtherTls,
    }
}

/// `None`: the hello is malformed.
fn offers_mesh(hello: &[u8]) -> Option<bool> {
    const ALPN: u16 = 16;
    let rest = hello.get(2 + 32..)?; // version, random
    let (_, rest) = vector8(rest)?; // session ID
    let (_, rest) = vector16(rest)?; // cipher suites
    let (_, rest) = vector8(rest)?; // compression methods
    if rest.is_empty() {
        return Some(false);
    }
    let (mut extensions, _) = vector16(rest)?;
    while !extensions.is_empty() {
        let (kind, tail) = extensions.split_first_chunk::<2>()?;
        let (value, tail) = vector16(tail)?;
        if u16::from_be_bytes(*kind) == ALPN {
            let (mut names, _) = vector16(value)?;
            while !names.is_empty() {
                let (name, tail) = vector8(names)?;
                if MeshProtocol::ALL.iter().any(|protocol| protocol.alpn() == name) {
                    return Some(true);
                }
                names = tail;
            }
            return Some(false);
        }
        extensions = tail;
    }
    Some(false)
}

/// A vector with a length of one byte, and what follows it.
fn vector8(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// A vector with a length of two bytes, and what follows it.
fn vector16(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}
