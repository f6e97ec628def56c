//! Claims by which requests are told apart, where nobody is let in or refused by them.

use std::fmt;
use std::hash::{Hash, Hasher};

use serde_json::Value;

use super::{ClaimName, Tokens};

/// A claim of a verified token of one provider.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClaimKey {
    policy: Box<str>,
    provider: Box<str>,
    name: ClaimName,
}

impl ClaimKey {
    /// Of the provider of a policy ("namespace/name"). The claim is one at the top, or, where it begins with "/", meant by a JSON Pointer.
    pub fn new(policy: &str, provider: &str, name: &str) -> Self {
        Self {
            policy: policy.into(),
            provider: provider.into(),
            name: ClaimName::new(name),
        }
    }

    /// Writes the claim's value. Where there is no such token, or no such claim in it, what is written is the same; and `null` is none.
    pub fn write(&self, tokens: &Tokens, hasher: &mut impl Hasher) {
        let claims = tokens.of_provider(&self.policy, &self.provider).flatten();
        let value = claims.and_then(|claims| claims.find(&self.name));
        value.filter(|value| !matches!(value, Value::Null)).hash(hasher);
    }
}

impl fmt::Display for ClaimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} of {}", self.name, self.provider, self.policy)
    }
}
