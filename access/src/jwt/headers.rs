//! What the app hears of a token.

use http::{HeaderMap, HeaderName};

use super::provider::Provider;
use super::{Providers, Tokens};

impl Providers {
    /// Takes away headers that claims are for and that came in, sets those of verified claims, and takes away tokens that go no
    /// further. Audited policies change nothing.
    pub(super) fn rewrite(&self, port: u16, tokens: &Tokens, headers: &mut HeaderMap) {
        let here = || {
            self.all
                .iter()
                .filter(|provider| provider.enforced && provider.is_for(port))
        };
        let came_in = |name: &&HeaderName| here().any(|provider| provider.sets(name));
        let forged: Vec<HeaderName> = headers.keys().filter(came_in).cloned().collect();
        for name in forged {
            headers.remove(name);
        }
        for verified in &tokens.verified {
            let Some(provider) = self.all.get(verified.provider).filter(|p| p.enforced) else {
                continue;
            };
            if !provider.forward {
                headers.remove(&verified.header);
            }
            for (claim, name) in &provider.claim_headers {
                let value = verified.claims().and_then(|claims| claims.header(claim));
                // Of two that set the same header, the first holds.
                if let Some(value) = value.filter(|_| !headers.contains_key(name)) {
                    headers.insert(name, value);
                }
            }
        }
    }
}

impl Provider {
    fn sets(&self, name: &HeaderName) -> bool {
        self.claim_headers.iter().any(|(_, own)| is_alike(own, name))
    }
}

/// To many an app (CGI, WSGI, Rack) `x_user` is `x-user`: RFC 3875 section 4.1.18.
fn is_alike(one: &HeaderName, other: &HeaderName) -> bool {
    let (one, other) = (one.as_str().as_bytes(), other.as_str().as_bytes());
    let is_dash = |byte: u8| matches!(byte, b'-' | b'_');
    let same = |(a, b): (&u8, &u8)| a == b || (is_dash(*a) && is_dash(*b));
    one.len() == other.len() && one.iter().zip(other).all(same)
}
