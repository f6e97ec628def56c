//! How long a request may take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::millis;
use crate::discovery;
use crate::duration;

/// Time limits; "0s" is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TimeoutSpec {
    /// The whole request with all its attempts, to the last byte of the response. Default: none.
    #[schemars(regex(pattern = duration::PATTERN))]
    pub request: Option<String>,
    /// One attempt. Default: none.
    #[schemars(regex(pattern = duration::PATTERN))]
    pub backend_request: Option<String>,
    /// A TCP connect and TLS handshake. Default 1s.
    #[schemars(regex(pattern = duration::PATTERN))]
    pub connect: Option<String>,
}

impl TimeoutSpec {
    pub(super) fn fill(&self, policy: &mut discovery::Policy, errors: &mut Vec<String>) {
        let mut millis = |field: &str, text: &Option<String>| millis(field, text.as_deref(), errors);
        policy.request_timeout_ms = millis("timeouts.request", &self.request);
        policy.backend_request_timeout_ms = millis("timeouts.backendRequest", &self.backend_request);
        policy.connect_timeout_ms = millis("timeouts.connect", &self.connect);
    }
}
