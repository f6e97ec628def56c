//! Who calls.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use outrigger_api::access as proto;
use outrigger_api::access::{identity, source};

use crate::effect::{Effect, Faulty};
use crate::facts::{Call, Carries};
use crate::jwt::{ClaimName, Claims, ProvidersOf};
use crate::remembered::Forgotten;

/// Any of them.
#[derive(Debug)]
pub(crate) struct Sources {
    /// SPIFFE IDs, which a rule may name by the hundred.
    exact: HashSet<Box<str>>,
    others: Box<[Source]>,
}

#[derive(Debug)]
enum Source {
    Anybody,
    Unauthenticated,
    Exact(Box<str>),
    /// Ends with "/".
    Prefix(Box<str>),
    Namespaces {
        trust_domain: Box<str>,
        names: HashSet<Box<str>>,
    },
    Networks(Networks),
    Token(Token),
    /// Of a policy ("namespace/name"), which may not be there: in limits.
    TokenOf {
        policy: Box<str>,
        token: Token,
    },
}

/// A verified token of one provider. All of the conditions.
#[derive(Debug)]
struct Token {
    /// Its number in the policy's own; 0 where it is another's.
    provider: usize,
    /// The provider's, in its policy.
    name: Box<str>,
    /// One of the values of each.
    claims: Box<[(ClaimName, Box<[String]>)]>,
    scopes: Box<[String]>,
}

/// Of IPv4, each where it is written as IPv6 too ("::ffff:10.0.0.0/104").
#[derive(Debug)]
struct Networks {
    any: Box<[IpNet]>,
    except: Box<[IpNet]>,
}

impl Sources {
    pub(crate) fn new(message: &proto::Sources, effect: Effect, providers: ProvidersOf<'_>) -> Result<Self, Faulty> {
        let mut exact = HashSet::new();
        let mut others = Vec::new();
        for source in effect.any_of(&message.any, |source| Source::new(source, effect, providers))? {
            match source {
                Source::Exact(id) => drop(exact.insert(id)),
                other => others.push(other),
            }
        }
        Ok(Self {
            exact,
            others: others.into(),
        })
    }

    pub(crate) fn are_met(&self, call: &Call<'_>, effect: Effect) -> bool {
        let caller = &call.facts.caller;
        caller.identity.is_some_and(|id| self.exact.contains(id.as_str()))
            || self.others.iter().any(|source| source.is_met(call, effect))
    }

    /// For people, in a fixed order.
    pub(crate) fn texts(&self) -> Vec<String> {
        let mut texts: Vec<String> = self.exact.iter().map(|id| id.to_string()).collect();
        texts.extend(self.others.iter().flat_map(Source::texts));
        texts.sort();
        texts
    }
}

impl Source {
    fn new(message: &proto::Source, effect: Effect, providers: ProvidersOf<'_>) -> Result<Self, Faulty> {
        match message.kind.as_ref().ok_or(Faulty)? {
            source::Kind::Any(proto::Anybody {}) => Ok(Self::Anybody),
            source::Kind::Unauthenticated(proto::Unauthenticated {}) => Ok(Self::Unauthenticated),
            source::Kind::Identity(identity) => match identity.kind.as_ref().ok_or(Faulty)? {
                identity::Kind::Exact(id) if is_below_a_trust_domain(id) => Ok(Self::Exact(id.as_str().into())),
                identity::Kind::Prefix(prefix) if is_below_a_trust_domain(prefix) && prefix.ends_with('/') => {
                    Ok(Self::Prefix(prefix.as_str().into()))
                }
                _ => Err(Faulty),
            },
            source::Kind::Namespaces(namespaces) if namespaces.trust_domain.is_empty() => Err(Faulty),
            source::Kind::Namespaces(namespaces) => Ok(Self::Namespaces {
                trust_domain: namespaces.trust_domain.as_str().into(),
                names: namespaces.names.iter().map(|name| name.as_str().into()).collect(),
            }),
            source::Kind::Networks(networks) => Networks::new(networks, effect).map(Self::Networks),
            source::Kind::Jwt(token) if effect == Effect::Limit => Ok(Self::TokenOf {
                policy: Some(&*token.policy)
                    .filter(|policy| !policy.is_empty())
                    .ok_or(Faulty)?
                    .into(),
                token: Token::new(token, effect, 0)?,
            }),
            // An AccessPolicy has its own.
            source::Kind::Jwt(token) if !token.policy.is_empty() => Err(Faulty),
            source::Kind::Jwt(token) => {
                let provider = providers.number(&token.provider).ok_or(Faulty)?;
                Token::new(token, effect, provider).map(Self::Token)
            }
        }
    }

    fn is_met(&self, call: &Call<'_>, effect: Effect) -> bool {
        let caller = &call.facts.caller;
        match self {
            Self::Anybody => true,
            Self::Unauthenticated => caller.identity.is_none(),
            Self::Exact(wanted) => caller.identity.is_some_and(|id| id.as_str() == &**wanted),
            Self::Prefix(prefix) => caller.identity.is_some_and(|id| id.as_str().starts_with(&**prefix)),
            Self::Namespaces { trust_domain, names } => caller
                .identity
                .is_some_and(|id| id.is_of(trust_domain) && names.contains(id.namespace())),
            Self::Networks(networks) => match caller.address {
                Some(address) => networks.contain(address.to_canonical()),
                None => call.guess(Forgotten::ADDRESS, effect).unwrap_or(effect.of_unknown()),
            },
            Self::Token(token) => match &call.facts.carries {
                Carries::Http(head) => match head.tokens.claims(call.providers, token.provider) {
                    Some(claims) => token.is_met(claims),
                    None => call.guess(Forgotten::TOKEN, effect).unwrap_or(call.would_bring_tokens),
                },
                Carries::Bytes => effect.of_unknown(),
            },
            Self::TokenOf { policy, token } => match &call.facts.carries {
                Carries::Http(head) => match head.tokens.of_provider(policy, &token.name) {
                    Some(claims) => claims.is_some_and(|claims| token.is_met(claims)),
                    // Nobody can have one.
                    None => effect.of_unknown(),
                },
                Carries::Bytes => effect.of_unknown(),
            },
        }
    }

    /// For people. A list of namespaces is a text for each.
    fn texts(&self) -> Vec<String> {
        match self {
            Self::Anybody => vec!["anybody".to_owned()],
            Self::Unauthenticated => vec!["whoever has no identity".to_owned()],
            Self::Exact(id) => vec![id.to_string()],
            Self::Prefix(prefix) => vec![format!("{prefix}*")],
            Self::Namespaces { names, .. } if names.is_empty() => vec!["no namespace".to_owned()],
            Self::Namespaces { trust_domain, names } => {
                let below = |name| format!("spiffe://{trust_domain}/ns/{name}/*");
                names.iter().map(below).collect()
            }
            Self::Networks(networks) => vec![networks.text()],
            Self::Token(token) => vec![token.text()],
            Self::TokenOf { policy, token } => vec![format!("{} of {policy}", token.text())],
        }
    }
}

impl Token {
    fn new(message: &proto::Jwt, effect: Effect, provider: usize) -> Result<Self, Faulty> {
        let claim = |claim: &proto::ClaimMatch| match claim.values.is_empty() {
            true => Err(Faulty),
            false => Ok((ClaimName::new(&claim.name), claim.values.as_slice().into())),
        };
        Ok(Self {
            provider,
            name: message.provider.as_str().into(),
            claims: match message.claims.is_empty() {
                true => Box::default(),
                false => effect.all_of(&message.claims, claim)?,
            },
            scopes: message.scopes.as_slice().into(),
        })
    }

    fn text(&self) -> String {
        let mut text = format!("a token of {}", self.name);
        for (name, values) in &self.claims {
            text += &format!(" with {name} {}", values.join(" or "));
        }
        for scope in &self.scopes {
            text += &format!(" with the scope {scope}");
        }
        text
    }

    fn is_met(&self, said: &Claims) -> bool {
        let mut claims = self.claims.iter();
        claims.all(|(name, values)| said.matches(name, values)) && self.scopes.iter().all(|scope| said.has_scope(scope))
    }
}

/// "spiffe://cluster.local/" and what stands behind it.
fn is_below_a_trust_domain(id: &str) -> bool {
    let rest = id.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'));
    rest.is_some_and(|(trust_domain, _)| !trust_domain.is_empty())
}

impl Networks {
    fn new(message: &proto::Networks, effect: Effect) -> Result<Self, Faulty> {
        let except = message.except.iter().map(|cidr| network(cidr));
        Ok(Self {
            any: effect.any_of(&message.cidrs, |cidr| network(cidr))?,
            // An exception that is unknown leaves what it is an exception of unknown.
            except: match effect {
                Effect::Allow | Effect::Limit => except.collect::<Result<_, _>>()?,
                Effect::Deny => except.filter_map(Result::ok).collect(),
            },
        })
    }

    fn text(&self) -> String {
        let list = |networks: &[IpNet]| {
            let texts: Vec<String> = networks.iter().map(IpNet::to_string).collect();
            texts.join(", ")
        };
        match self.except.is_empty() {
            true => format!("the address {}", list(&self.any)),
            false => format!("the address {} without {}", list(&self.any), list(&self.except)),
        }
    }

    fn contain(&self, address: IpAddr) -> bool {
        let within = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
        within(&self.any) && !within(&self.except)
    }
}

fn network(cidr: &str) -> Result<IpNet, Faulty> {
    let (address, length) = cidr.split_once('/').ok_or(Faulty)?;
    let address: IpAddr = address.parse().map_err(|_| Faulty)?;
    let length = length.parse().map_err(|_| Faulty)?;
    let network = IpNet::new(address, length).map_err(|_| Faulty)?;
    let IpNet::V6(mapped) = network else {
        return Ok(network);
    };
    match (mapped.addr().to_ipv4_mapped(), mapped.prefix_len().checked_sub(96)) {
        (Some(address), Some(length)) => Ipv4Net::new(address, length).map(IpNet::V4).map_err(|_| Faulty),
        _ => Ok(network),
    }
}
