//! A token as it is written: JWS Compact Serialization (RFC 7515 section 7.1) of a JWT (RFC 7519).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Failure;

/// Bytes of a token that is looked at.
pub const MAX_TOKEN: usize = 16 * 1024;

/// A token whose issuer can be read. Nothing of it is proven.
#[derive(Debug)]
pub(super) struct Unverified<'a> {
    /// What is signed.
    pub(super) message: &'a str,
    header: &'a str,
    signature: &'a str,
    claims: Vec<u8>,
    pub(super) issuer: String,
}

/// What of a JOSE header matters here. Where a token points to for its own key (`jwk`, `jku`, `x5u`, `x5c`) is not read: keys come
/// from the policy (RFC 8725 section 3.10).
#[derive(Debug)]
pub(super) struct Header {
    pub(super) algorithm: String,
    pub(super) kid: Option<String>,
}

/// Whether it is written as a token that may be looked at: an encrypted one has five parts, and an opaque one is none.
pub(super) fn is_compact(text: &str) -> bool {
    let is_part = |part: &str| {
        part.bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    text.len() <= MAX_TOKEN && text.split('.').count() == 3 && text.split('.').all(is_part)
}

impl<'a> Unverified<'a> {
    /// Of a compact one. `None`: it does not say who issued it.
    pub(super) fn read(token: &'a str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Issued {
            iss: String,
        }
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
        let issued: Issued = serde_json::from_slice(&claims).ok()?;
        Some(Self {
            message,
            header,
            signature,
            claims,
            issuer: issued.iss,
        })
    }

    /// # Errors
    /// When the token is of another kind, or must not be read by who does not understand an extension.
    pub(super) fn header(&self) -> Result<Header, Failure> {
        let json = URL_SAFE_NO_PAD.decode(self.header).map_err(|_| Failure::Malformed)?;
        let members: Map<String, Value> = serde_json::from_slice(&json).map_err(|_| Failure::Malformed)?;
        // RFC 7515 section 4.1.11: who does not understand what is critical must refuse it, and nothing is understood here. `b64`
        // (RFC 7797) and `enc` (RFC 7516) change what the parts are.
        if ["crit", "b64", "enc", "zip"]
            .iter()
            .any(|name| members.contains_key(*name))
        {
            return Err(Failure::Critical);
        }
        let text = |name: &str| match members.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Failure::Malformed),
        };
        if text("cty")?.is_some_and(|cty| is_media_type(&cty, &["jwt"])) {
            return Err(Failure::Type);
        }
        // A provider signs other things than access tokens: a logout token, a security event, a DPoP proof (RFC 8725 section 3.11).
        if text("typ")?.is_some_and(|typ| !is_media_type(&typ, &["jwt", "at+jwt"])) {
            return Err(Failure::Type);
        }
        Ok(Header {
            algorithm: text("alg")?.ok_or(Failure::Malformed)?,
            kid: text("kid")?,
        })
    }

    /// # Errors
    /// When they are no JSON object, or nested too deep.
    pub(super) fn claims(&self) -> Result<Map<String, Value>, Failure> {
        serde_json::from_slice(&self.claims).map_err(|_| Failure::Malformed)
    }

    pub(super) fn signature(&self) -> Result<Vec<u8>, Failure> {
        URL_SAFE_NO_PAD.decode(self.signature).map_err(|_| Failure::Malformed)
    }
}

/// As `typ` and `cty` are written: without regard to case, and with or without "application/" (RFC 7515 section 4.1.9).
fn is_media_type(text: &str, names: &[&str]) -> bool {
    let text = text.to_ascii_lowercase();
    names.contains(&text.strip_prefix("application/").unwrap_or(&text))
}
