//! Keys that several providers have together: each policy names its issuer again, and a signature is not verified once for each.

use std::sync::Arc;

use super::Failure;
use super::jws::Header;
use super::keys::{Algorithm, Keys, NotVerified};

/// All keys of a state, while it is read.
#[derive(Default)]
pub(super) struct SharedKeys<'a>(Vec<(&'a str, Vec<Algorithm>, Arc<Keys>)>);

impl<'a> SharedKeys<'a> {
    /// Of a JWK Set, for these algorithms.
    pub(super) fn of(&mut self, jwks: &'a str, algorithms: Vec<Algorithm>) -> Arc<Keys> {
        let same = |(set, of, _): &&(&str, Vec<Algorithm>, Arc<Keys>)| *set == jwks && *of == algorithms;
        if let Some((_, _, keys)) = self.0.iter().find(same) {
            return Arc::clone(keys);
        }
        let keys = Arc::new(Keys::new(jwks.as_bytes(), &algorithms));
        self.0.push((jwks, algorithms, Arc::clone(&keys)));
        keys
    }
}

/// What keys say of the signature of one token.
pub(super) struct Signed<'a> {
    header: &'a Header,
    message: &'a [u8],
    signature: &'a [u8],
    known: Vec<(&'a Arc<Keys>, Result<(), Failure>)>,
}

impl<'a> Signed<'a> {
    pub(super) fn new(header: &'a Header, message: &'a str, signature: &'a [u8]) -> Self {
        Self {
            header,
            message: message.as_bytes(),
            signature,
            known: Vec::new(),
        }
    }

    /// # Errors
    /// When it is not made with one of these.
    pub(super) fn with(&mut self, keys: &'a Arc<Keys>) -> Result<(), Failure> {
        if let Some((_, known)) = self.known.iter().find(|(of, _)| Arc::ptr_eq(of, keys)) {
            return *known;
        }
        let result = self.verify(keys);
        self.known.push((keys, result));
        result
    }

    fn verify(&self, keys: &Keys) -> Result<(), Failure> {
        let algorithm = Algorithm::named(&self.header.algorithm).ok_or(Failure::Algorithm)?;
        let verified = keys.verify(self.header.kid.as_deref(), algorithm, self.message, self.signature);
        verified.map_err(|not| match not {
            NotVerified::NoKey => Failure::UnknownKey,
            NotVerified::WrongKey => Failure::Algorithm,
            NotVerified::Signature => Failure::Signature,
        })
    }
}
