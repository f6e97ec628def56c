//! What a caller is answered where the Service cannot answer, or who is asked in its place.
//!
//! When that is has to be said: a failure that is not listed stays one. All of it is one field, so that no answer comes with another
//! policy's conditions.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::discovery::{self, Feature};
use crate::policy::access::{is_token, no_header};

/// HTTP statuses that a fallback may stand in for.
pub const FALLBACK_WHEN: RangeInclusive<u16> = 400..=599;
/// gRPC statuses that a fallback may stand in for.
pub const FALLBACK_WHEN_GRPC: RangeInclusive<u16> = 1..=16;
/// HTTP statuses that a fallback may answer with.
pub const FALLBACK_STATUSES: RangeInclusive<u16> = 200..=599;
/// gRPC statuses that a fallback may answer with.
pub const FALLBACK_GRPC_STATUSES: RangeInclusive<u16> = 0..=16;
/// Bytes of a fallback's body.
pub const MAX_FALLBACK_BODY: usize = 4096;
const MAX_HEADERS: usize = 8;
const MAX_STATUSES: usize = 32;
const MAX_BACKENDS: usize = 8;
/// As Gateway API has it.
const MAX_WEIGHT: u32 = 1_000_000;
/// What frames a message, is of one connection, or is gRPC's result.
const NO_HEADERS: [&str; 10] = [
    "connection",
    "content-length",
    "grpc-message",
    "grpc-status",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What is done in place of a failure, when there is no retry left: an answer, or another Service that is asked. `{}`: nothing, whatever an
/// outer policy says. All of it counts as one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.when) == (has(self.response) || has(self.backendRefs))",
    "message": "say when, and the response or backendRefs; or none of them, for no fallback"
}, {
    "rule": "!(has(self.response) && has(self.backendRefs))",
    "message": "say the response or backendRefs"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FallbackSpec {
    /// In place of which failures: any of these.
    pub when: Option<FallbackWhenSpec>,
    /// The answer.
    pub response: Option<FallbackResponseSpec>,
    /// Who is asked in its place, one of them by weight: only where the Service has not got the request, or the request may be sent twice.
    #[schemars(length(min = 1, max = 8))]
    pub backend_refs: Option<Vec<FallbackBackendSpec>>,
}

/// A Service (BackendRef of Gateway API).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FallbackBackendSpec {
    /// Empty, the core group.
    #[schemars(length(max = 0))]
    pub group: Option<String>,
    /// `Service`, the default.
    #[schemars(regex(pattern = "^Service$"))]
    pub kind: Option<String>,
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Default: the policy's own.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Its port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Its share: 0 to 1,000,000, default 1. 0: none.
    #[schemars(range(max = 1_000_000))]
    pub weight: Option<u32>,
}

/// Failures, as the caller would see them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("minProperties" = 1))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FallbackWhenSpec {
    /// What a sidecar says.
    #[schemars(length(min = 1, max = 3))]
    pub reasons: Option<Vec<FallbackReason>>,
    /// Statuses, 400 to 599, whoever answers with them: an app, or a sidecar.
    #[schemars(length(min = 1, max = 32), inner(range(min = 400, max = 599)))]
    pub statuses: Option<Vec<u16>>,
    /// gRPC statuses, 1 to 16, in the head of a response.
    #[schemars(length(min = 1, max = 16), inner(range(min = 1, max = 16)))]
    pub grpc_statuses: Option<Vec<u16>>,
}

/// A kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum FallbackReason {
    /// Nobody is there: `no-endpoints`.
    NoEndpoints,
    /// A limit of the caller's or the called sidecar refuses it: `overloaded`.
    Overloaded,
    /// There was no response in time: `request-timeout`, `attempt-timeout`, `connect-timeout`, `idle-timeout`.
    Timeout,
}

/// An answer. Say `status`, `grpcStatus`, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.status) || has(self.grpcStatus)",
    "message": "say status, grpcStatus, or both"
}, {
    "rule": "!has(self.body) || has(self.status) && !(self.status in [204, 205, 304])",
    "message": "a body is of a status that has one"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FallbackResponseSpec {
    /// 200 to 599. From 400 on gRPC calls get the gRPC status that stands for it, where `grpcStatus` is not said. Without it, the
    /// fallback is for gRPC calls alone.
    #[schemars(range(min = 200, max = 599))]
    pub status: Option<u16>,
    /// 0 to 16, without a message. Without it, and with a `status` below 400, the fallback is not for gRPC calls.
    #[schemars(range(min = 0, max = 16))]
    pub grpc_status: Option<u16>,
    /// Headers, of gRPC calls too. `Content-Type` is text/plain where it is not said.
    #[schemars(length(max = 8))]
    pub headers: Option<Vec<FallbackHeaderSpec>>,
    /// At most 4 KiB; not for gRPC calls.
    #[schemars(length(max = 4096))]
    pub body: Option<String>,
}

/// A header of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FallbackHeaderSpec {
    /// Its name.
    #[schemars(length(max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
    /// Its value.
    #[schemars(length(max = 1024), regex(pattern = r"^[^\x00-\x08\x0A-\x1F\x7F]*$"))]
    pub value: String,
}

impl FallbackSpec {
    pub(super) fn to_proto(&self, errors: &mut Vec<String>) -> discovery::Fallback {
        let backends = self.backend_refs.as_deref();
        if self.when.is_some() != (self.response.is_some() || backends.is_some()) {
            let say = "say when, and the response or backendRefs; or none of them, for no fallback";
            errors.push(format!("fallback: {say}"));
        }
        if self.response.is_some() && backends.is_some() {
            errors.push("fallback: say the response or backendRefs".to_owned());
        }
        if backends.is_some_and(|all| !(1..=MAX_BACKENDS).contains(&all.len())) {
            errors.push(format!("fallback.backendRefs: name 1 to {MAX_BACKENDS}"));
        }
        let backends = backends.unwrap_or_default().iter().enumerate();
        discovery::Fallback {
            when: self.when.as_ref().map(|when| when.to_proto(errors)),
            response: self.response.as_ref().map(|response| response.to_proto(errors)),
            backends: backends.map(|(n, backend)| backend.to_proto(n, errors)).collect(),
        }
    }
}

impl FallbackBackendSpec {
    fn to_proto(&self, n: usize, errors: &mut Vec<String>) -> discovery::FallbackBackend {
        let mut wrong = |field: &str, why: &str| errors.push(format!("fallback.backendRefs[{n}].{field}: {why}"));
        if self.group.as_deref().is_some_and(|group| !group.is_empty()) {
            wrong("group", "it is not empty, and only Services can be asked");
        }
        if self.kind.as_deref().is_some_and(|kind| kind != "Service") {
            wrong("kind", "only Services can be asked");
        }
        if self.name.is_empty() {
            wrong("name", "it is empty");
        }
        if self.port == 0 {
            wrong("port", "0 is none");
        }
        let weight = self.weight.unwrap_or(1);
        if weight > MAX_WEIGHT {
            wrong("weight", &format!("{weight} is more than {MAX_WEIGHT}"));
        }
        discovery::FallbackBackend {
            namespace: self.namespace.clone().unwrap_or_default(),
            name: self.name.clone(),
            port: self.port.into(),
            weight,
            backend: None,
        }
    }
}

impl FallbackWhenSpec {
    fn to_proto(&self, errors: &mut Vec<String>) -> discovery::FallbackWhen {
        if *self == Self::default() {
            errors.push("fallback.when: say reasons, statuses or grpcStatuses".to_owned());
        }
        let reasons = self.reasons.as_deref();
        if reasons.is_some_and(<[_]>::is_empty) {
            errors.push("fallback.when.reasons: it is empty".to_owned());
        }
        let has = |reason| reasons.is_some_and(|all| all.contains(&reason));
        let mut of = |field: &str, statuses: &Option<Vec<u16>>, range: RangeInclusive<u16>| {
            let (least, most) = range.clone().into_inner();
            if statuses
                .as_ref()
                .is_some_and(|all| all.is_empty() || all.len() > MAX_STATUSES)
            {
                errors.push(format!("fallback.when.{field}: name 1 to {MAX_STATUSES}"));
            }
            let statuses = statuses.as_deref().unwrap_or_default();
            for status in statuses.iter().filter(|status| !range.contains(status)) {
                errors.push(format!(
                    "fallback.when.{field}: {status} is no failure, {least} to {most}"
                ));
            }
            statuses.iter().map(|status| u32::from(*status)).collect()
        };
        discovery::FallbackWhen {
            no_endpoints: has(FallbackReason::NoEndpoints),
            overloaded: has(FallbackReason::Overloaded),
            timeout: has(FallbackReason::Timeout),
            statuses: of("statuses", &self.statuses, FALLBACK_WHEN),
            grpc_statuses: of("grpcStatuses", &self.grpc_statuses, FALLBACK_WHEN_GRPC),
        }
    }
}

impl FallbackResponseSpec {
    fn to_proto(&self, errors: &mut Vec<String>) -> discovery::FallbackResponse {
        let at = "fallback.response";
        if self.status.is_none() && self.grpc_status.is_none() {
            errors.push(format!("{at}: say status, grpcStatus, or both"));
        }
        for (field, status, range) in [
            ("status", self.status, FALLBACK_STATUSES),
            ("grpcStatus", self.grpc_status, FALLBACK_GRPC_STATUSES),
        ] {
            if let Some(status) = status.filter(|status| !range.contains(status)) {
                let (least, most) = range.into_inner();
                errors.push(format!("{at}.{field}: {status} is not {least} to {most}"));
            }
        }
        let body = self.body.as_deref().unwrap_or_default();
        if body.len() > MAX_FALLBACK_BODY {
            errors.push(format!("{at}.body: it is longer than {MAX_FALLBACK_BODY} bytes"));
        }
        if self.body.is_some() && matches!(self.status, None | Some(204 | 205 | 304)) {
            errors.push(format!("{at}.body: a body is of a status that has one"));
        }
        let headers = self.headers.as_deref().unwrap_or_default();
        if headers.len() > MAX_HEADERS {
            errors.push(format!("{at}.headers: {} are more than {MAX_HEADERS}", headers.len()));
        }
        for (n, header) in headers.iter().enumerate() {
            let name = header.name.to_ascii_lowercase();
            if NO_HEADERS.contains(&name.as_str()) {
                let why = format!("{:?} is not up to a policy", header.name);
                errors.push(format!("{at}.headers[{n}].name: {why}"));
            } else if !is_token(&name) || no_header(&name).is_some() {
                errors.push(format!("{at}.headers[{n}].name: {:?} cannot be one", header.name));
            }
            // RFC 9110 section 5.5.
            let is_control = |b: u8| b < b' ' && b != b'\t' || b == 0x7f;
            if header.value.bytes().any(is_control) {
                let why = format!("{:?} has control characters", header.value);
                errors.push(format!("{at}.headers[{n}].value: {why}"));
            }
        }
        let headers = headers.iter().map(|header| discovery::Header {
            name: header.name.clone(),
            value: header.value.clone(),
        });
        discovery::FallbackResponse {
            http_status: self.status.unwrap_or_default().into(),
            grpc_status: self.grpc_status.map(u32::from),
            headers: headers.collect(),
            body: body.to_owned(),
        }
    }
}

/// A sidecar that does not know fallbacks answers with the failure.
pub(super) fn needs(policy: &discovery::Policy) -> Option<(Feature, &'static str)> {
    let fallback = policy.fallback.as_ref().filter(|fallback| fallback.when.is_some())?;
    Some(match fallback.backends.is_empty() {
        true => (Feature::Fallback, "fallback"),
        false => (Feature::FallbackBackends, "fallback.backendRefs"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{TrafficPolicySpec, needs};
    use crate::discovery::Policy;

    fn policy(fallback: &str) -> Result<Policy, Vec<String>> {
        let spec: TrafficPolicySpec = serde_saphyr::from_str(&format!("fallback: {fallback}")).unwrap();
        spec.to_proto()
    }

    #[test]
    fn mistakes_have_their_path() {
        let when = "when: {statuses: [503]}";
        let of = |response: &str| format!("{{{when}, response: {response}}}");
        let to = |backend: &str| format!("{{{when}, backendRefs: [{{{backend}}}]}}");
        let long = format!("{{status: 200, body: {}}}", "é".repeat(2049));
        let many = ["{name: a, value: b}"; 9].join(", ");
        for (fallback, path) in [
            ("{when: {statuses: [503]}}", "fallback: say when"),
            ("{response: {status: 200}}", "fallback: say when"),
            ("{backendRefs: [{name: a, port: 1}]}", "fallback: say when"),
            (
                &format!("{{{when}, response: {{status: 200}}, backendRefs: [{{name: a, port: 1}}]}}"),
                "fallback: say the response or",
            ),
            (
                &format!("{{{when}, backendRefs: []}}"),
                "fallback.backendRefs: name 1 to 8",
            ),
            (
                &format!("{{{when}, backendRefs: [{}]}}", ["{name: a, port: 1}"; 9].join(", ")),
                "fallback.backendRefs: name 1 to 8",
            ),
            (&to("group: apps, name: a, port: 1"), "fallback.backendRefs[0].group"),
            (&to("kind: Pod, name: a, port: 1"), "fallback.backendRefs[0].kind"),
            (&to("name: '', port: 1"), "fallback.backendRefs[0].name"),
            (&to("name: a, port: 0"), "fallback.backendRefs[0].port"),
            (
                &to("name: a, port: 1, weight: 1000001"),
                "fallback.backendRefs[0].weight",
            ),
            ("{when: {}, response: {status: 200}}", "fallback.when: say"),
            (
                "{when: {reasons: []}, response: {status: 200}}",
                "fallback.when.reasons",
            ),
            (
                "{when: {statuses: []}, response: {status: 200}}",
                "fallback.when.statuses",
            ),
            (
                "{when: {statuses: [200]}, response: {status: 200}}",
                "fallback.when.statuses",
            ),
            (
                "{when: {grpcStatuses: [0]}, response: {status: 200}}",
                "fallback.when.grpcStatuses",
            ),
            (&of("{}"), "fallback.response: say"),
            (&of("{status: 101}"), "fallback.response.status"),
            (&of("{grpcStatus: 17}"), "fallback.response.grpcStatus"),
            (&of("{status: 204, body: x}"), "fallback.response.body"),
            (&of("{grpcStatus: 14, body: x}"), "fallback.response.body"),
            (&of(&long), "fallback.response.body"),
            (
                &of(&format!("{{status: 200, headers: [{many}]}}")),
                "fallback.response.headers",
            ),
            (
                &of("{status: 200, headers: [{name: Content-Length, value: '1'}]}"),
                "fallback.response.headers[0].name",
            ),
            (
                &of("{status: 200, headers: [{name: outrigger-fault, value: delay}]}"),
                "fallback.response.headers[0].name",
            ),
            (
                &of("{status: 200, headers: [{name: a, value: \"b\\u0001\"}]}"),
                "fallback.response.headers[0].value",
            ),
        ] {
            let errors = policy(fallback).unwrap_err();
            assert!(
                errors.len() == 1 && errors[0].starts_with(path),
                "{fallback}: {errors:?}"
            );
        }
    }

    #[test]
    fn it_is_one_field_and_an_empty_one_says_that_there_is_none() {
        let outer = policy("{when: {reasons: [NoEndpoints]}, response: {status: 200, body: later}}").unwrap();
        let nearer = policy("{when: {statuses: [503]}, response: {grpcStatus: 14}}").unwrap();
        let none = policy("{}").unwrap();
        let needed = |policy: &Policy| needs(policy).into_iter().map(|(_, field)| field).collect::<Vec<_>>();
        assert_eq!((needed(&outer), needed(&none)), (vec!["fallback"], vec![]));
        let asks = policy("{when: {statuses: [503]}, backendRefs: [{name: a, port: 80}]}").unwrap();
        assert_eq!(needed(&asks), ["fallback.backendRefs"]);
        for (nearer, outer, merged) in [
            (&nearer, &outer, &nearer),
            (&none, &outer, &none),
            (&outer, &none, &outer),
            (&Policy::default(), &outer, &outer),
            (&outer, &Policy::default(), &outer),
        ] {
            assert_eq!(nearer.over(outer), *merged);
        }
    }
}
