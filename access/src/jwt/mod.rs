//! Who calls, by the tokens of a request: JSON Web Tokens (RFC 7519) of the providers that policies name.
//!
//! What holds of a token is a provider's word alone: its algorithms, its keys, its issuer and its audiences come from the policy. A
//! token is looked at only at ports that a policy with providers selects. One that names no provider's issuer is nobody's business
//! here; one that names one and is not good is refused, whatever else would let the request in.
//!
//! The signature's arithmetic is aws-lc's, which TLS brings. What is around it stands here, because what may be believed of a token
//! is what this is about: time is an input, keys are read once for all requests, and each check can be seen.

mod cache;
mod claim_key;
mod claims;
mod headers;
mod jws;
mod keys;
mod members;
mod provider;
mod shared;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, HeaderName};
use outrigger_api::access as proto;

pub use self::cache::Cache;
use self::cache::Digest;
pub use self::claim_key::ClaimKey;
use self::claims::Life;
pub(crate) use self::claims::{ClaimName, Claims};
pub use self::jws::MAX_TOKEN;
use self::jws::Unverified;
pub use self::keys::{Algorithm, KeySet, MAX_JWKS, MAX_KEYS, NoKeys, Reading};
use self::provider::{Place, Provider};
use self::shared::{SharedKeys, Signed};
use crate::view::ProviderView;

/// Why a token of a provider is refused. Its words are for a log: a client hears less ([`Failure::told`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// It is not written as a token is.
    Malformed,
    /// It is signed for something else.
    Type,
    /// It must not be read by who does not know an extension of its form.
    Critical,
    /// `none`, a shared secret's, one that the policy does not name, or not its key's.
    Algorithm,
    /// The provider has no such key, as far as is known.
    UnknownKey,
    /// It was not made with the key that it names.
    Signature,
    /// For somebody else.
    Audience,
    /// It has no `exp`, or a date that is none.
    Undated,
    /// It has ended.
    Expired,
    /// It has not begun.
    Early,
    /// It is not the only one: who reads another one would be deceived.
    Ambiguous,
}

impl Failure {
    /// One word for metrics, spans and logs.
    pub fn code(self) -> &'static str {
        match self {
            Self::Malformed => "token-malformed",
            Self::Type => "token-type",
            Self::Critical => "token-critical",
            Self::Algorithm => "token-algorithm",
            Self::UnknownKey => "token-unknown-key",
            Self::Signature => "token-signature",
            Self::Audience => "token-audience",
            Self::Undated => "token-undated",
            Self::Expired => "token-expired",
            Self::Early => "token-early",
            Self::Ambiguous => "token-ambiguous",
        }
    }

    /// What its bearer hears (`error_description` of RFC 6750 section 3): nothing that a policy says.
    pub fn told(self) -> &'static str {
        match self {
            Self::Expired => "the token has expired",
            Self::Early => "the token is not valid yet",
            Self::Ambiguous => "there is more than one token",
            Self::Malformed
            | Self::Type
            | Self::Critical
            | Self::Algorithm
            | Self::UnknownKey
            | Self::Signature
            | Self::Audience
            | Self::Undated => "the token is not valid here",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "it is malformed",
            Self::Type => "it is a token of another type (typ, cty)",
            Self::Critical => "it has an extension that is not known here (crit, b64, enc, zip)",
            Self::Algorithm => "its algorithm is not one of the policy's, or not its key's",
            Self::UnknownKey => "the provider is not known to have such a key",
            Self::Signature => "its signature is not its key's",
            Self::Audience => "it is for another audience",
            Self::Undated => "it has no exp, or a date that is none",
            Self::Expired => "it has expired",
            Self::Early => "it is not valid yet (nbf, iat)",
            Self::Ambiguous => "there is more than one",
        })
    }
}

/// The providers of all policies of a state.
#[derive(Debug, Default)]
pub(crate) struct Providers {
    /// Of the enforced policies first, and by the names of policies.
    all: Vec<Provider>,
    /// Where any of them looks for tokens, each once.
    places: Vec<Place>,
}

/// Those of one policy.
#[derive(Clone, Copy)]
pub(crate) struct ProvidersOf<'a> {
    providers: &'a Providers,
    policy: &'a str,
    enforced: bool,
}

impl ProvidersOf<'_> {
    /// The number of one of them, for [`Tokens::claims`].
    pub(crate) fn number(self, name: &str) -> Option<usize> {
        let is_it = |p: &Provider| p.enforced == self.enforced && p.policy == self.policy && p.name == name;
        self.providers.all.iter().position(is_it)
    }
}

/// What has become of one token.
#[derive(Debug)]
struct Checked {
    /// Where it is good for anybody.
    good: Option<(Claims, Life)>,
    /// By each provider of its issuer. What is good may have ended meanwhile.
    by: Vec<(usize, Result<(), Failure>)>,
}

impl Checked {
    fn new(good: Option<(Claims, Life)>, by: Vec<(usize, Result<(), Failure>)>) -> Self {
        Self { good, by }
    }

    fn is_alive(&self, now: i64, skew: i64) -> Result<(), Failure> {
        self.good.as_ref().map_or(Ok(()), |(_, life)| life.check(now, skew))
    }

    /// Bytes that it takes, about.
    fn size(&self) -> usize {
        let claims = self.good.as_ref().map_or(0, |(claims, _)| claims.size());
        size_of::<Self>() + size_of_val(&*self.by) + claims
    }
}

/// Who calls, by the tokens of one request. What goes on for long is decided on again with them, also by providers whose keys have
/// changed meanwhile: a token is good for what began with it.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    /// Whose numbers these are. `None`: nothing was looked at.
    of: Option<Arc<Providers>>,
    /// Where they came to.
    port: u16,
    verified: Vec<Verified>,
    refused: Option<Refused>,
    unknown_key: Option<usize>,
}

#[derive(Clone, Debug)]
struct Verified {
    provider: usize,
    token: Arc<Checked>,
    header: HeaderName,
}

/// A token of an enforced provider that is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused {
    provider: usize,
    why: Failure,
}

impl Verified {
    fn claims(&self) -> Option<&Claims> {
        self.token.good.as_ref().map(|(claims, _)| claims)
    }
}

impl Tokens {
    /// Of a request that nobody looked at.
    pub const NONE: Self = Self {
        of: None,
        port: 0,
        verified: Vec::new(),
        refused: None,
        unknown_key: None,
    };

    /// What the token says of the provider of that number among these.
    pub(crate) fn claims(&self, providers: &Arc<Providers>, number: usize) -> Option<&Claims> {
        let of = self.of.as_ref()?;
        let is_it = |verified: &&Verified| match Arc::ptr_eq(of, providers) {
            true => verified.provider == number,
            false => providers
                .all
                .get(number)
                .zip(of.all.get(verified.provider))
                .is_some_and(|(a, b)| a.is(b)),
        };
        self.verified.iter().find(is_it).and_then(Verified::claims)
    }

    /// What the token says of the provider of that name in the policy ("namespace/name"), if there is one. `None`: nothing verifies tokens of
    /// such a provider where the request came to.
    pub(crate) fn of_provider(&self, policy: &str, name: &str) -> Option<Option<&Claims>> {
        let of = self.of.as_ref()?;
        let is_it = |provider: &Provider| provider.policy == policy && provider.name == name;
        if !of
            .all
            .iter()
            .any(|provider| is_it(provider) && provider.is_for(self.port))
        {
            return None;
        }
        let mut verified = self.verified.iter();
        let verified = verified.find(|verified| of.all.get(verified.provider).is_some_and(is_it));
        Some(verified.and_then(Verified::claims))
    }
}

impl Providers {
    /// Those of a message after `before`.
    pub(crate) fn after(message: &proto::Access, before: &Self) -> Arc<Self> {
        let (mut all, mut keys) = (Vec::new(), SharedKeys::after(&before.all));
        for (policies, enforced) in [(&message.enforced, true), (&message.audited, false)] {
            let mut policies: Vec<&proto::Policy> = policies.iter().collect();
            policies.sort_by(|a, b| a.name.cmp(&b.name));
            for policy in policies {
                let new = |provider| Provider::new(policy, provider, enforced, &mut keys);
                all.extend(policy.providers.iter().map(new));
            }
        }
        let mut places: Vec<Place> = Vec::new();
        for place in all.iter().flat_map(|provider| &provider.places) {
            if !places.contains(place) {
                places.push(place.clone());
            }
        }
        Arc::new(Self { all, places })
    }

    /// Those of a policy.
    pub(crate) fn of<'a>(&'a self, policy: &'a str, enforced: bool) -> ProvidersOf<'a> {
        ProvidersOf {
            providers: self,
            policy,
            enforced,
        }
    }

    /// For people.
    pub(crate) fn views(&self) -> Vec<ProviderView> {
        self.all.iter().map(Provider::view).collect()
    }

    /// Whether tokens are looked at in requests to the port.
    pub(crate) fn are_for(&self, port: u16) -> bool {
        self.all.iter().any(|provider| provider.is_for(port))
    }

    /// Whether a token may be refused in requests to the port, whoever sends it.
    pub(crate) fn may_refuse(&self, port: u16) -> bool {
        let mut enforced = self.all.iter().filter(|provider| provider.enforced);
        enforced.any(|provider| provider.is_for(port))
    }

    /// The policy and the provider whose keys do not have the one that a token names.
    pub(crate) fn unknown_key(&self, tokens: &Tokens) -> Option<(&str, &str)> {
        let provider = self.all.get(tokens.unknown_key?)?;
        Some((&provider.policy, &provider.name))
    }

    /// The policy and the provider that refuse a token, and why.
    pub(crate) fn refusing(&self, tokens: &Tokens) -> Option<(&str, &str, Failure)> {
        let refused = tokens.refused?;
        let provider = self.all.get(refused.provider)?;
        Some((&provider.policy, &provider.name, refused.why))
    }

    /// Verifies the tokens of a request to the port. Takes away headers that claims are for and that came in, sets those of
    /// verified claims, and takes away tokens that go no further.
    pub(crate) fn authenticate(
        self: &Arc<Self>,
        port: u16,
        headers: &mut HeaderMap,
        now: SystemTime,
        cache: &mut Cache,
    ) -> Tokens {
        if !self.are_for(port) {
            return Tokens::NONE;
        }
        // A clock that stands before 1970 makes every token one of the future.
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = now.as_secs().try_into().unwrap_or(i64::MAX);
        let tokens = self.tokens(port, headers, now, cache);
        self.rewrite(port, &tokens, headers);
        tokens
    }

    fn tokens(self: &Arc<Self>, port: u16, headers: &HeaderMap, now: i64, cache: &mut Cache) -> Tokens {
        let mut tokens = Tokens {
            of: Some(Arc::clone(self)),
            port,
            ..Tokens::NONE
        };
        // Providers that have found a token.
        let mut found = Vec::new();
        for place in &self.places {
            let mut lines = headers.get_all(&place.header).iter();
            let Some(line) = lines.next() else { continue };
            if lines.next().is_some() {
                self.refuse_all(&mut tokens, headers, port, place);
            } else if let Some(checked) = place
                .token(line.as_bytes())
                .and_then(|token| self.check(token, now, cache))
            {
                self.judge(&mut tokens, &mut found, &checked, (port, place, now));
            }
        }
        tokens.verified.sort_by_key(|verified| verified.provider);
        tokens
    }

    /// The tokens of a header that came more than once. None of them is verified: there may be as many as a header section holds.
    fn refuse_all(&self, tokens: &mut Tokens, headers: &HeaderMap, port: u16, place: &Place) {
        let lines = headers.get_all(&place.header).iter();
        for token in lines.filter_map(|line| Unverified::read(place.token(line.as_bytes())?)) {
            for (number, provider) in self.of_issuer(&token.issuer) {
                if provider.looks_at(port, place) {
                    tokens.refuse(self, number, Failure::Ambiguous);
                }
            }
        }
    }

    /// What a token is to the providers of its issuer that look for it there.
    fn judge(
        &self,
        tokens: &mut Tokens,
        found: &mut Vec<usize>,
        checked: &Arc<Checked>,
        (port, place, now): (u16, &Place, i64),
    ) {
        let (mut good, mut bad) = (false, None);
        for (number, result) in &checked.by {
            let Some(provider) = self.all.get(*number).filter(|p| p.looks_at(port, place)) else {
                continue;
            };
            if found.contains(number) {
                tokens.refuse(self, *number, Failure::Ambiguous);
                continue;
            }
            found.push(*number);
            match result.and_then(|()| checked.is_alive(now, provider.skew)) {
                Ok(()) => {
                    good |= provider.enforced;
                    tokens.verified.push(Verified {
                        provider: *number,
                        token: Arc::clone(checked),
                        header: place.header.clone(),
                    });
                }
                Err(why) => {
                    if why == Failure::UnknownKey {
                        tokens.unknown_key.get_or_insert(*number);
                    }
                    bad = bad.or(provider.enforced.then_some((*number, why)));
                }
            }
        }
        // Where one policy's provider takes it, it is good: another policy may want another audience of the same issuer.
        if let Some((number, why)) = bad.filter(|_| !good) {
            tokens.refuse(self, number, why);
        }
    }

    /// What has become of a token. `None`: it names no provider's issuer.
    fn check(self: &Arc<Self>, token: &str, now: i64, cache: &mut Cache) -> Option<Arc<Checked>> {
        let mut key: Digest = [0; 32];
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        if let Some(known) = cache.get(self, &key) {
            return Some(known);
        }
        let token = Unverified::read(token)?;
        self.of_issuer(&token.issuer).next()?;
        let checked = Arc::new(self.verify(&token, now));
        if !checked.by.iter().any(|(_, result)| *result == Err(Failure::Early)) {
            cache.insert(key, Arc::clone(&checked));
        }
        Some(checked)
    }

    fn verify(&self, token: &Unverified<'_>, now: i64) -> Checked {
        let read = || {
            let (header, claims) = (token.header()?, token.claims()?);
            let life = Life::read(&claims).ok_or(Failure::Undated)?;
            Ok((header, claims, life, token.signature()?))
        };
        let (header, claims, life, signature) = match read() {
            Ok(read) => read,
            Err(failure) => {
                let by = self.of_issuer(&token.issuer).map(|(number, _)| (number, Err(failure)));
                return Checked::new(None, by.collect());
            }
        };
        let mut signed = Signed::new(&header, token.message, &signature);
        let by = self.of_issuer(&token.issuer).map(|(number, provider)| {
            let alive = life.check(now, provider.skew);
            let intended = alive.and_then(|()| provider.is_for_us(&claims));
            // What costs most comes last.
            (number, intended.and_then(|()| signed.with(&provider.keys)))
        });
        let by: Vec<_> = by.collect();
        let good = by.iter().any(|(_, result)| result.is_ok());
        Checked::new(good.then(|| (Claims::new(claims), life)), by)
    }

    fn of_issuer(&self, issuer: &str) -> impl Iterator<Item = (usize, &Provider)> {
        let all = self.all.iter().enumerate();
        all.filter(move |(_, provider)| provider.issuer == issuer)
    }
}

impl Tokens {
    /// A token of a provider that is audited, and not good, is nobody's.
    fn refuse(&mut self, providers: &Providers, provider: usize, why: Failure) {
        self.verified.retain(|verified| verified.provider != provider);
        if providers.all.get(provider).is_some_and(|p| p.enforced) {
            self.refused.get_or_insert(Refused { provider, why });
        }
    }
}
