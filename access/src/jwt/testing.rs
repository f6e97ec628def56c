//! Issuers of tokens, for tests.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512,
    RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaKeyPair, RsaPublicKeyComponents,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrigger_api::access as proto;
use serde_json::{Value, json};

use super::Algorithm;

/// A key that tokens are signed with.
pub(crate) enum Signer {
    Rsa(RsaKeyPair),
    Ec(Algorithm, EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    /// A new key for the algorithm.
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        let ec =
            |signing: &'static EcdsaSigningAlgorithm| Self::Ec(algorithm, EcdsaKeyPair::generate(signing).unwrap());
        match algorithm {
            Algorithm::Es256 => ec(&ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::Es384 => ec(&ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::Es512 => ec(&ECDSA_P521_SHA512_FIXED_SIGNING),
            Algorithm::EdDsa => Self::Ed(Ed25519KeyPair::generate().unwrap()),
            _ => Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
        }
    }

    /// Its public half.
    pub(crate) fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Rsa(key) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(key.public_key());
                json!({"kty": "RSA", "kid": kid, "n": b64(public.n), "e": b64(public.e)})
            }
            Self::Ec(algorithm, key) => {
                let crv = match algorithm {
                    Algorithm::Es384 => "P-384",
                    Algorithm::Es512 => "P-521",
                    _ => "P-256",
                };
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "kid": kid, "crv": crv, "x": b64(x), "y": b64(y)})
            }
            Self::Ed(key) => json!({"kty": "OKP", "kid": kid, "crv": "Ed25519", "x": b64(key.public_key())}),
        }
    }

    pub(crate) fn sign(&self, algorithm: Algorithm, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let rsa = |key: &RsaKeyPair, encoding| {
            let mut signature = vec![0; key.public_modulus_len()];
            key.sign(encoding, &random, message, &mut signature).unwrap();
            signature
        };
        match (self, algorithm) {
            (Self::Rsa(key), Algorithm::Rs384) => rsa(key, &RSA_PKCS1_SHA384),
            (Self::Rsa(key), Algorithm::Rs512) => rsa(key, &RSA_PKCS1_SHA512),
            (Self::Rsa(key), Algorithm::Ps256) => rsa(key, &RSA_PSS_SHA256),
            (Self::Rsa(key), Algorithm::Ps384) => rsa(key, &RSA_PSS_SHA384),
            (Self::Rsa(key), Algorithm::Ps512) => rsa(key, &RSA_PSS_SHA512),
            (Self::Rsa(key), _) => rsa(key, &RSA_PKCS1_SHA256),
            (Self::Ec(_, key), _) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            (Self::Ed(key), _) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with these, whatever they say.
    pub(crate) fn token(&self, algorithm: Algorithm, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let signature = self.sign(algorithm, message.as_bytes());
        format!("{message}.{}", b64(signature))
    }
}

/// A JWK Set of these keys.
pub(crate) fn jwks(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

/// A provider as the controller sends it.
pub(crate) fn provider(name: &str, issuer: &str, audience: &str, keys: &[Value]) -> proto::Provider {
    proto::Provider {
        name: name.to_owned(),
        issuer: issuer.to_owned(),
        audiences: vec![audience.to_owned()],
        algorithms: Algorithm::ALL
            .iter()
            .map(|algorithm| algorithm.name().to_owned())
            .collect(),
        jwks: jwks(keys),
        jwks_place: String::new(),
        from: Vec::new(),
        forward: true,
        claim_to_headers: Vec::new(),
        clock_skew_ms: 60_000,
    }
}

/// A policy of that name with these providers, for all ports.
pub(crate) fn policy(name: &str, providers: Vec<proto::Provider>) -> proto::Policy {
    proto::Policy {
        name: name.to_owned(),
        providers,
        ..Default::default()
    }
}
