//! What was done to a request on purpose, as logs, spans and metrics have it.

use std::time::{Duration, SystemTime};

use http::HeaderValue;

use super::SpanEvent;

/// A fault that a request has. It stands in no metric of the Service then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultNote {
    /// When it was decided.
    pub at: SystemTime,
    pub delay: Option<Duration>,
    /// It is answered in place of a server.
    pub abort: bool,
}

/// What is counted of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    Delay,
    Abort,
}

impl FaultKind {
    /// The label's values, in the order of the enum.
    pub(super) const NAMES: [&str; 2] = ["delay", "abort"];
}

impl FaultNote {
    /// As it is written in the response, attributes and the access log.
    pub fn as_str(&self) -> &'static str {
        match (self.delay, self.abort) {
            (Some(_), true) => "delay, abort",
            (Some(_), false) => "delay",
            (None, _) => "abort",
        }
    }

    /// The value of the response's mark.
    pub fn mark(&self) -> HeaderValue {
        HeaderValue::from_static(self.as_str())
    }

    /// In the span of the first attempt, or of the request where there is none.
    pub(super) fn event(&self) -> SpanEvent {
        let delay = self.delay.map(|delay| ("outrigger.fault.delay", format!("{delay:?}")));
        let kind = ("outrigger.fault", self.as_str().to_owned());
        SpanEvent {
            name: "outrigger.fault",
            at: self.at,
            attributes: [kind].into_iter().chain(delay).collect(),
        }
    }

    pub(super) fn kinds(&self) -> impl Iterator<Item = FaultKind> {
        let delay = self.delay.map(|_| FaultKind::Delay);
        delay.into_iter().chain(self.abort.then_some(FaultKind::Abort))
    }
}
