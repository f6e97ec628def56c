//! An AccessPolicy as it goes to a sidecar.
//!
//! All mistakes are reported, and none makes the policy looser. What is faulty is sent as a condition without a kind, which a sidecar cannot
//! judge: in an Allow rule it is never met, in a Deny rule it always is. So a faulty Allow rule lets nobody in, and a Deny rule holds by its
//! other conditions.

use std::net::IpAddr;

use super::unresolved::{Condition, Rule, Source, Unresolved, identity};
use super::{
    ACTIONS, AccessPolicySpec, AccessTargetRef, AddressSpec, ClaimSpec, JwtSourceSpec, MODES, NamespaceSpec,
    NetworkAttributesSpec, Port, RuleSpec, SOURCES, ServiceAccountSpec, SourceSpec,
};
use crate::access as proto;
use crate::access::{condition, identity, source};
use crate::names::{is_namespace, is_subdomain};
use crate::pattern;
use crate::spiffe::SpiffeId;

impl AccessPolicySpec {
    /// The policy `name` ("namespace/name") of a namespace, and all mistakes in it, each with the path of its field.
    pub fn to_wire(&self, name: &str, namespace: &str) -> (Unresolved, Vec<String>) {
        let mut reader = Reader::new(namespace);
        let policy = reader.policy(name, self);
        (policy, reader.mistakes)
    }
}

/// A source of the type JWT.
pub(in crate::policy) trait TokenSpec {
    fn parts(&self) -> TokenParts<'_>;
}

/// What one says.
pub(in crate::policy) struct TokenParts<'a> {
    /// The AccessPolicy that has the provider. `None`: it is this policy's.
    pub(in crate::policy) policy: Option<&'a str>,
    pub(in crate::policy) provider: &'a str,
    pub(in crate::policy) claims: Option<&'a [ClaimSpec]>,
    pub(in crate::policy) scopes: Option<&'a [String]>,
}

impl TokenSpec for JwtSourceSpec {
    fn parts(&self) -> TokenParts<'_> {
        TokenParts {
            policy: None,
            provider: &self.provider,
            claims: self.claims.as_deref(),
            scopes: self.scopes.as_deref(),
        }
    }
}

pub(in crate::policy) struct Reader<'a> {
    /// The policy's own.
    namespace: &'a str,
    /// Those that rules may ask for.
    providers: Vec<&'a str>,
    /// Whether its rules deny, or what it is about is read as by those that do.
    pub(in crate::policy) deny: bool,
    pub(super) patterns: pattern::Budget,
    pub(in crate::policy) mistakes: Vec<String>,
}

impl<'a> Reader<'a> {
    /// Of policies of this namespace, which have no providers of tokens so far.
    pub(in crate::policy) fn new(namespace: &'a str) -> Self {
        Self {
            namespace,
            providers: Vec::new(),
            deny: false,
            patterns: pattern::Budget::default(),
            mistakes: Vec::new(),
        }
    }

    fn policy(&mut self, name: &str, spec: &'a AccessPolicySpec) -> Unresolved {
        let action = self.one_of("action", spec.action.as_deref().unwrap_or("Allow"), &ACTIONS);
        let mode = self.one_of("mode", spec.mode.as_deref().unwrap_or("Enforce"), &MODES);
        let deny = action == Some("Deny");
        self.deny = deny;
        if deny && spec.exclusive.is_some() {
            self.mistake("exclusive", "only a policy that allows can be");
        }
        if deny && spec.rules.is_empty() {
            self.mistake("rules", "a policy that denies, and has none, refuses nobody");
        }
        let mut providers = Vec::new();
        for (n, provider) in spec.jwt.iter().flat_map(|jwt| jwt.providers.iter().enumerate()) {
            let (wire, sound) = self.provider(&format!("jwt.providers[{n}]"), provider);
            let twice = providers
                .iter()
                .any(|(other, _): &(proto::Provider, _)| other.name == wire.name);
            if twice {
                self.mistake(&format!("jwt.providers[{n}].name"), "another provider has that name");
                self.providers.retain(|name| *name != provider.name);
            } else if sound {
                self.providers.push(&provider.name);
            }
            providers.push((wire, provider.jwks.clone()));
        }
        let before = self.mistakes.len();
        for (n, target) in spec.target_refs.iter().enumerate() {
            self.target(&format!("targetRefs[{n}]"), target);
        }
        let targets_are_sound = self.mistakes.len() == before;
        let rules = spec.rules.iter().enumerate();
        let rules = rules.map(|(n, rule)| Rule {
            name: rule.name.clone().unwrap_or_else(|| n.to_string()),
            conditions: self.rule(&format!("rules[{n}]"), rule),
        });
        let mut policy = Unresolved {
            audit: mode == Some("Audit"),
            name: name.to_owned(),
            deny,
            exclusive: !deny && spec.exclusive.unwrap_or(true),
            rules: rules.collect(),
            providers,
        };
        // It may select more than was meant.
        if !targets_are_sound {
            policy.doubt(None);
        }
        if action.is_none() {
            policy = Unresolved {
                audit: policy.audit,
                ..Unresolved::unreadable(name)
            };
        }
        policy
    }

    pub(in crate::policy) fn target(&mut self, at: &str, target: &AccessTargetRef) {
        let is_pod = target.kind == "Pod";
        if is_pod != target.selector.is_some() {
            self.mistake(
                &format!("{at}.selector"),
                "pods, and only they, are named by their labels",
            );
        }
        if is_pod == target.name.is_some() {
            self.mistake(
                &format!("{at}.name"),
                "a Namespace and a Service have one here, pods have a selector",
            );
        }
        if target.section_name.is_some() && target.kind != "Service" {
            self.mistake(&format!("{at}.sectionName"), "only a Service has sections, its ports");
        }
        let selector = target.selector.iter();
        let faulty = selector.flat_map(|selector| selector.mistakes(&format!("{at}.selector")));
        self.mistakes.extend(faulty);
    }

    fn rule(&mut self, at: &str, rule: &RuleSpec) -> Vec<Condition> {
        let sources = match &rule.sources {
            Some(any) if !any.is_empty() => Condition::Sources(self.sources(&format!("{at}.sources"), any)),
            _ => {
                self.mistake(&format!("{at}.sources"), "say who calls: {type: Any} is whoever it is");
                Condition::Known(None)
            }
        };
        let mut conditions = vec![sources];
        if let Some(all) = self.some(&format!("{at}.requires"), &rule.requires, &mut conditions) {
            let all = self.sources(&format!("{at}.requires"), all);
            conditions.extend(all.into_iter().map(|source| Condition::Sources(vec![source])));
        }
        if let Some(network) = &rule.network_attributes {
            conditions.push(self.network(&format!("{at}.networkAttributes"), network));
        }
        if let Some(any) = self.some(&format!("{at}.httpAttributes"), &rule.http_attributes, &mut conditions) {
            let any = any.iter().enumerate();
            let any = any.map(|(n, attributes)| self.http(&format!("{at}.httpAttributes[{n}]"), attributes));
            let http = proto::HttpMatches { any: any.collect() };
            conditions.push(Condition::Known(Some(condition::Kind::Http(http))));
        }
        conditions
    }

    /// The list, where it is there. One without entries is a condition that cannot be read.
    fn some<'b, T>(&mut self, at: &str, list: &'b Option<Vec<T>>, conditions: &mut Vec<Condition>) -> Option<&'b [T]> {
        let list = list.as_deref()?;
        if list.is_empty() {
            self.mistake(at, "it is empty");
            conditions.push(Condition::Known(None));
            return None;
        }
        Some(list)
    }

    pub(in crate::policy) fn sources<J: TokenSpec>(&mut self, at: &str, sources: &[SourceSpec<J>]) -> Vec<Source> {
        let sources = sources.iter().enumerate();
        let sources = sources.map(|(n, source)| {
            self.source(&format!("{at}[{n}]"), source)
                .unwrap_or(Source::Known(None))
        });
        sources.collect()
    }

    /// None: a mistake says why.
    fn source<J: TokenSpec>(&mut self, at: &str, spec: &SourceSpec<J>) -> Option<Source> {
        let type_ = self.one_of(&format!("{at}.type"), &spec.type_, &SOURCES)?;
        let fields = [
            ("ServiceAccount", "serviceAccount", spec.service_account.is_some()),
            ("SPIFFE", "spiffe", spec.spiffe.is_some()),
            ("Namespace", "namespace", spec.namespace.is_some()),
            ("Address", "address", spec.address.is_some()),
            ("JWT", "jwt", spec.jwt.is_some()),
        ];
        let wrong = fields.iter().find(|(of, _, set)| (*of == type_) != *set);
        if let Some((of, field, set)) = wrong {
            let why = match set {
                true => format!("it is of the type {of}, and this is {type_}"),
                false => format!("a source of the type {type_} has it"),
            };
            self.mistake(&format!("{at}.{field}"), &why);
            return None;
        }
        match spec {
            SourceSpec {
                service_account: Some(account),
                ..
            } => self.account(&format!("{at}.serviceAccount"), account),
            SourceSpec { spiffe: Some(id), .. } => match spiffe(id) {
                Ok(kind) => Some(Source::Known(Some(identity(kind)))),
                Err(why) => self.none(&format!("{at}.spiffe"), why),
            },
            SourceSpec {
                namespace: Some(namespace),
                ..
            } => self.namespaces(&format!("{at}.namespace"), namespace),
            SourceSpec {
                address: Some(address), ..
            } => self.networks(&format!("{at}.address"), address),
            SourceSpec { jwt: Some(jwt), .. } => self.token(&format!("{at}.jwt"), &jwt.parts()),
            _ if type_ == "Unauthenticated" => {
                let nobody = source::Kind::Unauthenticated(proto::Unauthenticated {});
                Some(Source::Known(Some(nobody)))
            }
            _ => Some(Source::Known(Some(source::Kind::Any(proto::Anybody {})))),
        }
    }

    fn account(&mut self, at: &str, spec: &ServiceAccountSpec) -> Option<Source> {
        let namespace = spec.namespace.as_deref().unwrap_or(self.namespace);
        if !is_namespace(namespace) {
            return self.none(
                &format!("{at}.namespace"),
                format!("{namespace:?} is no namespace's name"),
            );
        }
        let name = (spec.name != "*").then_some(&spec.name);
        // The trust domain is the cluster's; the rest is as it will be.
        if name.is_some_and(|name| SpiffeId::new("cluster.local", namespace, name).is_err()) {
            return self.none(
                &format!("{at}.name"),
                format!("{:?} is no ServiceAccount's name", spec.name),
            );
        }
        Some(Source::Account {
            namespace: namespace.to_owned(),
            name: name.cloned(),
        })
    }

    fn namespaces(&mut self, at: &str, spec: &NamespaceSpec) -> Option<Source> {
        match (&spec.name, &spec.selector) {
            (Some(name), None) if is_namespace(name) => Some(Source::Namespace(name.clone())),
            (Some(name), None) => self.none(&format!("{at}.name"), format!("{name:?} is no namespace's name")),
            (None, Some(selector)) => {
                let mistakes = selector.mistakes(&format!("{at}.selector"));
                let sound = mistakes.is_empty();
                self.mistakes.extend(mistakes);
                sound.then(|| Source::Namespaces(selector.clone()))
            }
            _ => self.none(at, "give a name or a selector".to_owned()),
        }
    }

    fn networks(&mut self, at: &str, spec: &AddressSpec) -> Option<Source> {
        let before = self.mistakes.len();
        let cidrs = spec.cidrs.as_deref().unwrap_or_default();
        if cidrs.is_empty() {
            self.mistake(&format!("{at}.cidrs"), "name at least one network");
        }
        let except = spec.except.as_deref().unwrap_or_default();
        if spec.except.is_some() && except.is_empty() {
            self.mistake(&format!("{at}.except"), "it is empty");
        }
        for (field, networks) in [("cidrs", cidrs), ("except", except)] {
            for (n, text) in networks.iter().enumerate() {
                if let Err(why) = network(text) {
                    self.mistake(&format!("{at}.{field}[{n}]"), &why);
                }
            }
        }
        (self.mistakes.len() == before).then(|| {
            Source::Known(Some(source::Kind::Networks(proto::Networks {
                cidrs: cidrs.to_vec(),
                except: except.to_vec(),
            })))
        })
    }

    fn token(&mut self, at: &str, spec: &TokenParts<'_>) -> Option<Source> {
        let before = self.mistakes.len();
        let policy = spec
            .policy
            .and_then(|policy| self.access_policy(&format!("{at}.accessPolicy"), policy));
        if spec.policy.is_none() && !self.providers.contains(&spec.provider) {
            let why = format!("{:?} is none of jwt.providers that is free of mistakes", spec.provider);
            self.mistake(&format!("{at}.provider"), &why);
        }
        if spec.claims.is_some_and(<[_]>::is_empty) {
            self.mistake(&format!("{at}.claims"), "it is empty");
        }
        if spec.scopes.is_some_and(<[_]>::is_empty) {
            self.mistake(&format!("{at}.scopes"), "it is empty");
        }
        let mut claims = Vec::new();
        for (n, claim) in spec.claims.unwrap_or_default().iter().enumerate() {
            self.claim(&format!("{at}.claims[{n}].name"), &claim.name);
            let values = claim.values.clone().unwrap_or_default();
            if values.is_empty() {
                self.mistake(&format!("{at}.claims[{n}].values"), "name at least one value");
            }
            claims.push(proto::ClaimMatch {
                name: claim.name.clone(),
                values,
            });
        }
        let scopes = spec.scopes.unwrap_or_default().to_vec();
        for (n, scope) in scopes.iter().enumerate() {
            // RFC 6749 section 3.3.
            if scope.is_empty() || !scope.bytes().all(|b| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e)) {
                self.mistake(
                    &format!("{at}.scopes[{n}]"),
                    &format!("{scope:?} is no scope of one word"),
                );
            }
        }
        (self.mistakes.len() == before).then(|| {
            Source::Known(Some(source::Kind::Jwt(proto::Jwt {
                provider: spec.provider.to_owned(),
                claims,
                scopes,
                policy: policy.unwrap_or_default(),
            })))
        })
    }

    /// "namespace/name" of an AccessPolicy. None: a mistake says why.
    pub(in crate::policy) fn access_policy(&mut self, at: &str, text: &str) -> Option<String> {
        let (namespace, name) = text.split_once('/').unwrap_or((self.namespace, text));
        match is_namespace(namespace) && is_subdomain(name) {
            true => Some(format!("{namespace}/{name}")),
            false => self.none(
                at,
                format!("{text:?} is neither a policy's name nor \"namespace/name\""),
            ),
        }
    }

    fn network(&mut self, at: &str, spec: &NetworkAttributesSpec) -> Condition {
        let before = self.mistakes.len();
        let ports = spec.ports.as_deref().unwrap_or_default();
        if ports.is_empty() {
            self.mistake(&format!("{at}.ports"), "name at least one port");
        }
        let (mut numbers, mut names) = (Vec::new(), Vec::new());
        for (n, port) in ports.iter().enumerate() {
            match port {
                Port::Number(number) => match u16::try_from(*number) {
                    Ok(number) if number > 0 => numbers.push(number.into()),
                    _ => self.mistake(&format!("{at}.ports[{n}]"), &format!("{number} is not 1 to 65535")),
                },
                Port::Name(name) if is_port_name(name) => names.push(name.clone()),
                Port::Name(name) => {
                    self.mistake(
                        &format!("{at}.ports[{n}]"),
                        &format!("{name:?} is no name of a container's port"),
                    );
                }
            }
        }
        match self.mistakes.len() == before {
            true => Condition::Ports { numbers, names },
            false => Condition::Known(None),
        }
    }

    pub(in crate::policy) fn one_of<'b>(&mut self, at: &str, value: &str, values: &[&'b str]) -> Option<&'b str> {
        let known = values.iter().find(|known| **known == value).copied();
        if known.is_none() {
            self.mistake(at, &format!("{value:?} is none of {}", values.join(", ")));
        }
        known
    }

    pub(in crate::policy) fn mistake(&mut self, at: &str, why: &str) {
        self.mistakes.push(format!("{at}: {why}"));
    }

    pub(in crate::policy) fn none<T>(&mut self, at: &str, why: String) -> Option<T> {
        self.mistake(at, &why);
        None
    }
}

/// A SPIFFE ID (SPIFFE-ID.md section 2), or the beginning of one, which ends with "/*".
fn spiffe(text: &str) -> Result<identity::Kind, String> {
    let wrong = || {
        format!(
            "{text:?} is neither a SPIFFE ID, \"spiffe://cluster.local/ns/shop/sa/web\", nor the beginning of one with \"/*\""
        )
    };
    let rest = text
        .strip_prefix("spiffe://")
        .filter(|_| text.len() <= 2048)
        .ok_or_else(wrong)?;
    let (trust_domain, path) = rest.split_once('/').ok_or_else(wrong)?;
    let domain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    if !(1..=255).contains(&trust_domain.len()) || !trust_domain.bytes().all(domain) {
        return Err(wrong());
    }
    let (beginning, is_prefix) = match path.strip_suffix('*') {
        Some(beginning) => (beginning, true),
        None => (path, false),
    };
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let is_segment = |s: &str| !s.is_empty() && s.bytes().all(inner) && !matches!(s, "." | "..");
    // Of a beginning, what is after the last "/" is nothing.
    let segments = match is_prefix {
        true if beginning.is_empty() => None,
        true => Some(beginning.strip_suffix('/').ok_or_else(wrong)?),
        false => Some(beginning),
    };
    if segments.is_some_and(|segments| !segments.split('/').all(is_segment)) {
        return Err(wrong());
    }
    Ok(match is_prefix {
        true => identity::Kind::Prefix(format!("spiffe://{trust_domain}/{beginning}")),
        false => identity::Kind::Exact(text.to_owned()),
    })
}

fn network(text: &str) -> Result<(), String> {
    let wrong = || format!("{text:?} is not a network like \"10.0.0.0/8\" or \"fd00::/8\"");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    let length: u8 = length.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
    match address {
        IpAddr::V4(_) if length <= 32 => Ok(()),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(format!("{text:?}: write an IPv4 network as such")),
        IpAddr::V6(_) if length <= 128 => Ok(()),
        _ => Err(wrong()),
    }
}

/// RFC 6335 section 5.1, as Kubernetes has it.
fn is_port_name(name: &str) -> bool {
    let inner = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=15).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// RFC 9110 section 5.6.2.
pub(in crate::policy) fn is_token(text: &str) -> bool {
    let is_char = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(is_char)
}

/// Headers that only sidecars write.
pub(super) const OURS: &str = "outrigger-";

/// Why policies find no header of this name in requests. `None`: there may be one.
pub(in crate::policy) fn no_header(name: &str) -> Option<String> {
    if !is_token(name) {
        return Some(format!("{name:?} is no header's name"));
    }
    let is_ours = name.to_ascii_lowercase().starts_with(OURS);
    is_ours.then(|| format!("sidecars take away headers named {OURS}…, before policies look at them"))
}
