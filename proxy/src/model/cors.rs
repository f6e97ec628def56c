//! Which pages of other origins may use the answers to their requests (Gateway API, HTTPCORSFilter).

use http::HeaderValue;
use outrigger_api::discovery as proto;

/// The texts are as headers of an answer have them, in lists with commas.
#[derive(Debug, PartialEq)]
pub struct Cors {
    pub origins: Vec<OriginMatch>,
    pub credentials: bool,
    pub methods: Allowed,
    /// Of requests.
    pub headers: Allowed,
    /// Of responses.
    pub expose: Allowed,
    /// In seconds.
    pub max_age: HeaderValue,
}

/// An origin is a scheme, a host and a port (RFC 6454).
#[derive(Debug, PartialEq, Eq)]
pub enum OriginMatch {
    /// Also the one that is `null`.
    Any,
    Of {
        /// "http" or "https".
        scheme: String,
        host: HostMatch,
        port: u16,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub enum HostMatch {
    Any,
    /// In lower case.
    Exact(String),
    /// ".example.com": one or more labels before it.
    Suffix(String),
}

#[derive(Debug, PartialEq)]
pub enum Allowed {
    /// Nothing is said.
    Nothing,
    These(HeaderValue),
    All,
}

impl Cors {
    /// An origin that cannot be read is nobody's.
    pub fn from_proto(message: &proto::Cors) -> Self {
        Self {
            origins: message
                .origins
                .iter()
                .filter_map(|text| OriginMatch::parse(text))
                .collect(),
            credentials: message.credentials,
            methods: Allowed::from_list(&message.methods),
            headers: Allowed::from_list(&message.headers),
            expose: Allowed::from_list(&message.expose),
            max_age: HeaderValue::from(message.max_age),
        }
    }

    /// Whether a page of this origin may use the answer.
    pub fn allows(&self, origin: &HeaderValue) -> bool {
        let Ok(text) = origin.to_str() else { return false };
        let asked = split(text);
        self.origins.iter().any(|of| of.is(asked.as_ref()))
    }

    /// Whether all origins have the same answer.
    pub fn is_for_all(&self) -> bool {
        !self.credentials && self.origins.contains(&OriginMatch::Any)
    }
}

impl OriginMatch {
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        let (scheme, host, port) = split(text)?;
        let host = match host.strip_prefix('*') {
            Some("") => HostMatch::Any,
            Some(suffix) if suffix.starts_with('.') => HostMatch::Suffix(suffix.to_owned()),
            Some(_) => return None,
            None => HostMatch::Exact(host),
        };
        Some(Self::Of { scheme, host, port })
    }

    /// `None`: what has no scheme, host and port, like `null`.
    fn is(&self, asked: Option<&(String, String, u16)>) -> bool {
        let Self::Of { scheme, host, port } = self else {
            return true;
        };
        asked.is_some_and(|(asked_scheme, asked_host, asked_port)| {
            scheme == asked_scheme
                && port == asked_port
                && match host {
                    HostMatch::Any => true,
                    HostMatch::Exact(host) => host == asked_host,
                    // Not the suffix alone: it has no label before it.
                    HostMatch::Suffix(suffix) => asked_host
                        .strip_suffix(&**suffix)
                        .is_some_and(|label| !label.is_empty()),
                }
        })
    }
}

/// Scheme and host in lower case, and the port, which need not be said where it is the scheme's own.
fn split(origin: &str) -> Option<(String, String, u16)> {
    let (scheme, rest) = origin.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let own = match &*scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    // Behind the last `]` of an IPv6 address, or anywhere in a name.
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (rest, own),
    };
    let is_host = !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
    is_host.then(|| (scheme, host.to_ascii_lowercase(), port))
}

impl Allowed {
    fn from_list(list: &[String]) -> Self {
        match list {
            [] => Self::Nothing,
            list if list.iter().any(|entry| entry == "*") => Self::All,
            // Nothing is allowed by what is no header.
            list => HeaderValue::try_from(list.join(", ")).map_or(Self::Nothing, Self::These),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        for (configured, origin, allowed) in [
            ("*", "https://shop.example", true),
            ("*", "null", true),
            ("https://shop.example", "https://shop.example", true),
            ("https://Shop.Example", "HTTPS://shop.EXAMPLE", true),
            ("https://shop.example", "https://shop.example:443", true),
            ("https://shop.example:443", "https://shop.example", true),
            ("http://shop.example", "http://shop.example:80", true),
            ("https://shop.example", "http://shop.example", false),
            ("https://shop.example", "https://shop.example:8443", false),
            ("https://shop.example:8443", "https://shop.example:8443", true),
            ("https://shop.example", "https://a.shop.example", false),
            ("https://shop.example", "https://shop.example.evil", false),
            ("https://shop.example", "https://evilshop.example", false),
            ("https://shop.example", "null", false),
            ("https://*.example", "https://shop.example", true),
            ("https://*.example", "https://a.b.example", true),
            ("https://*.example", "https://example", false),
            ("https://*.example", "https://.example", false),
            ("https://*.example", "https://evilexample", false),
            ("https://*.example", "https://evil/.example", false),
            ("https://*.example", "https://evil?.example", false),
            ("https://*.example", "https://a@b.example", false),
            ("https://*.example:8443", "https://shop.example", false),
            ("https://*", "https://anybody", true),
            ("https://*", "http://anybody", false),
            ("https://*", "null", false),
            ("http://[::1]:8080", "http://[::1]:8080", true),
            ("http://[::1]", "http://[::1]", true),
            ("http://[::1]", "http://[::1]:81", false),
            // Not understood: nobody's.
            ("https://*shop.example", "https://ashop.example", false),
            ("shop.example", "shop.example", false),
            ("ftp://shop.example", "ftp://shop.example", false),
            ("https://", "https://", false),
            ("https://shop.example:x", "https://shop.example:x", false),
        ] {
            let cors = Cors::from_proto(&proto::Cors {
                origins: vec![configured.to_owned()],
                ..proto::Cors::default()
            });
            let origin = HeaderValue::from_static(origin);
            assert_eq!(cors.allows(&origin), allowed, "{configured} {origin:?}");
        }
        let all = Cors::from_proto(&proto::Cors::default());
        assert!(!all.allows(&HeaderValue::from_static("https://shop.example")));
        let bytes = HeaderValue::from_bytes(b"https://\xff.example").unwrap_or(HeaderValue::from_static(""));
        let cors = proto::Cors {
            origins: vec!["https://*.example".to_owned()],
            ..proto::Cors::default()
        };
        assert!(!Cors::from_proto(&cors).allows(&bytes));
    }
}
