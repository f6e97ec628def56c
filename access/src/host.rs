//! Whom a request is for.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::effect::Faulty;

/// A host that a rule names.
#[derive(Debug)]
pub(crate) enum Host {
    Name(Box<str>),
    /// With its dot at the beginning: one or more labels stand before it.
    Suffix(Box<str>),
    Address(IpAddr),
}

impl Host {
    /// # Errors
    /// It is not a host, or has a port.
    pub(crate) fn new(text: &str) -> Result<Self, Faulty> {
        if let Some(address) = address(text) {
            return Ok(Self::Address(address));
        }
        let name = without_dot(text);
        let (wild, labels) = match name.strip_prefix("*.") {
            Some(labels) => (true, labels),
            None => (false, name),
        };
        let is_label = |label: &str| {
            let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            !label.is_empty() && label.bytes().all(letter)
        };
        if !labels.split('.').all(is_label) {
            return Err(Faulty);
        }
        Ok(match wild {
            true => Self::Suffix(name[1..].into()),
            false => Self::Name(name.into()),
        })
    }

    /// `host` is what [`requested`] gives.
    pub(crate) fn is_met(&self, host: &str) -> bool {
        match self {
            Self::Name(name) => name.eq_ignore_ascii_case(host),
            Self::Suffix(suffix) => {
                let (host, suffix) = (host.as_bytes(), suffix.as_bytes());
                host.len() > suffix.len() && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
            }
            Self::Address(wanted) => address(host) == Some(*wanted),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// A request's host without its port, and without the dot of a name that begins at the root.
pub(crate) fn requested(authority: &str) -> &str {
    let port = match authority.rfind(']') {
        Some(end) => authority[end..].find(':').map(|colon| end + colon),
        // A bare IPv6 address has several.
        None => authority
            .find(':')
            .filter(|&colon| !authority[colon + 1..].contains(':')),
    };
    without_dot(&authority[..port.unwrap_or(authority.len())])
}

fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

fn address(host: &str) -> Option<IpAddr> {
    let address = match host.strip_prefix('[') {
        Some(rest) => IpAddr::V6(rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?),
        None => host.parse().ok()?,
    };
    Some(address.to_canonical())
}
