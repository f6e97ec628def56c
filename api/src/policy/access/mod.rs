//! `AccessPolicy`: who may call a pod, enforced by the pod's own sidecar. The same text is used in the CRD and, without
//! `targetRefs`, in a standalone sidecar's file. The names are those of Gateway API's GEP-3779 where it has one.
//!
//! No field widens a decision by its absence, and what is faulty never counts as absent: [`AccessPolicySpec::to_wire`] says what becomes of it.
//!
//! The lengths of lists and texts bound what the API server estimates for the rules in CEL, and what a sidecar has to keep.

mod http;
mod jwt;
mod reader;
#[cfg(test)]
mod tests;
mod unresolved;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

pub use self::jwt::*;
pub(super) use self::reader::{Reader, TokenParts, TokenSpec, is_token, no_header};
pub use self::unresolved::{Cluster, Unresolved};
pub(super) use self::unresolved::{Condition, Source};
use super::selector::LabelSelector;

/// Values of `action`.
pub const ACTIONS: [&str; 2] = ["Allow", "Deny"];
/// Values of `mode`.
pub const MODES: [&str; 2] = ["Enforce", "Audit"];
/// Values of a source's `type`.
pub const SOURCES: [&str; 7] = [
    "Any",
    "ServiceAccount",
    "SPIFFE",
    "Namespace",
    "Address",
    "JWT",
    "Unauthenticated",
];

/// Who may call. All policies that select a pod hold together. Of those that select a port: what a Deny rule matches is refused; else
/// what an Allow rule matches is allowed; else it is refused where an exclusive Allow policy selects the port, and allowed where none does.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "outrigger.dev",
        version = "v1alpha1",
        kind = "AccessPolicy",
        plural = "accesspolicies",
        namespaced,
        status = "super::PolicyStatus",
        category = "outrigger",
        shortname = "accesspol",
        printcolumn = r#"{"name":"Action","type":"string","jsonPath":".spec.action"}"#,
        printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.mode"}"#,
        printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type=='Accepted')].status"}"#,
        printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Accepted')].reason"}"#,
        printcolumn = r#"{"name":"Programmed","type":"string","jsonPath":".status.conditions[?(@.type=='Programmed')].status"}"#,
        printcolumn = r#"{"name":"Programmed-Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Programmed')].reason"}"#,
        printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
    )
)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.targetRefs)",
    "message": "targetRefs: name at least one object that the policy holds for"
}, {
    "rule": "!has(self.exclusive) || !has(self.action) || self.action == 'Allow'",
    "message": "exclusive: only a policy that allows can be"
}, {
    "rule": "!has(self.action) || self.action != 'Deny' || has(self.rules)",
    "message": "rules: a policy that denies, and has none, refuses nobody"
}, {
    "rule": "!has(self.rules) || self.rules.all(r, r.sources.all(s, s.type != 'JWT' || !has(s.jwt) || has(self.jwt) && \
             self.jwt.providers.exists(p, p.name == s.jwt.provider)) && (!has(r.requires) || r.requires.all(s, s.type != 'JWT' || \
             !has(s.jwt) || has(self.jwt) && self.jwt.providers.exists(p, p.name == s.jwt.provider))))",
    "message": "rules: a source of the type JWT names one of jwt.providers"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessPolicySpec {
    /// The pods that the policy holds for: those of its namespace, those of Services, or those with some labels. Outrigger's own namespace
    /// stands for the whole mesh.
    // In a standalone sidecar's file there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8))]
    pub target_refs: Vec<AccessTargetRef>,
    /// `Allow` (default) or `Deny`.
    #[schemars(extend("enum" = ["Allow", "Deny"]))]
    pub action: Option<String>,
    /// Of a policy that allows. True (default): the ports that it selects are closed to what no policy allows. False: it only adds to what
    /// others allow, and closes nothing.
    pub exclusive: Option<bool>,
    /// `Enforce` (default), or `Audit`: what the policy would refuse is counted and logged, and nothing else comes of it.
    #[schemars(extend("enum" = ["Enforce", "Audit"]))]
    pub mode: Option<String>,
    /// Any of them. None: nobody; so a policy without rules is a default deny.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    pub rules: Vec<RuleSpec>,
    /// Who issues the tokens that `rules` ask for.
    pub jwt: Option<JwtSpec>,
}

/// Pods that an AccessPolicy holds for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(self.kind == 'Pod') == has(self.selector)",
    "message": "selector: pods, and only they, are named by their labels"
}, {
    "rule": "(self.kind == 'Pod') != has(self.name)",
    "message": "name: a Namespace and a Service have one here, pods have a selector"
}, {
    "rule": "!has(self.sectionName) || self.kind == 'Service'",
    "message": "sectionName: only a Service has sections, its ports"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessTargetRef {
    /// "".
    #[serde(default)]
    #[schemars(extend("enum" = [""]))]
    pub group: String,
    /// `Namespace` (the policy's own), `Service` (its ports, of the pods that its selector takes) or `Pod`.
    #[schemars(extend("enum" = ["Namespace", "Service", "Pod"]))]
    pub kind: String,
    /// The name of the Namespace or of the Service.
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// The name of one port of the Service. Default: all of its ports.
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
    /// Of the kind Pod: pods of the policy's own namespace by their labels. `{}` selects all of them.
    pub selector: Option<LabelSelector>,
}

/// Who, on which ports, with which requests: all of it has to be so.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleSpec {
    /// Stands in log, span and metric. Default: the rule's position, from "0".
    #[schemars(regex(pattern = "^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"))]
    pub name: Option<String>,
    /// Who calls: any of them. It is required, so that a rule without it, or one whose sources an older CRD has dropped, is none for
    /// everybody.
    #[schemars(required, length(min = 1, max = 16))]
    pub sources: Option<Vec<SourceSpec>>,
    /// What has to hold of the caller beside that: all of them. So a rule can ask for a workload and for a token.
    #[schemars(length(min = 1, max = 8))]
    pub requires: Option<Vec<SourceSpec>>,
    /// Which ports. Default: all that the policy selects.
    pub network_attributes: Option<NetworkAttributesSpec>,
    /// Which requests: any of them. Bytes that are not HTTP, or the app's own TLS, are none of an Allow rule, and may be any of a Deny rule.
    /// Default: all requests, and all bytes.
    #[schemars(length(min = 1, max = 16))]
    pub http_attributes: Option<Vec<HttpAttributesSpec>>,
}

/// Who calls: `type`, and the field of that type, if it has one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(self.type == 'ServiceAccount') == has(self.serviceAccount) && (self.type == 'SPIFFE') == has(self.spiffe) && \
             (self.type == 'Namespace') == has(self.__namespace__) && (self.type == 'Address') == has(self.address) && \
             (self.type == 'JWT') == has(self.jwt)",
    "message": "the field of the source's type, and no other one, is set; Any and Unauthenticated have none"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceSpec<J = JwtSourceSpec> {
    /// `Any`: whoever it is. `ServiceAccount`, `SPIFFE`, `Namespace`: whose the identity is that the peer has proven in mutual TLS.
    /// `Address`: the TCP peer's, never that of a header. `JWT`: a token. `Unauthenticated`: a peer without an identity.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["Any", "ServiceAccount", "SPIFFE", "Namespace", "Address", "JWT", "Unauthenticated"]))]
    pub type_: String,
    /// A workload of this cluster by its ServiceAccount.
    pub service_account: Option<ServiceAccountSpec>,
    /// A SPIFFE ID, or the beginning of one with "/*" at its end.
    #[schemars(
        length(max = 2048),
        regex(pattern = r"^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)*(/\*|/[A-Za-z0-9._-]+)$")
    )]
    pub spiffe: Option<String>,
    /// All workloads of namespaces of this cluster.
    pub namespace: Option<NamespaceSpec>,
    /// Networks.
    pub address: Option<AddressSpec>,
    /// A verified token.
    pub jwt: Option<J>,
}

/// A workload of this cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountSpec {
    /// Default: the policy's own.
    #[schemars(length(max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
    /// The ServiceAccount; "*": any of the namespace.
    #[schemars(length(max = 253), regex(pattern = r"^(\*|[a-z0-9]([a-z0-9.-]*[a-z0-9])?)$"))]
    pub name: String,
}

/// Namespaces of this cluster: by name or by label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.name) != has(self.selector)",
    "message": "a name or a selector"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespaceSpec {
    /// One namespace.
    #[schemars(length(max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// All with these labels. Whoever may label a namespace decides who is let in: `kubernetes.io/metadata.name` nobody can change.
    pub selector: Option<LabelSelector>,
}

/// Addresses of the TCP peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddressSpec {
    /// Any of these networks: "10.0.0.0/8", "fd00::/8".
    #[schemars(
        required,
        length(min = 1, max = 64),
        inner(length(max = 43), regex(pattern = "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"))
    )]
    pub cidrs: Option<Vec<String>>,
    /// And none of these.
    #[schemars(
        length(min = 1, max = 64),
        inner(length(max = 43), regex(pattern = "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"))
    )]
    pub except: Option<Vec<String>>,
}

/// Where the peer has connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkAttributesSpec {
    /// Ports of the pod, any of them: the number on which the app listens, or the name of a container's port.
    #[schemars(required, length(min = 1, max = 16))]
    pub ports: Option<Vec<Port>>,
}

/// A port by its number or by its name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Port {
    /// 1 to 65535.
    Number(i64),
    /// Of a container's port.
    Name(String),
}

impl JsonSchema for Port {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Port".into()
    }

    fn inline_schema() -> bool {
        true
    }

    // As Kubernetes writes its own: a type would not be structural. The bounds are a number's, the pattern is a text's.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 1,
            "maximum": 65535,
            "pattern": "^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$",
        })
    }
}

/// A request: all of the fields that are set, of which there is at least one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("minProperties" = 1))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpAttributesSpec {
    /// Any of them: `GET`, `POST`.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(max = 32), regex(pattern = "^[A-Z0-9!#$%&'*+.^_`|~-]+$"))
    )]
    pub methods: Option<Vec<String>>,
    /// Any of them.
    #[schemars(length(min = 1, max = 16))]
    pub paths: Option<Vec<PathSpec>>,
    /// All of them.
    #[schemars(length(min = 1, max = 8))]
    pub headers: Option<Vec<HeaderSpec>>,
    /// Any of them, without a port: "shop.example.com"; "*.example.com" is any name that ends so.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(max = 255), regex(pattern = r"^(\*\.)?[A-Za-z0-9:._-]+$"))
    )]
    pub hosts: Option<Vec<String>>,
    /// A gRPC method.
    pub grpc: Option<GrpcSpec>,
    /// What becomes of a path that servers read in different ways: with an encoded "/", an empty segment, a dot segment, ";" and more.
    /// `Refuse` (default): it meets no path of an Allow rule, and that of a Deny rule if one of its readings does. `Match`: it is taken as it
    /// is.
    #[schemars(extend("enum" = ["Refuse", "Match"]))]
    pub ambiguous_paths: Option<String>,
}

/// The path of a request, without the query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.type == 'RegularExpression' || self.value.startsWith('/')",
    "message": "a path begins with /"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathSpec {
    /// `Exact`. `PathPrefix`: by path elements, "/a" is met by "/a" and "/a/b", not by "/ab". `RegularExpression`: RE2, all of the path.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["Exact", "PathPrefix", "RegularExpression"]))]
    pub type_: String,
    /// The path.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[^\x00-\x1F\x7F]*$"))]
    pub value: String,
}

/// A header of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderSpec {
    /// Its name, in any case; for `Host` there is `hosts`, and `outrigger-…` no client can send.
    #[schemars(length(max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
    /// `Exact` (default) or `RegularExpression` (RE2, all of the value).
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["Exact", "RegularExpression"]))]
    pub type_: Option<String>,
    /// Its value. Of several lines an Allow rule wants it in each, a Deny rule in any.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[^\x00-\x08\x0A-\x1F\x7F]*$"))]
    pub value: String,
}

/// A gRPC method: a service, a method, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("minProperties" = 1))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcSpec {
    /// "shop.v1.Orders". Default: any.
    #[schemars(length(max = 253), regex(pattern = "^[A-Za-z_][A-Za-z0-9_.]*$"))]
    pub service: Option<String>,
    /// "Place". Default: any.
    #[schemars(length(max = 253), regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub method: Option<String>,
}
