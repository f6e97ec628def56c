//! What policies say of who calls the app, as logs, spans and metrics have it.

/// What became of a request or a connection by the policies of this pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccessDecision {
    Allowed,
    Denied,
    /// It is let in, and a policy in Audit mode would refuse it.
    Audited,
}

impl AccessDecision {
    /// As it is written in labels, attributes and the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Audited => "audited",
        }
    }
}

/// A decision that is told of each request: only where a policy refuses it, or would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessNote {
    pub decision: AccessDecision,
    /// "namespace/name" of the policy that refuses.
    pub policy: String,
    /// The name of its rule; "" where no rule matched.
    pub rule: String,
    /// What policy and rule alone do not explain: one of a few words, such as "ambiguous-path" and "token-expired". "": nothing.
    pub reason: &'static str,
}
