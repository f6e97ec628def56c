//! What a request was answered with in place of a failure, as logs, spans and metrics have it.

use std::time::SystemTime;

use http::HeaderValue;
use outrigger_proxy_transport::error::Reason;

use super::SpanEvent;

/// The failure that a fallback has stood in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallbackCause {
    /// A sidecar's.
    Reason(Reason),
    Status(u16),
    Grpc(u16),
}

/// A request that has had a fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FallbackNote {
    pub at: SystemTime,
    pub cause: FallbackCause,
}

impl FallbackCause {
    /// As it is written in the response, attributes and the access log: a reason's code, "status-503" or "grpc-status-14".
    pub fn text(self) -> String {
        match self {
            Self::Reason(reason) => reason.code().to_owned(),
            Self::Status(status) => format!("status-{status}"),
            Self::Grpc(status) => format!("grpc-status-{status}"),
        }
    }
}

impl FallbackNote {
    /// The value of the response's mark. `None` is not reached: codes and numbers are values.
    pub fn mark(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.cause.text()).ok()
    }

    /// In the span of the last attempt, or of the request where there is none.
    pub(super) fn event(&self) -> SpanEvent {
        SpanEvent {
            name: "outrigger.fallback",
            at: self.at,
            attributes: vec![("outrigger.fallback", self.cause.text())],
        }
    }
}
