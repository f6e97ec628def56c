//! Who issues tokens, and what one of its tokens must be like.

use std::sync::Arc;

use http::HeaderName;
use http::header::AUTHORIZATION;
use outrigger_api::access as proto;
use serde_json::{Map, Value};

use super::Failure;
use super::claims::ClaimName;
use super::jws::is_compact;
use super::keys::{Algorithm, Keys};
use super::shared::SharedKeys;
use crate::view::ProviderView;

/// A provider of one policy.
#[derive(Debug)]
pub(super) struct Provider {
    /// "namespace/name".
    pub(super) policy: String,
    pub(super) name: String,
    /// Its policy decides; else it is audited.
    pub(super) enforced: bool,
    /// Of the pod, that its policy selects; none: all.
    ports: Option<Vec<u16>>,
    pub(super) issuer: String,
    audiences: Vec<String>,
    /// For these algorithms, which the policy names, and for no others.
    pub(super) keys: Arc<Keys>,
    pub(super) algorithms: Vec<Algorithm>,
    /// Where the keys are fetched from, in a word. Empty: they are not.
    pub(super) keys_place: String,
    pub(super) places: Vec<Place>,
    pub(super) forward: bool,
    pub(super) claim_headers: Vec<(ClaimName, HeaderName)>,
    /// Seconds that clocks may differ.
    pub(super) skew: i64,
}

/// Where a token stands: behind a prefix in a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) header: HeaderName,
    prefix: String,
}

impl Place {
    fn new(message: &proto::TokenPlace) -> Option<Self> {
        let Some(proto::token_place::Kind::Header(message)) = &message.kind else {
            return None;
        };
        Some(Self {
            header: message.name.parse().ok()?,
            prefix: message.prefix.to_ascii_lowercase(),
        })
    }

    fn bearer() -> Self {
        Self {
            header: AUTHORIZATION,
            prefix: "bearer ".to_owned(),
        }
    }

    /// The token in a header's value, if one can be there. The name of an authentication scheme may be written in any case, and any
    /// number of spaces may follow it (RFC 9110 section 11.4).
    pub(super) fn token<'a>(&self, value: &'a [u8]) -> Option<&'a str> {
        let value = std::str::from_utf8(value).ok()?;
        let (prefix, token) = value.split_at_checked(self.prefix.len())?;
        let token = token.trim();
        (prefix.eq_ignore_ascii_case(&self.prefix) && is_compact(token)).then_some(token)
    }
}

impl Provider {
    pub(super) fn new<'a>(
        policy: &proto::Policy,
        message: &'a proto::Provider,
        enforced: bool,
        keys: &mut SharedKeys<'a>,
    ) -> Self {
        let algorithms = message.algorithms.iter();
        let algorithms: Vec<_> = algorithms.filter_map(|name| Algorithm::named(name)).collect();
        let claim_headers = message.claim_to_headers.iter();
        let claim_headers = claim_headers.filter_map(|header| {
            let name: HeaderName = header.header.parse().ok()?;
            Some((ClaimName::new(&header.claim), name))
        });
        let places = match message.from.is_empty() {
            true => vec![Place::bearer()],
            false => message.from.iter().filter_map(Place::new).collect(),
        };
        let ports = policy.ports.as_ref();
        Self {
            policy: policy.name.clone(),
            name: message.name.clone(),
            enforced,
            ports: ports.map(|ports| ports.tcp().collect()),
            issuer: message.issuer.clone(),
            audiences: message.audiences.clone(),
            keys: keys.of(&policy.name, message, &algorithms),
            algorithms,
            keys_place: message.jwks_place.clone(),
            places,
            forward: message.forward,
            claim_headers: claim_headers.collect(),
            skew: (message.clock_skew_ms / 1000).try_into().unwrap_or(i64::MAX),
        }
    }

    pub(super) fn view(&self) -> ProviderView {
        let headers = self.claim_headers.iter();
        ProviderView {
            policy: self.policy.clone(),
            name: self.name.clone(),
            issuer: self.issuer.clone(),
            audiences: self.audiences.clone(),
            keys: self.keys.len(),
            forward: self.forward,
            headers: headers.map(|(_, header)| header.to_string()).collect(),
        }
    }

    /// Whether a token of one is a token of the other, whatever their keys are by now.
    pub(super) fn is(&self, other: &Self) -> bool {
        (&self.policy, &self.name, &self.issuer, &self.audiences)
            == (&other.policy, &other.name, &other.issuer, &other.audiences)
    }

    pub(super) fn is_for(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }

    pub(super) fn looks_at(&self, port: u16, place: &Place) -> bool {
        self.is_for(port) && self.places.contains(place)
    }

    /// # Errors
    /// When it is for somebody else.
    pub(super) fn is_for_us(&self, claims: &Map<String, Value>) -> Result<(), Failure> {
        self.is_audience(claims).then_some(()).ok_or(Failure::Audience)
    }

    /// RFC 7519 section 4.1.3: a string, or a list of strings.
    fn is_audience(&self, claims: &Map<String, Value>) -> bool {
        let is_one = |value: &Value| self.audiences.iter().any(|audience| value == audience.as_str());
        match claims.get("aud") {
            Some(Value::Array(audiences)) => audiences.iter().any(is_one),
            Some(audience) => is_one(audience),
            None => false,
        }
    }
}
