//! Keys that several providers have together: each policy names its issuer again, and a signature is not verified once for each.

use std::sync::Arc;

use outrigger_api::access as proto;

use super::Failure;
use super::jws::Header;
use super::keys::{Algorithm, Keys, NotVerified};
use super::provider::Provider;

/// All keys of a state, while it is read.
pub(super) struct SharedKeys<'a> {
    known: Vec<(&'a str, Vec<Algorithm>, Arc<Keys>)>,
    /// The providers of the state before this one.
    before: &'a [Provider],
}

impl<'a> SharedKeys<'a> {
    pub(super) fn after(before: &'a [Provider]) -> Self {
        Self {
            known: Vec::new(),
            before,
        }
    }

    /// Of the JWK Set of a policy's provider, for these algorithms. Where it is not known yet, those of before from the same place: its
    /// own, or else those of another provider that has some. Two may have fetched at different times, and one has lost a key already.
    pub(super) fn of(&mut self, policy: &str, provider: &'a proto::Provider, algorithms: &[Algorithm]) -> Arc<Keys> {
        let (jwks, place) = (&*provider.jwks, &*provider.jwks_place);
        if jwks.is_empty() && !place.is_empty() {
            let same = |of: &&Provider| of.keys_place == place && of.algorithms == algorithms && of.keys.are_known();
            let own = |of: &&Provider| of.policy == policy && of.name == provider.name;
            let mut before = self.before.iter().filter(same);
            if let Some(before) = before.clone().find(own).or_else(|| before.next()) {
                return Arc::clone(&before.keys);
            }
        }
        let same = |(set, of, _): &&(&str, Vec<Algorithm>, Arc<Keys>)| *set == jwks && *of == algorithms;
        if let Some((_, _, keys)) = self.known.iter().find(same) {
            return Arc::clone(keys);
        }
        let keys = Arc::new(Keys::new(jwks.as_bytes(), algorithms));
        self.known.push((jwks, algorithms.to_owned(), Arc::clone(&keys)));
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
