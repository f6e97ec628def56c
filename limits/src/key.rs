//! What a bucket is of.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::net::IpAddr;

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
    rate.hash(&mut hasher);
    for part in parts {
        part.write(facts, &mut hasher);
    }
    hasher.finish()
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
