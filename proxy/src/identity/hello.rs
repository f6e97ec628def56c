//! What a ClientHello says (RFC 8446 section 4.1.2): whether it is of the mesh or of the app's own TLS, by the ALPN protocols that it offers (RFC
//! 7301), and which server it asks for.

use std::borrow::Cow;

use outrigger_proxy_transport::net::detect::Verdict;

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

/// The name of the server that a ClientHello asks for (RFC 6066 section 3), in lower case. `None`: it names none, or is no ClientHello. Names
/// that are not ASCII are none.
pub fn server_name(bytes: &[u8]) -> Verdict<Option<String>> {
    match handshake(bytes) {
        Err(Hello::NeedMore) => Verdict::NeedMore,
        Err(_) => Verdict::Is(None),
        Ok(handshake) => Verdict::Is(named(&handshake)),
    }
}

fn named(hello: &[u8]) -> Option<String> {
    const SERVER_NAME: u16 = 0;
    const HOST_NAME: u8 = 0;
    let (names, _) = vector16(extension(hello, SERVER_NAME)??)?;
    let (kind, rest) = names.split_first()?;
    let (name, _) = vector16(rest)?;
    let name = std::str::from_utf8(name).ok()?;
    let is_name = *kind == HOST_NAME && !name.is_empty() && name.is_ascii();
    is_name.then(|| name.trim_end_matches('.').to_ascii_lowercase())
}

/// `None`: the hello is malformed.
fn offers_mesh(hello: &[u8]) -> Option<bool> {
    const ALPN: u16 = 16;
    let Some(value) = extension(hello, ALPN)? else {
        return Some(false);
    };
    let (mut names, _) = vector16(value)?;
    while !names.is_empty() {
        let (name, tail) = vector8(names)?;
        if MeshProtocol::ALL.iter().any(|protocol| protocol.alpn() == name) {
            return Some(true);
        }
        names = tail;
    }
    Some(false)
}

/// What the first extension of this kind says. `None`: the hello is malformed; `Some(None)`: there is no such extension.
#[allow(clippy::option_option)]
fn extension(hello: &[u8], wanted: u16) -> Option<Option<&[u8]>> {
    let rest = hello.get(2 + 32..)?; // version, random
    let (_, rest) = vector8(rest)?; // session ID
    let (_, rest) = vector16(rest)?; // cipher suites
    let (_, rest) = vector8(rest)?; // compression methods
    if rest.is_empty() {
        return Some(None);
    }
    let (mut extensions, _) = vector16(rest)?;
    while !extensions.is_empty() {
        let (kind, tail) = extensions.split_first_chunk::<2>()?;
        let (value, tail) = vector16(tail)?;
        if u16::from_be_bytes(*kind) == wanted {
            return Some(Some(value));
        }
        extensions = tail;
    }
    Some(None)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use rand::rngs::SmallRng;
    use rand::{Rng, RngCore, SeedableRng};
    use rustls::ClientConnection;

    use super::super::testing::TestCa;
    use super::super::tls::{client_config, provider};
    use super::super::verify::Verifier;
    use super::super::{Clock, MeshProtocol};
    use super::*;

    fn hello(alpn: &[&[u8]]) -> Vec<u8> {
        hello_to("x.peer", alpn)
    }

    fn hello_to(server: &str, alpn: &[&[u8]]) -> Vec<u8> {
        let verifier = Verifier::new(provider(), &TestCa::new("root").bundle(), "cluster.local").unwrap();
        let mut config = client_config(&Arc::new(verifier), None, b"", &Clock::system()).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        // The mesh's own connections name no server.
        config.enable_sni = true;
        let mut connection = ClientConnection::new(Arc::new(config), server.to_owned().try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn alpn_decides() {
        for protocol in MeshProtocol::ALL {
            assert_eq!(inspect_hello(&hello(&[protocol.alpn()])), Hello::Mesh);
        }
        assert_eq!(inspect_hello(&hello(&[b"h2", b"outrigger/h2"])), Hello::Mesh);
        assert_eq!(inspect_hello(&hello(&[b"h2", b"http/1.1"])), Hello::OtherTls);
        assert_eq!(inspect_hello(&hello(&[b"outrigger/h22"])), Hello::OtherTls);
        assert_eq!(inspect_hello(&hello(&[])), Hello::OtherTls);
    }

    #[test]
    fn the_server_that_is_asked_for() {
        for (asked, name) in [
            ("shop.example", Some("shop.example")),
            ("SHOP.Example", Some("shop.example")),
            ("10.0.0.1", None),
            ("::1", None),
        ] {
            let bytes = hello_to(asked, &[b"h2"]);
            assert_eq!(server_name(&bytes), Verdict::Is(name.map(str::to_owned)), "{asked}");
            for end in 0..bytes.len() {
                assert_eq!(server_name(&bytes[..end]), Verdict::NeedMore, "{asked}: {end}");
            }
        }
        assert_eq!(server_name(b"GET / HTTP/1.1\r\n"), Verdict::Is(None));
        // Of a name that is no text, or of another kind.
        let bytes = hello_to("shop.example", &[]);
        let at = bytes.windows(12).position(|part| part == b"shop.example").unwrap();
        let mut other = bytes.clone();
        other[at] = 0xff;
        assert_eq!(server_name(&other), Verdict::Is(None));
        let mut other = bytes.clone();
        other[at - 3] = 1;
        assert_eq!(server_name(&other), Verdict::Is(None));
        // A length that is beyond the extension.
        let mut other = bytes;
        other[at - 1] = 0xff;
        assert_eq!(server_name(&other), Verdict::Is(None));
    }

    #[test]
    fn every_prefix_needs_more() {
        for (alpn, whole) in [(MeshProtocol::Http1.alpn(), Hello::Mesh), (b"h2", Hello::OtherTls)] {
            let mut bytes = hello(&[alpn]);
            for end in 0..bytes.len() {
                assert_eq!(
                    inspect_hello(&bytes[..end]),
                    Hello::NeedMore,
                    "{end} of {}",
                    bytes.len()
                );
            }
            // What follows changes nothing.
            bytes.extend_from_slice(&[0x17; 100]);
            assert_eq!(inspect_hello(&bytes), whole);
        }
    }

    #[test]
    fn a_hello_in_many_records() {
        let whole = hello(&[b"outrigger/h1"]);
        let body = &whole[RECORD_HEADER..];
        for size in [1, 3, 100] {
            let mut bytes = Vec::new();
            for part in body.chunks(size) {
                bytes.extend_from_slice(&[22, 3, 1, 0, part.len() as u8]);
                bytes.extend_from_slice(part);
            }
            assert_eq!(inspect_hello(&bytes), Hello::Mesh, "records of {size}");
            assert_eq!(inspect_hello(&bytes[..bytes.len() - 1]), Hello::NeedMore);
        }
    }

    #[test]
    fn other_protocols() {
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"SSH-2.0-x\r\n",
            &[22, 2, 0, 0, 10],      // no TLS has this version
            &[22, 3, 1, 0, 4, 2],    // a ServerHello
            &[22, 3, 1, 0, 0],       // an empty record
            &[22, 3, 1, 0xff, 0xff], // a record that is too long
            &[23, 3, 3, 0, 10],      // application data
        ] {
            assert_eq!(inspect_hello(other), Hello::NotTls, "{other:?}");
        }
        assert_eq!(inspect_hello(b""), Hello::NeedMore);
    }

    #[test]
    fn a_hello_that_never_ends_is_bounded() {
        let mut endless = vec![22, 3, 1, 0x3f, 0xff, 1, 0xff, 0xff, 0xff];
        assert_eq!(inspect_hello(&endless), Hello::OtherTls);
        // Records of one byte: it ends at the limit.
        endless = vec![22, 3, 1, 0, 1, 1, 22, 3, 1, 0, 1, 0];
        endless.extend([22, 3, 1, 0, 1, 0x3f].repeat(MAX_HELLO));
        assert_eq!(inspect_hello(&endless[..MAX_HELLO / 2]), Hello::NeedMore);
        assert_eq!(inspect_hello(&endless), Hello::OtherTls);
    }

    /// Random bytes, and a real hello with bytes changed: no panic, and an answer at the limit.
    #[test]
    fn any_bytes() {
        let mut random = SmallRng::seed_from_u64(7);
        let real = hello(&[b"outrigger/tcp"]);
        for round in 0..20_000 {
            let mut bytes = real.clone();
            if round % 2 == 0 {
                bytes = vec![0; random.random_range(0..600)];
                random.fill_bytes(&mut bytes);
                for (byte, start) in bytes.iter_mut().zip([22, 3, 1]) {
                    *byte = start;
                }
            } else {
                for _ in 0..random.random_range(1..20) {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] = random.random();
                }
            }
            let end = random.random_range(0..=bytes.len());
            inspect_hello(&bytes[..end]);
            let _ = server_name(&bytes[..end]);
            bytes.resize(MAX_HELLO, 0);
            assert_ne!(inspect_hello(&bytes), Hello::NeedMore);
        }
    }
}
