//! Which requests something is about that decides nothing about who may call.

use std::sync::{Arc, LazyLock};

use outrigger_api::access as proto;
use outrigger_api::pattern::Budget;

use crate::effect::{Effect, Faulty};
use crate::facts::{Call, Facts};
use crate::jwt::Providers;
use crate::policy::Condition;

/// Nobody asks for tokens.
static NO_PROVIDERS: LazyLock<Arc<Providers>> = LazyLock::new(Arc::default);

/// Any of some lists of conditions, and all of a list. It is read as a Deny rule is: it is met by a request that may be meant by one of its
/// readings.
#[derive(Debug)]
pub struct Selection {
    any: Box<[Box<[Condition]>]>,
    /// As what it is asked.
    effect: Effect,
}

/// What selections are asked about. What is found out of it once, of its path for instance, all of them know.
pub struct Asked<'a>(Call<'a>);

impl<'a> Asked<'a> {
    /// About these facts.
    pub fn new(facts: &'a Facts<'a>) -> Self {
        Self(Call::new(facts, &NO_PROVIDERS))
    }

    /// What it was made from.
    pub fn facts(&self) -> &'a Facts<'a> {
        self.0.facts
    }
}

impl Selection {
    /// `None`: a part of it is faulty, or of a kind that this version does not know, or a list is empty.
    pub fn new<'m>(any: impl IntoIterator<Item = &'m [proto::Condition]>, patterns: &mut Budget) -> Option<Self> {
        let providers = NO_PROVIDERS.of("", true);
        let mut compile = |all: &[proto::Condition]| {
            let condition = |one: &proto::Condition| Condition::new(one, Effect::Limit, providers, patterns);
            Effect::Limit.all_of(all, condition)
        };
        let any: Result<Box<[_]>, Faulty> = any.into_iter().map(&mut compile).collect();
        Some(Self {
            any: any.ok()?,
            effect: Effect::Limit,
        })
    }

    /// By who calls, for an exception: what nobody knows of a caller is none.
    pub fn of_sources(sources: &proto::Sources, patterns: &mut Budget) -> Option<Self> {
        let kind = proto::condition::Kind::Sources(sources.clone());
        let selection = Self::new([&[proto::Condition { kind: Some(kind) }][..]], patterns)?;
        Some(Self {
            effect: Effect::Allow,
            ..selection
        })
    }

    /// Whether one of its lists is met.
    pub fn is_met(&self, asked: &Asked<'_>) -> bool {
        let is_met = |condition: &Condition| condition.is_met(&asked.0, self.effect);
        self.any.iter().any(|all| all.iter().all(is_met))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderMap;
    use outrigger_api::access::{condition, http_condition, source};
    use outrigger_api::discovery::{StringMatch, string_match};

    use super::*;
    use crate::{Caller, Carries, Head, Tokens};

    fn anybody() -> proto::Condition {
        let kind = source::Kind::Any(proto::Anybody {});
        let any = vec![proto::Source { kind: Some(kind) }];
        proto::Condition {
            kind: Some(condition::Kind::Sources(proto::Sources { any })),
        }
    }

    fn path(path: &str) -> proto::Condition {
        let kind = string_match::Kind::Exact(path.to_owned());
        let any = vec![StringMatch { kind: Some(kind) }];
        let kind = http_condition::Kind::Paths(proto::Paths {
            any,
            take_ambiguous: false,
        });
        let all = vec![proto::HttpCondition { kind: Some(kind) }];
        proto::Condition {
            kind: Some(condition::Kind::Http(proto::HttpMatches {
                any: vec![proto::HttpMatch { all }],
            })),
        }
    }

    fn is_met(selection: &Selection, path: &str) -> bool {
        let (headers, tokens) = (HeaderMap::new(), Tokens::NONE);
        let facts = Facts {
            port: 80,
            caller: Caller::default(),
            carries: Carries::Http(Head {
                method: "GET",
                path,
                host: "",
                headers: &headers,
                tokens: &tokens,
            }),
        };
        selection.is_met(&Asked::new(&facts))
    }

    #[test]
    fn no_way_of_writing_a_path_goes_round_it() {
        let patterns = &mut Budget::default();
        let selection = Selection::new([&[anybody(), path("/login")][..]], patterns).unwrap();
        for met in [
            "/login",
            "/Login",
            "/login/",
            "//login",
            "/x/../login",
            "/%6Cogin",
            "/login;v=1",
        ] {
            assert!(is_met(&selection, met), "{met}");
        }
        for other in ["/", "/logins", "/login/x"] {
            assert!(!is_met(&selection, other), "{other}");
        }
    }

    /// A Deny rule would go on without the condition, an Allow rule without the list.
    #[test]
    fn what_is_faulty_is_left_out_as_a_whole() {
        let patterns = &mut Budget::default();
        let unknown = proto::Condition { kind: None };
        for any in [
            vec![vec![anybody(), unknown.clone()]],
            vec![vec![anybody()], vec![unknown]],
            vec![vec![]],
        ] {
            let any = any.iter().map(Vec::as_slice);
            assert!(Selection::new(any, patterns).is_none());
        }
    }
}
