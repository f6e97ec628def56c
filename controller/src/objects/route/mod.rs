//! HTTPRoutes, GRPCRoutes, TLSRoutes and TCPRoutes whose parent is a Service (Gateway API for mesh, GEP-1426).
//!
//! A route is read once into [`Route`], in which everything that does not depend on other objects is decided. What
//! cannot be read is said in the route's status; a rule with a filter that is not known answers 500, since leaving the
//! filter out could make the rule looser.
//!
//! `hostnames` of an HTTPRoute or a GRPCRoute are passed over: GEP-1426 says that a mesh should infer nothing from them. Those of a TLSRoute are
//! what it matches: the name of the server that a client of TLS asks for (SNI, RFC 6066 section 3).

mod external_auth;
mod matches;
mod sessions;
mod spec;

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::core::DynamicObject;
use outrigger_api::discovery::Feature;
use outrigger_api::pattern::Cost;
use outrigger_api::policy::needs;
use outrigger_api::{discovery as proto, duration};
use prost::Message;
use serde::Deserialize;
use serde_json::Value;

use self::matches::Patterns;
pub(crate) use self::matches::{Rank, without_patterns};
use self::spec::{BackendRefSpec, FilterSpec, HeaderModifierSpec, ParentRef, PathModifierSpec, RouteSpec, RuleSpec};
use crate::objects::{ObjectName, from_k8s};

/// The API group of routes.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// Which kind of route. Of those on one port the last kind holds, and the others give way (GEP-1294).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum RouteKind {
    Tcp,
    Tls,
    Http,
    Grpc,
}

impl RouteKind {
    /// In the order in which they give way.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Tls, Self::Http, Self::Grpc];

    /// The kind's name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCPRoute",
            Self::Tls => "TLSRoute",
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
        }
    }

    /// By which the API names its objects.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Tcp => "tcproutes",
            Self::Tls => "tlsroutes",
            Self::Http => "httproutes",
            Self::Grpc => "grpcroutes",
        }
    }

    /// What a port speaks for which such a route holds: `None` where the route says nothing of that.
    pub(crate) fn protocol(self) -> Option<proto::Protocol> {
        match self {
            Self::Tcp => Some(proto::Protocol::Opaque),
            Self::Tls => Some(proto::Protocol::Tls),
            Self::Http | Self::Grpc => None,
        }
    }
}

/// A route on Services.
#[derive(Clone, Debug)]
pub struct Route {
    pub(crate) kind: RouteKind,
    pub(crate) name: ObjectName,
    /// Seconds since 1970.
    pub(crate) created: i64,
    pub(crate) generation: i64,
    pub(crate) resource_version: String,
    /// Only Services.
    pub(crate) parents: Vec<Parent>,
    /// Of a TLSRoute; none of another kind.
    pub(crate) hostnames: Vec<String>,
    pub(crate) rules: Vec<Rule>,
    /// What its patterns cost whoever calls its Services.
    pub(crate) patterns: Cost,
    /// What of it is not in force, and why.
    pub(crate) unsupported: Vec<String>,
    /// `status.parents` as it is now, of all controllers.
    pub(crate) status_parents: Vec<Value>,
}

/// A Service that a route is on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parent {
    pub(crate) service: ObjectName,
    port: Option<u16>,
    section: Option<String>,
    /// The reference, as the status repeats it.
    pub(crate) reference: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    pub(crate) index: usize,
    /// By which a policy names it.
    pub(crate) name: Option<Arc<str>>,
    pub(crate) matches: Vec<(Rank, proto::Match)>,
    pub(crate) filters: Vec<RouteFilter>,
    pub(crate) backends: Vec<WeightedRef>,
    pub(crate) policy: proto::Policy,
    /// It has a part that is not known, and answers 500.
    pub(crate) broken: bool,
    /// What it is in a message, in bytes.
    size: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RouteFilter {
    /// Depends on nothing else.
    Plain(proto::filter::Kind),
    Mirror {
        backend: BackendRef,
        parts_per_million: u32,
    },
    ExternalAuth {
        backend: BackendRef,
        /// Without its place among the backends of an answer.
        auth: proto::ExternalAuth,
    },
}

/// Of a CORS filter that does not say it, in seconds (Gateway API, HTTPCORSFilter).
const DEFAULT_MAX_AGE: u32 = 5;
/// What a backend is in a message, or the name of a rule, in bytes.
const IN_MESSAGE: usize = 8;

impl RouteFilter {
    /// The name of its kind, where it is for a whole rule alone: it answers requests, or has them answered, before they have a backend.
    fn of_whole_rule(&self) -> Option<&'static str> {
        match self {
            Self::Plain(proto::filter::Kind::Cors(_)) => Some("CORS"),
            Self::ExternalAuth { .. } => Some("ExternalAuth"),
            Self::Plain(_) | Self::Mirror { .. } => None,
        }
    }

    /// What a sidecar must understand to carry it out, beyond the first version of the session.
    fn needs(&self) -> Option<(Feature, &'static str)> {
        match self {
            Self::Plain(proto::filter::Kind::Cors(_)) => {
                Some((Feature::Cors, "the filter CORS (they answer its rule's requests 500)"))
            }
            Self::ExternalAuth { .. } => Some((
                Feature::ExternalAuth,
                "the filter ExternalAuth (they answer its rule's requests 500)",
            )),
            Self::Plain(_) | Self::Mirror { .. } => None,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Plain(kind) => kind.encoded_len(),
            Self::Mirror { .. } => IN_MESSAGE,
            Self::ExternalAuth { auth, .. } => IN_MESSAGE + auth.encoded_len(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WeightedRef {
    pub(crate) backend: BackendRef,
    pub(crate) weight: u32,
    pub(crate) filters: Vec<RouteFilter>,
}

/// What a backend gets of a rule's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Some of them, or all.
    Share,
    /// Copies.
    Copies,
    /// The question whether each is let through.
    Authorization,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BackendRef {
    /// "Service", or "group/kind" of what is not one.
    pub(crate) kind: String,
    pub(crate) name: ObjectName,
    pub(crate) port: Option<u16>,
}

impl Parent {
    /// Whether the route is on this port of the Service.
    pub(crate) fn covers(&self, port: u16, port_name: &str) -> bool {
        self.port.is_none_or(|p| p == port) && self.section.as_deref().is_none_or(|s| s == port_name)
    }
}

impl Route {
    /// What of it is not in force, and why, whatever other objects there are.
    pub fn unsupported(&self) -> &[String] {
        &self.unsupported
    }

    /// Reads a route. None if it is so different that nothing can be made of it.
    pub fn read(kind: RouteKind, object: &DynamicObject) -> Option<Self> {
        let name = from_k8s::object_name(&object.metadata);
        let spec = match object.data.get("spec").map(RouteSpec::deserialize) {
            Some(Ok(spec)) => spec,
            Some(Err(e)) => {
                tracing::warn!(kind = kind.name(), route = %name, error = %e, "a route cannot be read");
                return None;
            }
            None => return None,
        };
        let parents = spec
            .parent_refs
            .into_iter()
            .filter_map(|p| parent(p, &name.namespace))
            .collect();
        let mut reader = Reader {
            kind,
            namespace: name.namespace.clone(),
            problems: Vec::new(),
            patterns: Patterns::default(),
        };
        let rules = spec.rules.into_iter().enumerate();
        let hostnames = match kind {
            RouteKind::Tls => spec.hostnames,
            RouteKind::Tcp | RouteKind::Http | RouteKind::Grpc => Vec::new(),
        };
        Some(Self {
            rules: rules.map(|(index, rule)| reader.rule(index, rule)).collect(),
            hostnames,
            kind,
            created: object
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |t| t.0.as_second()),
            generation: object.metadata.generation.unwrap_or(0),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            parents,
            unsupported: reader.problems,
            patterns: reader.patterns.cost,
            status_parents: object
                .data
                .pointer("/status/parents")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
            name,
        })
    }

    /// Whether it routes as the other does.
    pub(crate) fn same_rules(&self, other: &Self) -> bool {
        self.parents == other.parents
            && self.hostnames == other.hostnames
            && self.rules == other.rules
            && self.created == other.created
    }

    /// All backends that it names.
    pub(crate) fn references(&self) -> impl Iterator<Item = &BackendRef> {
        self.uses().map(|(backend, _)| backend)
    }

    /// All backends that it names, and what for.
    pub(crate) fn uses(&self) -> impl Iterator<Item = (&BackendRef, Use)> {
        self.rules.iter().flat_map(|rule| {
            let weighted = rule.backends.iter();
            let weighted = weighted.flat_map(|w| std::iter::once((&w.backend, Use::Share)).chain(referred(&w.filters)));
            weighted.chain(referred(&rule.filters))
        })
    }

    /// What a sidecar must understand, beyond the first version of the session, to carry it out as it is meant; and the field that says it.
    pub(crate) fn needs(&self) -> BTreeSet<(Feature, &'static str)> {
        let bytes = self.kind.protocol().map(|_| {
            let what = match self.kind {
                RouteKind::Tls => "TLSRoute (they carry connections to the Service itself)",
                _ => "TCPRoute (they carry connections to the Service itself)",
            };
            (Feature::ByteRoutes, what)
        });
        // A rule that is broken has no filters for anybody.
        let rules = self.rules.iter().filter(|rule| !rule.broken).flat_map(|rule| {
            let filters = rule.filters.iter().filter_map(RouteFilter::needs);
            filters.chain(needs(&rule.policy))
        });
        bytes.into_iter().chain(rules).collect()
    }

    /// What it is in a message, in bytes: about as much, and often less, where its rules are told in several parts.
    pub(crate) fn size(&self) -> usize {
        let hostnames: usize = self.hostnames.iter().map(String::len).sum();
        hostnames + self.rules.iter().map(|rule| rule.size).sum::<usize>()
    }

    /// Whether it is on Services of other namespaces, for clients of its own only.
    pub(crate) fn is_consumer_route_of(&self, service: &ObjectName) -> bool {
        self.name.namespace != service.namespace
    }
}

/// Backends that filters name.
fn referred(filters: &[RouteFilter]) -> impl Iterator<Item = (&BackendRef, Use)> {
    filters.iter().filter_map(|filter| match filter {
        RouteFilter::Mirror { backend, .. } => Some((backend, Use::Copies)),
        RouteFilter::ExternalAuth { backend, .. } => Some((backend, Use::Authorization)),
        RouteFilter::Plain(_) => None,
    })
}

fn parent(reference: ParentRef, namespace: &str) -> Option<Parent> {
    // Both have other defaults: a Gateway.
    if reference.group.as_deref() != Some("") || reference.kind.as_deref() != Some("Service") {
        return None;
    }
    Some(Parent {
        service: ObjectName::new(reference.namespace.as_deref().unwrap_or(namespace), &reference.name),
        port: reference.port,
        section: reference.section_name.clone(),
        reference: serde_json::to_value(&reference).ok()?,
    })
}

/// Reads rules, and collects what is wrong.
struct Reader {
    kind: RouteKind,
    namespace: Arc<str>,
    problems: Vec<String>,
    patterns: Patterns,
}

impl Reader {
    fn rule(&mut self, index: usize, rule: RuleSpec) -> Rule {
        let at = format!("rules[{index}]");
        if self.kind.protocol().is_some() && index > 0 {
            // The first matches all that the route is for.
            self.problems.push(format!(
                "{at}: a {} has one rule; this one is not in force",
                self.kind.name()
            ));
        }
        let problems_before = self.problems.len();
        let filters = self.filters(&at, rule.filters);
        let asks = filters
            .iter()
            .filter(|filter| matches!(filter, RouteFilter::ExternalAuth { .. }));
        if asks.count() > 1 {
            self.problems.push(format!(
                "{at}.filters: a rule has one filter of the type \"ExternalAuth\"; this one answers 500"
            ));
        }
        let backends: Vec<_> = rule.backend_refs.into_iter().map(|b| self.weighted(&at, b)).collect();
        let broken = self.problems.len() > problems_before;
        let matches = match self.kind {
            RouteKind::Http | RouteKind::Tls | RouteKind::Tcp => {
                matches::http(&at, rule.matches, &mut self.patterns, &mut self.problems)
            }
            RouteKind::Grpc => matches::grpc(&at, rule.matches, &mut self.patterns, &mut self.problems),
        };
        let mut millis = |field: &str, text: Option<String>| {
            duration::parse(&text?)
                .map_err(|e| self.problems.push(format!("{at}.{field}: {e}")))
                .ok()
                .and_then(|d| u64::try_from(d.as_millis()).ok())
        };
        let mut policy = proto::Policy {
            request_timeout_ms: millis("timeouts.request", rule.timeouts.request),
            backend_request_timeout_ms: millis("timeouts.backendRequest", rule.timeouts.backend_request),
            retry: rule.retry.map(|retry| proto::Retry {
                attempts: retry.attempts,
                statuses_set: retry.codes.is_some(),
                statuses: retry.codes.unwrap_or_default(),
                backoff_base_ms: millis("retry.backoff", retry.backoff),
                ..proto::Retry::default()
            }),
            ..proto::Policy::default()
        };
        if self.kind.protocol().is_none() {
            let said = rule.session_persistence;
            policy.session_persistence = said.and_then(|said| sessions::sessions(&at, said, &mut self.problems));
        }
        let filtered = |filters: &[RouteFilter]| -> usize { filters.iter().map(RouteFilter::size).sum() };
        let size = matches.iter().map(|(_, matched)| matched.encoded_len()).sum::<usize>()
            + filtered(&filters)
            + backends
                .iter()
                .map(|b| IN_MESSAGE + filtered(&b.filters))
                .sum::<usize>()
            + policy.encoded_len()
            + IN_MESSAGE;
        Rule {
            index,
            name: rule.name.map(Arc::from),
            matches,
            filters,
            backends,
            policy,
            broken,
            size,
        }
    }

    fn weighted(&mut self, at: &str, reference: BackendRefSpec) -> WeightedRef {
        let at = format!("{at}.backendRefs");
        let backend = self.backend(&reference);
        let filters = self.filters(&at, reference.filters);
        for kind in filters.iter().filter_map(RouteFilter::of_whole_rule) {
            self.problems.push(format!(
                "{at}: a filter of the type {kind:?} is for a whole rule; this one answers 500"
            ));
        }
        WeightedRef {
            backend,
            weight: reference.weight.unwrap_or(1),
            filters,
        }
    }

    fn backend(&self, reference: &BackendRefSpec) -> BackendRef {
        let group = reference.group.as_deref().unwrap_or_default();
        let kind = reference.kind.as_deref().unwrap_or("Service");
        BackendRef {
            kind: if group.is_empty() {
                kind.to_owned()
            } else {
                format!("{group}/{kind}")
            },
            name: ObjectName::new(
                reference.namespace.as_deref().unwrap_or(&self.namespace),
                &reference.name,
            ),
            port: reference.port,
        }
    }

    fn filters(&mut self, at: &str, filters: Vec<FilterSpec>) -> Vec<RouteFilter> {
        let mut known = Vec::new();
        for (i, filter) in filters.into_iter().enumerate() {
            let type_ = filter.type_.clone();
            if type_ == external_auth::TYPE {
                let auth = external_auth::read(filter.external_auth, |backend| self.backend(backend));
                match auth {
                    Ok(filter) => known.push(filter),
                    Err(what) => self
                        .problems
                        .push(format!("{at}.filters[{i}].externalAuth{what}; its rule answers 500")),
                }
                continue;
            }
            match self.filter(filter) {
                Some(filter) => known.push(filter),
                None => self.problems.push(format!(
                    "{at}.filters[{i}]: a filter of the type {type_:?} is not supported; its rule answers 500"
                )),
            }
        }
        known
    }

    fn filter(&self, filter: FilterSpec) -> Option<RouteFilter> {
        use proto::filter::Kind;
        let kind = match filter.type_.as_str() {
            "RequestHeaderModifier" => Kind::RequestHeaders(header_modifier(filter.request_header_modifier?)),
            "ResponseHeaderModifier" => Kind::ResponseHeaders(header_modifier(filter.response_header_modifier?)),
            "URLRewrite" => {
                let rewrite = filter.url_rewrite?;
                Kind::Rewrite(proto::UrlRewrite {
                    hostname: rewrite.hostname.unwrap_or_default(),
                    path: path_modifier(rewrite.path)?,
                })
            }
            "RequestRedirect" => {
                let redirect = filter.request_redirect?;
                Kind::Redirect(proto::Redirect {
                    scheme: redirect.scheme.unwrap_or_default(),
                    hostname: redirect.hostname.unwrap_or_default(),
                    path: path_modifier(redirect.path)?,
                    port: redirect.port.unwrap_or(0).into(),
                    status: redirect.status_code.unwrap_or(0).into(),
                })
            }
            "RequestMirror" => {
                let mirror = filter.request_mirror?;
                let parts = match (&mirror.percent, &mirror.fraction) {
                    (Some(percent), _) => u64::from(*percent) * 10_000,
                    (None, Some(f)) => {
                        u64::from(f.numerator) * 1_000_000 / u64::from(f.denominator.unwrap_or(100).max(1))
                    }
                    (None, None) => 1_000_000,
                };
                return Some(RouteFilter::Mirror {
                    backend: self.backend(&mirror.backend_ref),
                    parts_per_million: u32::try_from(parts.min(1_000_000)).unwrap_or(1_000_000),
                });
            }
            "CORS" => {
                let cors = filter.cors?;
                Kind::Cors(proto::Cors {
                    origins: cors.allow_origins,
                    credentials: cors.allow_credentials,
                    methods: cors.allow_methods,
                    headers: cors.allow_headers,
                    expose: cors.expose_headers,
                    max_age: cors.max_age.unwrap_or(DEFAULT_MAX_AGE),
                })
            }
            _ => return None,
        };
        Some(RouteFilter::Plain(kind))
    }
}

fn header_modifier(modifier: HeaderModifierSpec) -> proto::HeaderModifier {
    let headers = |list: Vec<spec::NamedSpec>| {
        let headers = list.into_iter().map(|h| proto::Header {
            name: h.name,
            value: h.value,
        });
        headers.collect()
    };
    proto::HeaderModifier {
        set: headers(modifier.set),
        add: headers(modifier.add),
        remove: modifier.remove,
    }
}

/// None: a modifier that is not known. Some(None): there is none.
#[allow(clippy::option_option)]
fn path_modifier(modifier: Option<PathModifierSpec>) -> Option<Option<proto::PathModifier>> {
    let Some(modifier) = modifier else {
        return Some(None);
    };
    let kind = match modifier.type_.as_str() {
        "ReplaceFullPath" => proto::path_modifier::Kind::ReplaceFull(modifier.replace_full_path?),
        "ReplacePrefixMatch" => proto::path_modifier::Kind::ReplacePrefix(modifier.replace_prefix_match?),
        _ => return None,
    };
    Some(Some(proto::PathModifier { kind: Some(kind) }))
}
