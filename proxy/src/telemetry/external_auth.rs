//! What an external authorization has come to, as spans and metrics have it.

use std::time::SystemTime;

use super::SpanEvent;

/// Whether a request is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthDecision {
    Admitted,
    Denied,
    /// It is not known, and the request is refused.
    Failed,
}

impl AuthDecision {
    /// The label's values, in the order of the enum.
    pub(super) const NAMES: [&str; 3] = ["admitted", "denied", "failed"];

    /// In the span of the question.
    pub(super) fn event(self, at: SystemTime) -> SpanEvent {
        SpanEvent {
            name: "outrigger.external_auth",
            at,
            attributes: vec![(
                "outrigger.external_auth.decision",
                Self::NAMES[self as usize].to_owned(),
            )],
        }
    }
}
