//! HTTPRoute, GRPCRoute, TLSRoute and TCPRoute as they are in the API, of whichever version and channel is installed: every field may be
//! absent, fields that are not known are passed over, and what is an enumeration there is a string here.

use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RouteSpec {
    pub(super) parent_refs: Vec<ParentRef>,
    /// Of a TLSRoute.
    pub(super) hostnames: Vec<String>,
    pub(super) rules: Vec<RuleSpec>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ParentRef {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) section_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RuleSpec {
    pub(super) name: Option<String>,
    pub(super) matches: Vec<MatchSpec>,
    pub(super) filters: Vec<FilterSpec>,
    pub(super) backend_refs: Vec<BackendRefSpec>,
    pub(super) timeouts: TimeoutsSpec,
    pub(super) retry: Option<RetrySpec>,
    pub(super) session_persistence: Option<SessionPersistenceSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct MatchSpec {
    pub(super) path: Option<ValueSpec>,
    pub(super) headers: Vec<NamedSpec>,
    pub(super) query_params: Vec<NamedSpec>,
    /// A string of an HTTPRoute, a [`GrpcMethodSpec`] of a GRPCRoute.
    pub(super) method: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ValueSpec {
    #[serde(rename = "type")]
    pub(super) type_: Option<String>,
    pub(super) value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NamedSpec {
    #[serde(rename = "type")]
    pub(super) type_: Option<String>,
    pub(super) name: String,
    pub(super) value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct GrpcMethodSpec {
    #[serde(rename = "type")]
    pub(super) type_: Option<String>,
    pub(super) service: Option<String>,
    pub(super) method: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct FilterSpec {
    #[serde(rename = "type")]
    pub(super) type_: String,
    pub(super) request_header_modifier: Option<HeaderModifierSpec>,
    pub(super) response_header_modifier: Option<HeaderModifierSpec>,
    pub(super) url_rewrite: Option<RewriteSpec>,
    pub(super) request_redirect: Option<RedirectSpec>,
    pub(super) request_mirror: Option<MirrorSpec>,
    pub(super) cors: Option<CorsSpec>,
    pub(super) external_auth: Option<ExternalAuthSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HeaderModifierSpec {
    pub(super) set: Vec<NamedSpec>,
    pub(super) add: Vec<NamedSpec>,
    pub(super) remove: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RewriteSpec {
    pub(super) hostname: Option<String>,
    pub(super) path: Option<PathModifierSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PathModifierSpec {
    #[serde(rename = "type")]
    pub(super) type_: String,
    pub(super) replace_full_path: Option<String>,
    pub(super) replace_prefix_match: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RedirectSpec {
    pub(super) scheme: Option<String>,
    pub(super) hostname: Option<String>,
    pub(super) path: Option<PathModifierSpec>,
    pub(super) port: Option<u16>,
    pub(super) status_code: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct MirrorSpec {
    pub(super) backend_ref: BackendRefSpec,
    pub(super) percent: Option<u32>,
    pub(super) fraction: Option<FractionSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct CorsSpec {
    pub(super) allow_origins: Vec<String>,
    pub(super) allow_credentials: bool,
    pub(super) allow_methods: Vec<String>,
    pub(super) allow_headers: Vec<String>,
    pub(super) expose_headers: Vec<String>,
    pub(super) max_age: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ExternalAuthSpec {
    pub(super) protocol: String,
    pub(super) backend_ref: Option<BackendRefSpec>,
    pub(super) http: Option<HttpAuthSpec>,
    pub(super) grpc: Option<GrpcAuthSpec>,
    pub(super) forward_body: Option<ForwardBodySpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct HttpAuthSpec {
    pub(super) path: String,
    pub(super) allowed_headers: Vec<String>,
    pub(super) allowed_response_headers: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct GrpcAuthSpec {
    pub(super) allowed_headers: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ForwardBodySpec {
    pub(super) max_size: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FractionSpec {
    pub(super) numerator: u32,
    pub(super) denominator: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct BackendRefSpec {
    pub(super) group: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) port: Option<u16>,
    pub(super) weight: Option<u32>,
    pub(super) filters: Vec<FilterSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct TimeoutsSpec {
    pub(super) request: Option<String>,
    pub(super) backend_request: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RetrySpec {
    pub(super) codes: Option<Vec<u32>>,
    pub(super) attempts: Option<u32>,
    pub(super) backoff: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SessionPersistenceSpec {
    #[serde(rename = "type")]
    pub(super) type_: Option<String>,
    pub(super) session_name: Option<String>,
    pub(super) absolute_timeout: Option<String>,
    pub(super) idle_timeout: Option<String>,
    pub(super) cookie_config: Option<CookieConfigSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct CookieConfigSpec {
    pub(super) lifetime_type: Option<String>,
}
