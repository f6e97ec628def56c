//! What the app is told of who calls it. It is the same for all requests of a connection, and made once for them.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use outrigger_proxy_transport::headers::{OUTRIGGER_CLIENT_ID, X_FORWARDED_FOR};

use super::Caller;
use crate::config::ForwardedFor;

/// See the module. By default nothing is told.
#[derive(Default)]
pub(super) struct Introduction(Option<Box<Told>>);

struct Told {
    /// `None`: nothing was proven.
    id: Option<HeaderValue>,
    /// `None`: it is not asked for.
    address: Option<HeaderValue>,
}

impl Introduction {
    pub(super) fn new(caller: &Caller, forwarded_for: ForwardedFor) -> Self {
        // Neither a SPIFFE ID nor an address has a character that a header does not have.
        let value = |text: &str| HeaderValue::from_str(text).ok();
        let address = match forwarded_for {
            ForwardedFor::Leave => None,
            ForwardedFor::Append => {
                // Where the app is, is where its pod calls itself from.
                let ip = caller.address.unwrap_or(caller.app).ip();
                value(&ip.to_canonical().to_string())
            }
        };
        let id = caller.peer.as_ref().and_then(|peer| value(peer.as_str()));
        Self((id.is_some() || address.is_some()).then(|| Box::new(Told { id, address })))
    }

    /// Writes it into a head from which [`strip_ours`](outrigger_proxy_transport::headers::strip_ours) has removed what others say.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        let Some(Told { id, address }) = self.0.as_deref() else {
            return;
        };
        if let Some(id) = id {
            headers.insert(OUTRIGGER_CLIENT_ID, id.clone());
        }
        if let Some(address) = address {
            append(headers, address);
        }
    }
}

/// Behind what came, in one line: of several, an app may look at the first alone.
fn append(headers: &mut HeaderMap, address: &HeaderValue) {
    let came = headers.get_all(X_FORWARDED_FOR).iter();
    let mut all: Vec<&[u8]> = came
        .map(HeaderValue::as_bytes)
        .filter(|line| !line.is_empty())
        .collect();
    let line = match all.is_empty() {
        true => address.clone(),
        false => {
            all.push(address.as_bytes());
            let joined = Bytes::from(all.join(&b", "[..]));
            // What was a value is one beside others.
            HeaderValue::from_maybe_shared(joined).unwrap_or_else(|_| address.clone())
        }
    };
    headers.insert(X_FORWARDED_FOR, line);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::SocketAddr;

    use http::{HeaderMap, HeaderValue};
    use outrigger_proxy_transport::net::Term;

    use super::{Caller, ForwardedFor, Introduction};

    const FORWARDED: &str = "x-forwarded-for";

    fn told(peer: Option<&str>, address: Option<&str>, rule: ForwardedFor, came: &[&str]) -> HeaderMap {
        let address: Option<SocketAddr> = address.map(|address| address.parse().unwrap());
        let caller = Caller {
            app: "10.244.0.7:8080".parse().unwrap(),
            peer: peer.map(|peer| peer.parse().unwrap()),
            address,
            term: Term::default(),
            introduction: Introduction::default(),
        };
        let mut headers = HeaderMap::new();
        for line in came {
            headers.append(FORWARDED, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        Introduction::new(&caller, rule).write(&mut headers);
        headers
    }

    #[test]
    fn who_is_proven_is_named() {
        let web = "spiffe://cluster.local/ns/shop/sa/web";
        for rule in [ForwardedFor::Leave, ForwardedFor::Append] {
            let headers = told(Some(web), Some("10.244.0.9:1024"), rule, &[]);
            assert_eq!(headers["outrigger-client-id"], web, "{rule:?}");
            let plaintext = told(None, Some("10.244.0.9:1024"), rule, &[]);
            assert!(!plaintext.contains_key("outrigger-client-id"), "{rule:?}");
        }
    }

    #[test]
    fn addresses_are_appended_only_where_that_is_asked_for() {
        let client = Some("10.244.0.9:1024");
        for came in [&[][..], &["a"], &["a", "b, c"], &[""]] {
            let left = told(None, client, ForwardedFor::Leave, came);
            let lines: Vec<_> = left.get_all(FORWARDED).iter().collect();
            assert_eq!(lines, came);
        }
        for (client, came, line) in [
            (client, &[][..], "10.244.0.9"),
            (client, &["192.0.2.1"], "192.0.2.1, 10.244.0.9"),
            (client, &["192.0.2.1, b", "c"], "192.0.2.1, b, c, 10.244.0.9"),
            (client, &["", "c", ""], "c, 10.244.0.9"),
            (client, &[""], "10.244.0.9"),
            (client, &["caf\u{e9}"], "caf\u{e9}, 10.244.0.9"),
            (Some("[fd00::9]:1024"), &["c"], "c, fd00::9"),
            (Some("[fe80::9%3]:1024"), &[], "fe80::9"),
            (Some("[::ffff:10.244.0.9]:1024"), &[], "10.244.0.9"),
            // Its pod calls itself.
            (None, &["c"], "c, 10.244.0.7"),
        ] {
            let headers = told(None, client, ForwardedFor::Append, came);
            let lines: Vec<_> = headers.get_all(FORWARDED).iter().map(HeaderValue::as_bytes).collect();
            assert_eq!(lines, [line.as_bytes()], "{client:?} {came:?}");
        }
    }
}
