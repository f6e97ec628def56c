//! What a bucket is of.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::net::IpAddr;

use aws_lc_rs::digest::{Context, SHA256};
use http::{HeaderMap, HeaderName};
use outrigger_access::jwt::ClaimKey;
use outrigger_access::{Carries, Facts};
use outrigger_api::limits as proto;
use outrigger_api::limits::key_part;

/// A part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Identity,
    Namespace,
    Header(HeaderName),
    Address { v4: u8, v6: u8 },
    Claim(ClaimKey),
}

impl Part {
    /// `None`: it is faulty, or this version does not know it.
    pub(crate) fn new(message: &proto::KeyPart) -> Option<Self> {
        match message.kind.as_ref()? {
            key_part::Kind::Identity(proto::PerIdentity {}) => Some(Self::Identity),
            key_part::Kind::Namespace(proto::PerNamespace {}) => Some(Self::Namespace),
            key_part::Kind::Header(header) => HeaderName::from_bytes(header.name.as_bytes()).ok().map(Self::Header),
            key_part::Kind::Claim(claim) => {
                Some(Self::Claim(ClaimKey::new(&claim.policy, &claim.provider, &claim.name)))
            }
            key_part::Kind::Address(address) => {
                let bits = |bits: u32, most: u8| u8::try_from(bits).ok().filter(|bits| (1..=most).contains(bits));
                Some(Self::Address {
                    v4: bits(address.v4_prefix, 32)?,
                    v6: bits(address.v6_prefix, 128)?,
                })
            }
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Identity => "identity".to_owned(),
            Self::Namespace => "namespace".to_owned(),
            Self::Header(name) => format!("header {name}"),
            Self::Address { v4, v6 } => format!("address /{v4} /{v6}"),
            Self::Claim(claim) => format!("claim {claim}"),
        }
    }

    fn write(&self, facts: &Facts<'_>, hasher: &mut impl Hasher) {
        let identity = facts.caller.identity;
        match self {
            Self::Identity => identity.map(|id| id.as_str()).hash(hasher),
            Self::Namespace => identity.map(|id| (id.trust_domain(), id.namespace())).hash(hasher),
            Self::Header(name) => match &facts.carries {
                Carries::Http(head) => lines(head.headers, name, hasher),
                Carries::Bytes => 0.hash(hasher),
            },
            Self::Claim(claim) => match &facts.carries {
                Carries::Http(head) => claim.write(head.tokens, hasher),
                Carries::Bytes => 0.hash(hasher),
            },
            Self::Address { v4, v6 } => facts.caller.address.map(|ip| network(ip, *v4, *v6)).hash(hasher),
        }
    }
}

/// The key of a request, at one of the rates of a limit.
pub(crate) fn of(parts: &[Part], rate: usize, facts: &Facts<'_>, random: &RandomState) -> u64 {
    let mut hasher = random.build_hasher();
    write(parts, rate, facts, &mut hasher);
    hasher.finish()
}

/// The same for all pods: 128 bits, of which nobody finds two that are the same for two keys. What it is of cannot be read from it, and can be
/// guessed.
pub(crate) fn of_all_pods(parts: &[Part], rate: usize, facts: &Facts<'_>) -> [u8; 16] {
    let mut hasher = Digest(Context::new(&SHA256));
    // As text: how a library writes a header's name, its next version may do in another way.
    parts.iter().for_each(|part| part.text().hash(&mut hasher));
    write(parts, rate, facts, &mut hasher);
    let digest = hasher.0.finish();
    let mut first = [0; 16];
    first.copy_from_slice(&digest.as_ref()[..16]);
    first
}

fn write(parts: &[Part], rate: usize, facts: &Facts<'_>, hasher: &mut impl Hasher) {
    rate.hash(hasher);
    for part in parts {
        part.write(facts, hasher);
    }
}

/// SHA-256 of what is hashed. Numbers are written alike on every machine.
struct Digest(Context);

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn write_u128(&mut self, number: u128) {
        self.write(&number.to_le_bytes());
    }

    fn write_usize(&mut self, number: usize) {
        self.write(&(number as u64).to_le_bytes());
    }

    fn write_isize(&mut self, number: isize) {
        self.write(&(number as i64).to_le_bytes());
    }

    /// Nobody asks for it.
    fn finish(&self) -> u64 {
        0
    }
}

fn lines(headers: &HeaderMap, name: &HeaderName, hasher: &mut impl Hasher) {
    let lines = headers.get_all(name);
    // First, so that what stands behind it cannot be one more.
    lines.iter().count().hash(hasher);
    lines.iter().for_each(|line| line.as_bytes().hash(hasher));
}

fn network(address: IpAddr, v4: u8, v6: u8) -> (bool, u128) {
    match address.to_canonical() {
        IpAddr::V4(address) => (true, u128::from(address.to_bits() >> (32 - v4))),
        IpAddr::V6(address) => (false, address.to_bits() >> (128 - v6)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;

    use http::HeaderValue;
    use outrigger_access::{Caller, Head, Tokens};
    use outrigger_api::spiffe::SpiffeId;

    use super::*;

    fn key(parts: &[Part], rate: usize, header: Option<&str>, address: &str) -> String {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert("x-key", HeaderValue::try_from(header).unwrap());
        }
        let web = SpiffeId::new("mesh.test", "shop", "web").unwrap();
        let facts = Facts {
            port: 80,
            caller: Caller {
                identity: Some(&web),
                address: Some(address.parse().unwrap()),
            },
            carries: Carries::Http(Head {
                method: "GET",
                path: "/",
                host: "",
                headers: &headers,
                tokens: &Tokens::NONE,
            }),
        };
        let key = of_all_pods(parts, rate, &facts);
        key.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Sidecars of two versions count together only where they have the same keys.
    #[test]
    fn a_key_of_all_pods_is_the_same_in_every_version_and_for_nobody_else() {
        let header = || Part::Header(HeaderName::from_static("x-key"));
        let other = || Part::Header(HeaderName::from_static("x-other"));
        let address = || Part::Address { v4: 32, v6: 64 };
        let all = [header(), address(), Part::Identity, Part::Namespace];
        let known = key(&all, 0, Some("a"), "10.0.0.1");
        assert_eq!(known, "85fa30036e132a3db539e5ef1c1bce31");
        let keys = [
            known,
            key(&all, 1, Some("a"), "10.0.0.1"),
            key(&all, 0, Some("b"), "10.0.0.1"),
            key(&all, 0, None, "10.0.0.1"),
            key(&all, 0, Some(""), "10.0.0.1"),
            key(&all, 0, Some("a"), "10.0.0.2"),
            key(&all, 0, Some("a"), "fd00::1"),
            key(&[header()], 0, Some("a"), "10.0.0.1"),
            key(&[other()], 0, None, "10.0.0.1"),
            key(&[header()], 0, None, "10.0.0.1"),
            key(&[address()], 0, Some("a"), "10.0.0.1"),
            key(&[], 0, Some("a"), "10.0.0.1"),
        ];
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
        assert_eq!(key(&[], 0, Some("a"), "10.0.0.1"), key(&[], 0, None, "10.0.0.2"));
    }
}
