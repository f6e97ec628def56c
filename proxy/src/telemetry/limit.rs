//! What policies say of how much the app gets, as logs, spans and metrics have it.

/// What became of a request by a limit of this pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitDecision {
    Admitted,
    Limited,
    /// It is let through, and a policy that is a shadow would refuse it.
    Shadow,
    /// It is let through, as far as this limit goes, without the word of its store, which does not answer.
    Fallback,
    /// It is refused, because the store does not answer.
    Unavailable,
}

impl LimitDecision {
    /// As it is written in labels, attributes and the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Limited => "limited",
            Self::Shadow => "shadow",
            Self::Fallback => "fallback",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A decision that is told of each request: only where a limit refuses it, or would, or is without its store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitNote {
    pub decision: LimitDecision,
    /// "namespace/name" of the policy.
    pub policy: String,
    /// The name of its limit.
    pub limit: String,
}
