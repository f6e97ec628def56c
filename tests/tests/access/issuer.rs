//! Who issues tokens: a key, and what is signed with it.

use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://login.test";

/// See the module.
pub(crate) struct Issuer {
    kid: &'static str,
    key: EcdsaKeyPair,
}

impl Issuer {
    /// With a key of this name.
    pub(crate) fn new(kid: &'static str) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { kid, key }
    }

    pub(crate) fn jwks(&self) -> String {
        let point = &self.key.public_key().as_ref()[1..];
        let (x, y) = point.split_at(32);
        json!({"keys": [{"kty": "EC", "kid": self.kid, "crv": "P-256", "x": b64(x), "y": b64(y)}]}).to_string()
    }

    /// A provider named "login", as a policy has it; `more` are further fields.
    pub(crate) fn provider(&self, more: &str) -> String {
        let jwks = self.jwks();
        format!("{{name: login, issuer: \"{ISSUER}\", audiences: [orders], jwks: {{inline: '{jwks}'}}{more}}}")
    }

    pub(crate) fn header(&self) -> Value {
        json!({"alg": "ES256", "kid": self.kid})
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        self.token_with(&self.header(), claims)
    }

    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", b64(signature.as_ref()))
    }

    /// Signed with the public key, as if that were a secret.
    pub(crate) fn with_the_public_key(&self, claims: &Value) -> String {
        let message = message(&json!({"alg": "HS256", "kid": self.kid}), claims);
        let secret = hmac::Key::new(hmac::HMAC_SHA256, self.jwks().as_bytes());
        format!("{message}.{}", b64(hmac::sign(&secret, message.as_bytes()).as_ref()))
    }
}

fn message(header: &Value, claims: &Value) -> String {
    format!("{}.{}", b64(header.to_string()), b64(claims.to_string()))
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Seconds since 1970, `after` from now.
pub(crate) fn at(after: i64) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(now.unwrap_or(Duration::ZERO).as_secs()).unwrap() + after
}

/// What a good token says.
pub(crate) fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "orders", "sub": "ada", "groups": ["dev"], "exp": at(600)})
}

pub(crate) fn with(name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims();
    claims[name] = value.into();
    claims
}
