//! Whether a connection may come to the app: what admission of a request ([`super::request`]) is to requests, decided once,
//! when the connection has said what it is.
//!
//! A function of facts: what is declared of the app's port, who calls, what the connection carries.

use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy_transport::net::HttpVersion;
use outrigger_proxy_transport::net::detect::Detected;

use crate::config::{Config, LetIn, Mtls, Plaintext};
use crate::identity::MeshProtocol;

/// Bytes of an unfinished head that are held of a client that is refused unless it is kubelet.
const PROBE_HEAD: usize = 4096;

/// A port of the app, and what is declared of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server<'a> {
    pub port: u16,
    pub mtls: Mtls,
    /// Of all ports.
    pub let_in: &'a [LetIn],
}

/// A connection that has said what it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conn<'a> {
    /// Who calls, proven by mutual TLS. `None`: it is in plaintext, or in the app's own TLS.
    pub peer: Option<&'a SpiffeId>,
    pub carries: Carries,
}

/// What is in a connection, inside of mutual TLS where there is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    Http(HttpVersion),
    Bytes,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// All of it comes to the app.
    Allow,
    /// Its requests are refused, but for kubelet's own that are let in. So no more than `held` bytes of a head are held.
    PerRequest { held: usize },
    /// It is taken, which is all that a TCP probe wants to see: not a byte of it comes to the app.
    Hold,
    /// It is reset.
    Deny,
}

/// Decides.
pub(super) fn admit_connection(server: &Server<'_>, conn: &Conn<'_>) -> Admission {
    if server.mtls == Mtls::Permissive || conn.peer.is_some() {
        return Admission::Allow;
    }
    let mut let_in = server.let_in.iter().filter(|entry| entry.port == server.port);
    match conn.carries {
        Carries::Http(_) => Admission::PerRequest {
            held: let_in.next().map_or(0, |_| PROBE_HEAD),
        },
        Carries::Bytes if let_in.any(|entry| entry.what == Plaintext::Connection) => Admission::Hold,
        Carries::Bytes => Admission::Deny,
    }
}

impl Conn<'_> {
    /// It has not said anything, as if it waited for the app to speak first.
    pub(super) const SILENT: Self = Self {
        peer: None,
        carries: Carries::Bytes,
    };
}

impl<'a> Server<'a> {
    pub(super) fn new(config: &'a Config, port: u16) -> Self {
        Self {
            port,
            mtls: config.mtls,
            let_in: &config.let_in,
        }
    }
}

impl From<Detected> for Carries {
    fn from(detected: Detected) -> Self {
        match detected {
            Detected::Http1 => Self::Http(HttpVersion::Http1),
            Detected::Http2 => Self::Http(HttpVersion::Http2),
            Detected::Tls | Detected::Opaque => Self::Bytes,
        }
    }
}

impl From<MeshProtocol> for Carries {
    fn from(protocol: MeshProtocol) -> Self {
        match protocol {
            MeshProtocol::Http1 => Self::Http(HttpVersion::Http1),
            MeshProtocol::Http2 => Self::Http(HttpVersion::Http2),
            MeshProtocol::Opaque => Self::Bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::Admission::{Allow, Deny, Hold, PerRequest};
    use super::*;

    #[test]
    fn who_is_let_in() {
        const HTTP1: Carries = Carries::Http(HttpVersion::Http1);
        const HTTP2: Carries = Carries::Http(HttpVersion::Http2);
        const BYTES: Carries = Carries::Bytes;
        const REFUSED: Admission = PerRequest { held: 0 };
        const PROBED: Admission = PerRequest { held: PROBE_HEAD };

        let entry = |port, what| LetIn { port, what };
        let get = |port| vec![entry(port, Plaintext::Get("/ready".to_owned()))];
        let tcp = |port| vec![entry(port, Plaintext::Connection)];
        let (nothing, other) = (Vec::new(), [get(81), tcp(81)].concat());
        let (get, grpc, tcp) = (get(80), vec![entry(80, Plaintext::GrpcHealth)], tcp(80));
        let both = [get.clone(), tcp.clone()].concat();

        // What kubelet asks of the app; then what becomes of plaintext in HTTP/1, in HTTP/2, and of bytes, where mutual TLS is
        // required.
        for (let_in, http1, http2, bytes) in [
            (&nothing, REFUSED, REFUSED, Deny),
            (&other, REFUSED, REFUSED, Deny),
            (&get, PROBED, PROBED, Deny),
            (&grpc, PROBED, PROBED, Deny),
            (&tcp, PROBED, PROBED, Hold),
            (&both, PROBED, PROBED, Hold),
        ] {
            for (carries, strict) in [(HTTP1, http1), (HTTP2, http2), (BYTES, bytes)] {
                let admit = |mtls, peer| {
                    let server = Server { port: 80, mtls, let_in };
                    admit_connection(&server, &Conn { peer, carries })
                };
                assert_eq!(admit(Mtls::Strict, None), strict, "{carries:?} beside {let_in:?}");
                assert_eq!(admit(Mtls::Permissive, None), Allow, "{carries:?} beside {let_in:?}");
                // A peer is admitted in both modes, and is never taken for kubelet.
                let peer = "spiffe://mesh.test/ns/shop/sa/web".parse().unwrap();
                for mtls in [Mtls::Strict, Mtls::Permissive] {
                    assert_eq!(admit(mtls, Some(&peer)), Allow, "{carries:?} beside {let_in:?}");
                }
            }
        }
    }
}
