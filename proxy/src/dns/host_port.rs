//! A name with its port, as it is written.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// A host name or an address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Without brackets, also where it is an IPv6 address.
    pub host: Arc<str>,
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not a host and a port, like \"controller.example:14150\" or \"[::1]:14150\"");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse::<u16>().ok().filter(|&p| p > 0).ok_or_else(wrong)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest
                .strip_suffix(']')
                .filter(|h| h.parse::<std::net::Ipv6Addr>().is_ok())
                .ok_or_else(wrong)?,
            None => host,
        };
        let name = |h: &str| {
            (1..=253).contains(&h.len())
                && h.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        if !name(host) && host.parse::<IpAddr>().is_err() || host.contains(':') && !text.starts_with('[') {
            return Err(wrong());
        }
        Ok(Self {
            host: host.into(),
            port,
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::HostPort;

    #[test]
    fn hosts_and_ports() {
        for good in ["controller:14150", "10.0.0.1:80", "[fd00::1]:14150", "a.b-c.svc:1"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for wrong in [
            "",
            "controller",
            ":80",
            "controller:0",
            "controller:http",
            "fd00::1:80",
            "[fd00::1]",
            "a/b:80",
            "[x]:80",
        ] {
            assert!(wrong.parse::<HostPort>().is_err(), "{wrong:?} was taken");
        }
    }
}
