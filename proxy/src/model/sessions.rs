//! Which requests are of one session, and what their reference is sealed with: see `outbound::sessions`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM_SIV, LessSafeKey, UnboundKey};
use http::HeaderName;
use outrigger_api::discovery as proto;
use outrigger_api::policy::SESSION_TIMEOUT;

use super::ServiceName;
use super::rules::within;

/// Of a header that no policy names. Another name than a cookie's for all rules: clients have to know it.
const HEADER: HeaderName = HeaderName::from_static("x-session-endpoint");

/// The sessions of one rule, or of a Service without rules.
#[derive(Debug, PartialEq)]
pub struct Sessions {
    pub carrier: Carrier,
    /// Since a session's first request, 1 s to 400 days.
    pub timeout: Option<Duration>,
    /// Clients keep the cookie for that time.
    pub permanent: bool,
    pub key: Key,
    /// What a reference is good for: this rule of this Service alone.
    pub context: Box<[u8]>,
}

/// What a reference stands in.
#[derive(Clone, Debug, PartialEq)]
pub enum Carrier {
    Cookie(Box<str>),
    Header(HeaderName),
}

/// The Service's. It is never shown.
pub struct Key {
    bytes: [u8; 32],
    /// Nonces may be drawn at random, and one that comes twice gives away no more than that the two were equal (RFC 8452).
    pub aead: LessSafeKey,
}

impl Sessions {
    /// Those of a rule of a Service; "": of the Service itself. `None`: there are none, or not as this sidecar understands them.
    pub fn from_proto(
        said: Option<&proto::SessionPersistence>,
        service: &ServiceName,
        rule: &str,
    ) -> Option<Arc<Self>> {
        let said = said?;
        let key = Key::new(&said.key)?;
        let context = context(service, rule);
        let carrier = match (said.r#type(), &*said.name) {
            (proto::SessionType::Cookie, "") => Carrier::Cookie(own_cookie(&context)),
            (proto::SessionType::Cookie, name) => Carrier::Cookie(name.into()),
            (proto::SessionType::Header, "") => Carrier::Header(HEADER),
            (proto::SessionType::Header, name) => Carrier::Header(name.parse().ok()?),
            (proto::SessionType::Unspecified, _) => return None,
        };
        Some(Arc::new(Self {
            carrier,
            timeout: (said.absolute_timeout_ms > 0).then(|| within(said.absolute_timeout_ms, SESSION_TIMEOUT)),
            permanent: said.permanent,
            key,
            context: context.into(),
        }))
    }
}

impl Key {
    fn new(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            bytes: bytes.try_into().ok()?,
            aead: LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, bytes).ok()?),
        })
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// The same in all sidecars of all versions.
fn context(service: &ServiceName, rule: &str) -> Vec<u8> {
    let mut context = b"outrigger session 1".to_vec();
    for part in [&*service.namespace, &service.name, &service.port.to_string(), rule] {
        // None of them has a NUL: what ends where is clear.
        context.push(0);
        context.extend_from_slice(part.as_bytes());
    }
    context
}

/// A name of its own for each rule: browsers tell cookies of one host apart by their names, whatever the port is.
fn own_cookie(context: &[u8]) -> Box<str> {
    // FNV-1a, 32 bits: all sidecars agree on it.
    let hash = context.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    format!("outrigger-session-{hash:08x}").into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn said(kind: proto::SessionType, name: &str) -> proto::SessionPersistence {
        proto::SessionPersistence {
            r#type: kind.into(),
            name: name.to_owned(),
            key: vec![7; 32],
            ..Default::default()
        }
    }

    fn service(port: u16) -> ServiceName {
        ServiceName {
            namespace: "shop".into(),
            name: "cart".into(),
            port,
        }
    }

    fn carrier(said: &proto::SessionPersistence, port: u16, rule: &str) -> Option<Carrier> {
        Sessions::from_proto(Some(said), &service(port), rule).map(|sessions| sessions.carrier.clone())
    }

    #[test]
    fn each_rule_has_a_cookie_of_its_own_and_all_sidecars_agree_on_it() {
        let cookie = said(proto::SessionType::Cookie, "");
        let names = [(80, ""), (81, ""), (80, "shop/cart/0"), (80, "shop/cart/1")];
        let names = names.map(|(port, rule)| carrier(&cookie, port, rule).unwrap());
        assert_eq!(names[0], Carrier::Cookie("outrigger-session-df10a91e".into()));
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name), "{name:?}");
        }
        let named = said(proto::SessionType::Cookie, "s");
        assert_eq!(carrier(&named, 80, "a"), Some(Carrier::Cookie("s".into())));
        let header = said(proto::SessionType::Header, "");
        assert_eq!(carrier(&header, 80, "a"), Some(Carrier::Header(HEADER)));
    }

    /// Of a newer controller, or of none that can be understood.
    #[test]
    fn what_is_not_understood_is_no_session_and_the_key_is_not_shown() {
        let good = said(proto::SessionType::Cookie, "s");
        for broken in [
            proto::SessionPersistence {
                r#type: 4711,
                ..good.clone()
            },
            proto::SessionPersistence {
                key: Vec::new(),
                ..good.clone()
            },
            proto::SessionPersistence {
                key: vec![7; 31],
                ..good.clone()
            },
            said(proto::SessionType::Header, "a b"),
        ] {
            assert_eq!(carrier(&broken, 80, ""), None, "{broken:?}");
        }
        let sessions = Sessions::from_proto(Some(&good), &service(80), "").unwrap();
        assert!(format!("{sessions:?}").contains("key: Key,"));
        let other = Sessions::from_proto(
            Some(&proto::SessionPersistence {
                key: vec![8; 32],
                ..good
            }),
            &service(80),
            "",
        );
        assert_ne!(Some(sessions), other);
    }
}
