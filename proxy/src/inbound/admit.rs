//! Whether a connection may come to the app: what admission of a request ([`super::request`]) is to requests, decided once,
//! when the connection has said what it is.
//!
//! A function of facts: what is declared of the app's port, who calls, what the connection carries.

use outrigger_access::Access;
use outrigger_proxy_transport::error::Reason;
use outrigger_proxy_transport::net::HttpVersion;
use outrigger_proxy_transport::net::detect::Detected;

use super::Caller;
use super::access::{self, Refused, Subject};
use crate::config::{Config, LetIn, Mtls, Plaintext};
use crate::identity::MeshProtocol;
use crate::telemetry::{AccessNote, LimitNote};

/// Bytes of an unfinished head that are held of a client that is refused unless it is kubelet.
const PROBE_HEAD: usize = 4096;

/// What is declared of the app, for all of its ports.
#[derive(Clone, Copy)]
pub(super) struct Server<'a> {
    pub mtls: Mtls,
    pub let_in: &'a [LetIn],
    /// Who may call. `None`: it is not known yet.
    pub access: Option<&'a Access>,
}

/// What is in a connection, inside of mutual TLS where there is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    Http(HttpVersion),
    Bytes,
}

/// What becomes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// All of it comes to the app, if each of its requests may.
    Allow,
    /// Its requests are refused, but for kubelet's own that are let in. So no more than `held` bytes of a head are held.
    PerRequest { held: usize },
    /// It is taken, which is all that a TCP probe wants to see: not a byte of it comes to the app.
    Hold,
    /// It is reset.
    Deny(Refusal),
}

/// Why a connection is reset.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Mutual TLS is required.
    Plaintext,
    /// By the policies of this pod.
    Access(Refused),
    /// A request of which the app has seen the beginning as bytes.
    LateRequest,
    /// There are as many as a policy admits.
    Limited(Box<LimitNote>),
}

/// Decides. What has not said anything yet counts as bytes of nobody, as if it waited for the app to speak first.
pub(super) fn admit_connection(server: &Server<'_>, caller: &Caller, carries: Carries) -> Admission {
    if server.mtls == Mtls::Strict && caller.peer.is_none() {
        return admit_plaintext(server, caller.app.port(), carries);
    }
    match carries {
        // Each request is asked about by itself.
        Carries::Http(_) => Admission::Allow,
        Carries::Bytes => match access::check(server.access, caller, Subject::Bytes) {
            Ok(()) => Admission::Allow,
            Err(refused) => Admission::Deny(Refusal::Access(refused)),
        },
    }
}

/// Where mutual TLS is required.
fn admit_plaintext(server: &Server<'_>, port: u16, carries: Carries) -> Admission {
    let mut let_in = server.let_in.iter().filter(|entry| entry.port == port);
    match carries {
        Carries::Http(_) => Admission::PerRequest {
            held: let_in.next().map_or(0, |_| PROBE_HEAD),
        },
        Carries::Bytes if let_in.any(|entry| entry.what == Plaintext::Connection) => Admission::Hold,
        Carries::Bytes => Admission::Deny(Refusal::Plaintext),
    }
}

impl<'a> Server<'a> {
    pub(super) fn new(config: &'a Config, access: Option<&'a Access>) -> Self {
        Self {
            mtls: config.mtls,
            let_in: &config.let_in,
            access,
        }
    }
}

impl Refusal {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Plaintext => Reason::PlaintextRefused,
            Self::Access(Refused::Unknown) => Reason::AccessUnknown,
            Self::Access(Refused::Denied(_)) => Reason::AccessDenied,
            Self::LateRequest => Reason::HeadTimeout,
            Self::Limited(_) => Reason::RateLimited,
        }
    }

    /// Of the policy that refuses.
    pub(super) fn note(&self) -> Option<&AccessNote> {
        match self {
            Self::Access(Refused::Denied(note)) => Some(note),
            _ => None,
        }
    }

    /// Of the limit that refuses.
    pub(super) fn limit(&self) -> Option<&LimitNote> {
        match self {
            Self::Limited(note) => Some(note),
            _ => None,
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

    use outrigger_api::access as proto;
    use outrigger_proxy_transport::net::Term;

    use super::Admission::{Allow, Deny, Hold, PerRequest};
    use super::*;
    use crate::inbound::introduction::Introduction;
    use crate::telemetry::AccessDecision;

    const HTTP1: Carries = Carries::Http(HttpVersion::Http1);
    const HTTP2: Carries = Carries::Http(HttpVersion::Http2);
    const BYTES: Carries = Carries::Bytes;

    fn caller(peer: Option<&str>) -> Caller {
        Caller {
            app: ([10, 0, 0, 1], 80).into(),
            peer: peer.map(|peer| peer.parse().unwrap()),
            address: Some(([10, 0, 0, 2], 4711).into()),
            term: Term::default(),
            introduction: Introduction::default(),
        }
    }

    const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";

    #[test]
    fn who_is_let_in() {
        const REFUSED: fn() -> Admission = || PerRequest { held: 0 };
        const PROBED: fn() -> Admission = || PerRequest { held: PROBE_HEAD };
        const RESET: fn() -> Admission = || Deny(Refusal::Plaintext);
        const HELD: fn() -> Admission = || Hold;

        let entry = |port, what| LetIn { port, what };
        let get = |port| vec![entry(port, Plaintext::Get("/ready".to_owned()))];
        let tcp = |port| vec![entry(port, Plaintext::Connection)];
        let (nothing, other) = (Vec::new(), [get(81), tcp(81)].concat());
        let (get, grpc, tcp) = (get(80), vec![entry(80, Plaintext::GrpcHealth)], tcp(80));
        let both = [get.clone(), tcp.clone()].concat();
        let everybody = Access::default();

        // What kubelet asks of the app; then what becomes of plaintext in HTTP/1, in HTTP/2, and of bytes, where mutual TLS is
        // required.
        for (let_in, http1, http2, bytes) in [
            (&nothing, REFUSED, REFUSED, RESET),
            (&other, REFUSED, REFUSED, RESET),
            (&get, PROBED, PROBED, RESET),
            (&grpc, PROBED, PROBED, RESET),
            (&tcp, PROBED, PROBED, HELD),
            (&both, PROBED, PROBED, HELD),
        ] {
            for (carries, strict) in [(HTTP1, http1), (HTTP2, http2), (BYTES, bytes)] {
                let admit = |mtls, peer| {
                    let access = Some(&everybody);
                    admit_connection(&Server { mtls, let_in, access }, &caller(peer), carries)
                };
                assert_eq!(admit(Mtls::Strict, None), strict(), "{carries:?} beside {let_in:?}");
                assert_eq!(admit(Mtls::Permissive, None), Allow, "{carries:?} beside {let_in:?}");
                // A peer is admitted in both modes, and is never taken for kubelet.
                for mtls in [Mtls::Strict, Mtls::Permissive] {
                    assert_eq!(admit(mtls, Some(WEB)), Allow, "{carries:?} beside {let_in:?}");
                }
            }
        }
    }

    #[test]
    fn bytes_are_for_whom_the_policies_let_in_and_for_nobody_before_they_are_known() {
        let web = proto::source::Kind::Identity(proto::Identity {
            kind: Some(proto::identity::Kind::Exact(WEB.to_owned())),
        });
        let sources = proto::condition::Kind::Sources(proto::Sources {
            any: vec![proto::Source { kind: Some(web) }],
        });
        let policy = proto::Policy {
            name: "shop/callers".to_owned(),
            exclusive: true,
            rules: vec![proto::Rule {
                name: "0".to_owned(),
                conditions: vec![proto::Condition { kind: Some(sources) }],
            }],
            ..proto::Policy::default()
        };
        let access = Access::new(&proto::Access {
            enforced: vec![policy],
            audited: Vec::new(),
        });
        let admit = |access, mtls, peer, carries| {
            admit_connection(
                &Server {
                    mtls,
                    let_in: &[],
                    access,
                },
                &caller(peer),
                carries,
            )
        };
        let denied = Deny(Refusal::Access(Refused::Denied(Box::new(AccessNote {
            decision: AccessDecision::Denied,
            policy: "shop/callers".to_owned(),
            rule: String::new(),
            reason: "",
        }))));
        for mtls in [Mtls::Permissive, Mtls::Strict] {
            let known = Some(&access);
            assert_eq!(admit(known, mtls, Some(WEB), BYTES), Allow);
            assert_eq!(
                admit(known, mtls, Some("spiffe://mesh.test/ns/shop/sa/jobs"), BYTES),
                denied
            );
            assert_eq!(
                admit(None, mtls, Some(WEB), BYTES),
                Deny(Refusal::Access(Refused::Unknown))
            );
            // Requests are asked about one by one.
            for carries in [HTTP1, HTTP2] {
                assert_eq!(
                    admit(known, mtls, Some("spiffe://mesh.test/ns/shop/sa/jobs"), carries),
                    Allow
                );
                assert_eq!(admit(None, mtls, Some(WEB), carries), Allow);
            }
        }
        assert_eq!(admit(Some(&access), Mtls::Permissive, None, BYTES), denied);
        // Mutual TLS comes first.
        assert_eq!(
            admit(Some(&access), Mtls::Strict, None, BYTES),
            Deny(Refusal::Plaintext)
        );
        assert_eq!(admit(None, Mtls::Strict, None, BYTES), Deny(Refusal::Plaintext));
    }
}
