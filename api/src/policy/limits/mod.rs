//! `RateLimitPolicy`: how much a pod takes, enforced by the pod's own sidecar. The same text is used in the CRD and, without
//! `targetRefs`, in a standalone sidecar's file. What a limit says of requests and of callers is what an AccessPolicy says of them.
//!
//! A limit is no lock. So what is faulty makes nothing stricter: [`RateLimitPolicySpec::to_wire`] gives all mistakes, and a policy that
//! has one is not in force.
//!
//! The lengths of lists and texts bound what the API server estimates for the rules in CEL: there are at most as many sources and paths as in
//! an AccessPolicy.

mod global;
mod reader;
#[cfg(test)]
mod tests;
mod unresolved;

use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::global::{GlobalSpec, ON_FAILURE, TIMEOUT};
pub use self::unresolved::UnresolvedLimits;
use super::access::{AccessTargetRef, ClaimSpec, HttpAttributesSpec, SourceSpec};
use crate::duration;

/// Of a rate's `interval`.
pub const INTERVAL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
/// Of a rate's `requests`, and of `burst`.
pub const REQUESTS: RangeInclusive<u32> = 1..=1_000_000;
/// Of the numbers of `connections`.
pub const CONNECTIONS: RangeInclusive<u32> = 1..=1_000_000;
/// Of `cost.max`.
pub const COST: RangeInclusive<u32> = 1..=10_000;
/// Of `keys.max`.
pub const KEYS: RangeInclusive<u32> = 1..=100_000;
/// Values of `mode`.
pub const MODES: [&str; 2] = ["Enforce", "Shadow"];
/// Values of `scope`.
pub const SCOPES: [&str; 3] = ["Pod", "Service", "Global"];
/// Values of the `type` of a part of `per`.
pub const PARTS: [&str; 5] = ["Identity", "Namespace", "Header", "Address", "Claim"];
/// Values of `keys.overflow`.
pub const OVERFLOWS: [&str; 2] = ["Shared", "Reject"];
/// Values of `response.headers`.
pub const HEADERS: [&str; 3] = ["Off", "IETF", "Legacy"];

/// How much pods take. All policies that select a pod hold together: all limits that a request matches are tested, and it is let through,
/// and takes its tokens, only where all admit it. Otherwise it is answered 429.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "outrigger.dev",
        version = "v1alpha1",
        kind = "RateLimitPolicy",
        plural = "ratelimitpolicies",
        namespaced,
        status = "super::PolicyStatus",
        category = "outrigger",
        shortname = "ratepol",
        printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.mode"}"#,
        printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type=='Accepted')].status"}"#,
        printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Accepted')].reason"}"#,
        printcolumn = r#"{"name":"Programmed","type":"string","jsonPath":".status.conditions[?(@.type=='Programmed')].status"}"#,
        printcolumn = r#"{"name":"Programmed-Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Programmed')].reason"}"#,
        printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
    )
)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.targetRefs)",
        "message": "targetRefs: name at least one object that the policy holds for"
    },
    {
        "rule": "has(self.limits) || has(self.connections)",
        "message": "limits: name at least one limit, or limit connections"
    },
    {
        "rule": "has(self.global) == (has(self.limits) && self.limits.exists(limit, limit.scope == 'Global'))",
        "message": "global: limits of the scope Global need it, and no others have it"
    }
]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitPolicySpec {
    /// The pods that the policy holds for: those of its namespace, those of Services, or those with some labels. Outrigger's own namespace
    /// stands for the whole mesh.
    // In a standalone sidecar's file there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8))]
    pub target_refs: Vec<AccessTargetRef>,
    /// `Enforce` (default), or `Shadow`: what the policy would refuse is counted and logged, and nothing else comes of it.
    #[schemars(extend("enum" = ["Enforce", "Shadow"]))]
    pub mode: Option<String>,
    /// Of requests: all of them hold. Default: none.
    #[schemars(length(min = 1, max = 16))]
    pub limits: Option<Vec<LimitSpec>>,
    /// Of connections that carry bytes: TCP, and TLS that the app itself ends. Default: they are not limited.
    pub connections: Option<ConnectionsSpec>,
    /// Where limits of the scope `Global` are counted: they need it, and no others have it.
    pub global: Option<GlobalSpec>,
    /// What is said to callers.
    pub response: Option<LimitResponseSpec>,
}

/// How many connections a pod takes that carry bytes, and not HTTP: each pod by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("minProperties" = 1))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionsSpec {
    /// How many are open, of all callers together, 1 to 1,000,000. Default: any number.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max: Option<u32>,
    /// How many are open of one SPIFFE ID, 1 to 1,000,000; all callers who have proven none are one. Default: any number.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub per_identity: Option<u32>,
    /// How many new ones a second, and at once, 1 to 1,000,000: a token bucket. Default: any number.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub new_per_second: Option<u32>,
}

/// How many requests, of which, and of whom.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.keys) || has(self.per)",
    "message": "keys: without `per` there is one bucket"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitSpec {
    /// Stands in log, span, metric and, where they are on, in headers of responses. Default: the limit's position, from "0".
    #[schemars(regex(pattern = "^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"))]
    pub name: Option<String>,
    /// Which requests: any of them. Default: all.
    #[schemars(length(min = 1, max = 4))]
    pub matches: Option<Vec<LimitMatchSpec>>,
    /// What has a bucket of its own: all of the entries together. Default: one bucket for all.
    #[schemars(length(min = 1, max = 4))]
    pub per: Option<Vec<KeyPartSpec>>,
    /// How many.
    pub rate: RateSpec,
    /// How many at once, 1 to 1,000,000. Default: `rate.requests`, so that at most twice as many come in one interval.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
    /// `Pod`: each pod takes so many. `Service`: all pods that the policy selects take so many together, each its share, as long as they
    /// are called evenly: rate and burst are divided by the number of those that are ready. `Global`: all pods that the policy selects take so
    /// many together, however they are called: they are counted in the store that `global` names.
    #[schemars(extend("enum" = ["Pod", "Service", "Global"]))]
    pub scope: String,
    /// Another rate for some callers: the first that is about the caller.
    #[schemars(length(min = 1, max = 8))]
    pub overrides: Option<Vec<OverrideSpec>>,
    /// How many tokens a request takes. Default: one.
    pub cost: Option<CostSpec>,
    /// How many buckets there are.
    pub keys: Option<KeysSpec>,
}

/// A request and its caller: all that is said has to be so.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("minProperties" = 1))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitMatchSpec {
    /// Who calls: any of them. Where nothing verifies the tokens of one of the type `JWT`, it is whoever calls. Default: whoever it is.
    #[schemars(length(min = 1, max = 8))]
    pub sources: Option<Vec<SourceSpec<LimitJwtSpec>>>,
    /// Which requests: any of them. A path is met by any of its readings, so that no way of writing it goes round a limit. Default: all.
    #[schemars(length(min = 1, max = 8))]
    pub http_attributes: Option<Vec<HttpAttributesSpec>>,
}

/// A part of what a bucket is of: `type`, and the field of that type, if it has one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(self.type == 'Header') == has(self.header) && (self.type == 'Claim') == has(self.claim) && \
             (!has(self.address) || self.type == 'Address')",
    "message": "the field of the part's type, and no other one, is set; Header and Claim need it"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyPartSpec {
    /// `Identity`: the SPIFFE ID that the peer has proven; all without one share a bucket. `Namespace`: the namespace in it. `Header`: a
    /// header's value, which a caller may choose; all without it share a bucket. `Address`: the TCP peer's, never that of a header. `Claim`: a
    /// claim of a verified token; all without it share a bucket.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["Identity", "Namespace", "Header", "Address", "Claim"]))]
    pub type_: String,
    /// Of the type Header.
    pub header: Option<KeyHeaderSpec>,
    /// Of the type Address: by networks, and not by single addresses.
    pub address: Option<KeyAddressSpec>,
    /// Of the type Claim.
    pub claim: Option<KeyClaimSpec>,
}

/// A claim by whose value requests are told apart. Where nothing verifies such tokens, because the policy or the provider is not there, or does
/// not select the pod, all requests share a bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyClaimSpec {
    /// The AccessPolicy that has the provider: "name" in the policy's own namespace, or "namespace/name".
    #[schemars(
        length(min = 1, max = 317),
        regex(pattern = "^([a-z0-9-]{1,63}/)?[a-z0-9.-]{1,253}$")
    )]
    pub access_policy: String,
    /// One of its `jwt.providers`.
    #[schemars(length(min = 1, max = 63))]
    pub provider: String,
    /// A claim at the top ("sub"), or, where it begins with "/", a JSON Pointer into all of them.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A header by whose value requests are told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyHeaderSpec {
    /// Its name, in any case.
    #[schemars(length(max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
}

/// Of a verified token: all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitJwtSpec {
    /// The AccessPolicy that has the provider: "name" in the policy's own namespace, or "namespace/name".
    #[schemars(
        length(min = 1, max = 317),
        regex(pattern = "^([a-z0-9-]{1,63}/)?[a-z0-9.-]{1,253}$")
    )]
    pub access_policy: String,
    /// One of its `jwt.providers`: who has issued it.
    #[schemars(length(min = 1, max = 63))]
    pub provider: String,
    /// All of them.
    #[schemars(length(min = 1, max = 8))]
    pub claims: Option<Vec<ClaimSpec>>,
    /// Of its claim `scope` or `scp`: all of them.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 253)))]
    pub scopes: Option<Vec<String>>,
}

/// Networks by which addresses are told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyAddressSpec {
    /// Bits of an IPv4 address, 1 to 32. Default 32.
    #[schemars(range(min = 1, max = 32))]
    pub v4_prefix: Option<u32>,
    /// Bits of an IPv6 address, 1 to 128. Default 64: what one host has as a rule.
    #[schemars(range(min = 1, max = 128))]
    pub v6_prefix: Option<u32>,
}

/// So many in a time, evenly: a token bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateSpec {
    /// How many, 1 to 1,000,000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// In which time, 1s to 24h.
    #[schemars(
        length(max = 28),
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) >= duration('1s') && duration(self) <= duration('24h')",
            "message": "the interval is 1s to 24h"
        }])
    )]
    pub interval: String,
}

/// Another rate for some callers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OverrideSpec {
    /// Who calls: any of them.
    #[schemars(required, length(min = 1, max = 8))]
    pub sources: Option<Vec<SourceSpec<LimitJwtSpec>>>,
    /// How many.
    pub rate: RateSpec,
    /// How many at once, 1 to 1,000,000. Default: `rate.requests`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
}

/// What a request takes, by a header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CostSpec {
    /// Its name. A request takes as many tokens as the number in it says, and at least one; one where it has none, or no number. Who calls may
    /// choose it, unless something before the pod sets it.
    #[schemars(length(max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub header: String,
    /// The most that a request takes, 1 to 10,000. More than the burst is the whole burst.
    #[schemars(range(min = 1, max = 10_000))]
    pub max: u32,
}

/// Bounds what a sidecar keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeysSpec {
    /// Buckets, 1 to 100,000. Default 10,000. One that is full again goes for a new one.
    #[schemars(range(min = 1, max = 100_000))]
    pub max: Option<u32>,
    /// What becomes of a key for which there is no bucket. `Shared` (default): all of these share one. `Reject`: it is refused.
    #[schemars(extend("enum" = ["Shared", "Reject"]))]
    pub overflow: Option<String>,
}

/// What is said to callers. `Retry-After` with a 429 always is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitResponseSpec {
    /// Of the limit that is nearest to its end. `Off` (default). `IETF`: RateLimit and RateLimit-Policy
    /// (draft-ietf-httpapi-ratelimit-headers-11). `Legacy`: X-RateLimit-Limit, X-RateLimit-Remaining and X-RateLimit-Reset.
    #[schemars(extend("enum" = ["Off", "IETF", "Legacy"]))]
    pub headers: Option<String>,
}
