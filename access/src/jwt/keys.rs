//! Keys of a provider: a JWK Set (RFC 7517), read once.
//!
//! A key belongs to the algorithms of its own kind, and to no other: so nothing that a token says can make a public key a shared
//! secret, or one curve another (RFC 8725 section 2.1).

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeSeed;

use super::members::{Members, Operations, Set, Text};

/// Bytes of a JWK Set that are looked at.
pub const MAX_JWKS: usize = 1024 * 1024;
/// Usable keys of one provider. More are refused all together: which of them were left out would be chance.
pub const MAX_KEYS: usize = 64;
/// Keys of a set that are looked at, usable or not. A set that has more is refused.
const MAX_ELEMENTS: usize = 256;
/// Keys that are tried for a token that names none.
const MAX_TRIES: usize = 8;
/// Bits of an RSA modulus: fewer can be factored (NIST SP 800-131A), more is only work.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Bytes of an RSA exponent. It is 65537 nearly everywhere.
const MAX_EXPONENT: usize = 4;
/// Of a key's name, in bytes.
const MAX_KID: usize = 256;

/// How a token is signed (RFC 7518 section 3.1, RFC 8037): asymmetric ones only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    /// As policies, keys and tokens write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The algorithm of that name.
    pub fn named(name: &str) -> Option<Self> {
        // RFC 9864 calls the only curve of EdDSA that is known here by its own name.
        let name = if name == "Ed25519" { "EdDSA" } else { name };
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Of an RSA key.
    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &RSA_PSS_2048_8192_SHA512,
            Self::Es256 | Self::Es384 | Self::Es512 | Self::EdDsa => return None,
        })
    }
}

/// The usable keys of a JWK Set: what is said of them beside the keys themselves (certificates, for instance) is dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct KeySet {
    keys: Vec<Jwk>,
}

/// What has become of a JWK Set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// What can be used.
    pub usable: KeySet,
    /// What cannot be used, and why, in words for a status.
    pub unusable: Vec<String>,
}

/// Why there is no JWK Set in these bytes, in words for a status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoKeys(String);

impl KeySet {
    /// Reads a JWK Set. Keys of a kind that is not known here are left out, as RFC 7517 section 5 says.
    ///
    /// # Errors
    /// When it is no JWK Set, when it is larger than [`MAX_JWKS`], or has more than [`MAX_KEYS`] usable keys, or none, or very many
    /// that are not.
    pub fn read(json: &[u8]) -> Result<Reading, NoKeys> {
        if json.len() > MAX_JWKS {
            return Err(NoKeys(format!("it is larger than {MAX_JWKS} bytes")));
        }
        let mut reading = Reading::default();
        let each = |n: usize, members: Option<Members>| match Jwk::read(members) {
            Ok(key) => reading.usable.keys.push(key),
            Err(Unusable { kid, why }) if reading.unusable.len() < MAX_KEYS => {
                let name = kid.map_or_else(|| format!("key {n}"), |kid| format!("key {}", quoted(&kid)));
                reading.unusable.push(format!("{name}: {why}"));
            }
            Err(_) => {}
        };
        let mut json = serde_json::Deserializer::from_slice(json);
        let set = Set {
            most: MAX_ELEMENTS,
            each,
        };
        let count = set.deserialize(&mut json).and_then(|count| json.end().map(|()| count));
        // What the parser says quotes the text, which is a stranger's.
        let count =
            count.map_err(|e| NoKeys(format!("it is no JWK Set (line {}, column {})", e.line(), e.column())))?;
        if count > MAX_ELEMENTS {
            return Err(NoKeys(format!(
                "it has {count} keys, usable or not; at most {MAX_ELEMENTS} are looked at"
            )));
        }
        match reading.usable.keys.len() {
            0 if reading.unusable.is_empty() => Err(NoKeys("it has no keys".to_owned())),
            0 => Err(NoKeys(format!(
                "none of its keys can be used: {}",
                reading.unusable.join("; ")
            ))),
            1..=MAX_KEYS => Ok(reading),
            n => Err(NoKeys(format!("it has {n} keys; at most {MAX_KEYS} are taken"))),
        }
    }

    /// As a JWK Set.
    pub fn to_json(&self) -> String {
        // Strings in structs always have a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// A usable key: the members of its kind, none longer than it has to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Jwk {
    kty: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    intended: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<String>,
}

struct Unusable {
    kid: Option<String>,
    why: String,
}

impl Jwk {
    fn read(members: Option<Members>) -> Result<Self, Unusable> {
        let wrong = || "a member of it has the wrong type".to_owned();
        let members = members.ok_or_else(|| Unusable {
            kid: None,
            why: wrong(),
        })?;
        let kid = match &members.kid {
            Text::Some(kid) => Some(kid.clone()),
            _ => None,
        };
        let unusable = |why: String| Unusable { kid: kid.clone(), why };
        let text = |text: Text| match text {
            Text::None => Ok(None),
            Text::Some(text) => Ok(Some(text)),
            Text::Wrong => Err(unusable(wrong())),
        };
        let jwk = Self {
            kty: text(members.kty)?.unwrap_or_default(),
            kid: text(members.kid)?,
            intended: text(members.intended)?,
            alg: text(members.alg)?,
            crv: text(members.crv)?,
            x: text(members.x)?,
            y: text(members.y)?,
            n: text(members.n)?,
            e: text(members.e)?,
        };
        if kid.as_ref().is_some_and(|kid| kid.len() > MAX_KID) {
            return Err(unusable(format!("its kid is longer than {MAX_KID} bytes")));
        }
        // Each of them is six bytes of JSON.
        if kid.as_ref().is_some_and(|kid| kid.contains(char::is_control)) {
            return Err(unusable("its kid has control characters".to_owned()));
        }
        match members.key_ops {
            Operations::None | Operations::Verify => {}
            Operations::Others => return Err(unusable("its key_ops have no verify".to_owned())),
            Operations::Wrong => return Err(unusable(wrong())),
        }
        match jwk.verifiers(&Algorithm::ALL) {
            Ok(verifiers) if verifiers.is_empty() => Err(unusable("no algorithm is left for it".to_owned())),
            Ok(_) => jwk.canonical().map_err(unusable),
            Err(why) => Err(unusable(why)),
        }
    }

    /// A usable key without the members of other kinds, and without zeros before its numbers: of both there might be any number of
    /// bytes. The other members are of a fixed length, or one of few words.
    fn canonical(mut self) -> Result<Self, String> {
        if self.kty == "RSA" {
            let RsaPublicKeyComponents { n, e } = self.rsa()?;
            self.n = Some(URL_SAFE_NO_PAD.encode(n));
            self.e = Some(URL_SAFE_NO_PAD.encode(e));
            (self.crv, self.x, self.y) = (None, None, None);
        } else {
            (self.n, self.e) = (None, None);
            if self.kty != "EC" {
                self.y = None;
            }
        }
        Ok(self)
    }

    /// The key for each of the algorithms that it may be used with.
    fn verifiers(&self, among: &[Algorithm]) -> Result<Vec<(Algorithm, ParsedPublicKey)>, String> {
        if self.intended.as_deref().is_some_and(|intended| intended != "sig") {
            return Err("its use is not sig".to_owned());
        }
        let only = match &self.alg {
            None => None,
            Some(name) => Some(Algorithm::named(name).ok_or_else(|| format!("its alg is {}", quoted(name)))?),
        };
        let may = |algorithm: &Algorithm| only.is_none_or(|only| only == *algorithm);
        match self.kty.as_str() {
            "RSA" => {
                let key = self.rsa()?;
                let algorithms = among.iter().copied().filter(may);
                let verifiers = algorithms.filter_map(|algorithm| Some((algorithm, algorithm.rsa()?)));
                let parsed = verifiers.map(|(algorithm, parameters)| {
                    let parsed = key.to_parsed_public_key(parameters);
                    parsed.map(|parsed| (algorithm, parsed)).map_err(|e| rejected(&e))
                });
                parsed.collect()
            }
            "EC" | "OKP" => {
                let (algorithm, verification, bytes) = self.point()?;
                if !may(&algorithm) || !among.contains(&algorithm) {
                    return Ok(Vec::new());
                }
                let parsed = ParsedPublicKey::new(verification, bytes).map_err(|e| rejected(&e))?;
                Ok(vec![(algorithm, parsed)])
            }
            other => Err(format!("its kty is {}", quoted(other))),
        }
    }

    fn rsa(&self) -> Result<RsaPublicKeyComponents<Vec<u8>>, String> {
        let n = without_zeros(decoded("n", self.n.as_deref())?);
        let bits = n
            .first()
            .map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
        if !RSA_BITS.contains(&bits) {
            return Err(format!(
                "an RSA key of {bits} bits; it must have {} to {}",
                RSA_BITS.start(),
                RSA_BITS.end()
            ));
        }
        let e = without_zeros(decoded("e", self.e.as_deref())?);
        // With 1, whatever is padded well is its own signature; a large one is only work.
        if e.last().is_none_or(|last| last % 2 == 0) || e == [1] || e.len() > MAX_EXPONENT {
            return Err("its e is no exponent of RSA".to_owned());
        }
        Ok(RsaPublicKeyComponents { n, e })
    }

    /// The algorithm of its curve, and the key's bytes.
    fn point(&self) -> Result<(Algorithm, &'static dyn VerificationAlgorithm, Vec<u8>), String> {
        let crv = self.crv.as_deref().unwrap_or_default();
        let (algorithm, verification, length): (_, &'static dyn VerificationAlgorithm, _) =
            match (self.kty.as_str(), crv) {
                ("EC", "P-256") => (Algorithm::Es256, &ECDSA_P256_SHA256_FIXED, 32),
                ("EC", "P-384") => (Algorithm::Es384, &ECDSA_P384_SHA384_FIXED, 48),
                ("EC", "P-521") => (Algorithm::Es512, &ECDSA_P521_SHA512_FIXED, 66),
                ("OKP", "Ed25519") => (Algorithm::EdDsa, &ED25519, 32),
                _ => return Err(format!("its crv is {}", quoted(crv))),
            };
        let coordinate = |name: &str, text: &Option<String>| {
            let bytes = decoded(name, text.as_deref())?;
            match bytes.len() == length {
                true => Ok(bytes),
                false => Err(format!("its {name} has {} bytes and not {length}", bytes.len())),
            }
        };
        let mut bytes = coordinate("x", &self.x)?;
        if self.kty == "EC" {
            // The uncompressed form of a point (SEC 1 section 2.3.3).
            bytes.insert(0, 4);
            bytes.extend(coordinate("y", &self.y)?);
        }
        Ok((algorithm, verification, bytes))
    }
}

fn decoded(name: &str, text: Option<&str>) -> Result<Vec<u8>, String> {
    let text = text.ok_or_else(|| format!("it has no {name}"))?;
    let bytes = URL_SAFE_NO_PAD.decode(text);
    bytes.map_err(|_| format!("its {name} is not base64url"))
}

fn without_zeros(mut bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    bytes
}

fn rejected(error: &impl fmt::Display) -> String {
    format!("it is no valid key: {error}")
}

/// A stranger's word in a message of ours.
fn quoted(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

/// The keys of a provider, for the algorithms that its policy allows.
#[derive(Debug)]
pub(super) struct Keys(Vec<Key>);

#[derive(Debug)]
struct Key {
    kid: Option<String>,
    verifiers: Vec<(Algorithm, ParsedPublicKey)>,
}

/// Why no key verifies a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotVerified {
    /// There is no such key.
    NoKey,
    /// The key exists, and is none for the algorithm.
    WrongKey,
    Signature,
}

impl Keys {
    /// Of a JWK Set that [`KeySet::read`] takes; else none.
    pub(super) fn new(jwks: &[u8], algorithms: &[Algorithm]) -> Self {
        let usable = KeySet::read(jwks).unwrap_or_default().usable;
        let key = |jwk: Jwk| Key {
            verifiers: jwk.verifiers(algorithms).unwrap_or_default(),
            kid: jwk.kid,
        };
        Self(usable.keys.into_iter().map(key).collect())
    }

    /// Whether there is a set: none without a usable key is taken.
    pub(super) fn are_known(&self) -> bool {
        !self.0.is_empty()
    }

    /// How many can be used for one of the algorithms.
    pub(super) fn len(&self) -> usize {
        self.0.iter().filter(|key| !key.verifiers.is_empty()).count()
    }

    /// Whether one of them has signed the message: the one that is named, or any where none is (of the first few: each try costs
    /// what a signature costs).
    ///
    /// # Errors
    /// When none has.
    pub(super) fn verify(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), NotVerified> {
        let named = |key: &&Key| kid.is_none_or(|kid| key.kid.as_deref() == Some(kid));
        if !self.0.iter().any(|key| named(&key)) {
            return Err(NotVerified::NoKey);
        }
        let keys = self.0.iter().filter(named);
        let fitting = keys.filter_map(|key| key.verifiers.iter().find(|(of, _)| *of == algorithm));
        let mut tried = false;
        for (_, key) in fitting.take(MAX_TRIES) {
            if key.verify_sig(message, signature).is_ok() {
                return Ok(());
            }
            tried = true;
        }
        Err(match (tried, kid) {
            (true, Some(_)) => NotVerified::Signature,
            // It may be a key that the provider has begun to use.
            (true, None) => NotVerified::NoKey,
            (false, _) => NotVerified::WrongKey,
        })
    }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
