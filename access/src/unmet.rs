//! What no request meets, though it is written as it should be. Whoever writes such a rule does not see it: it lets nobody in, and nothing
//! is refused that would be let in without it.
//!
//! Nothing here knows how paths are compared: what decides is asked about the requests that could meet a condition.

use http::HeaderMap;
use outrigger_api::access as proto;
use outrigger_api::access::http_condition;
use outrigger_api::discovery::{StringMatch, string_match};
use outrigger_api::pattern::Budget;
use outrigger_api::policy::access::{AccessPolicySpec, PathSpec};

use crate::effect::Effect;
use crate::facts::{Call, Caller, Carries, Facts, Head};
use crate::http_match::HttpMatches;
use crate::jwt::Tokens;
use crate::path::RequestPath;

/// The paths of a policy that allows which no request meets, each with its field and why. What
/// [`AccessPolicySpec::to_wire`] says of a path is not said again. A path of a policy that denies is met by itself at least.
pub fn met_by_nothing(spec: &AccessPolicySpec) -> Vec<String> {
    if spec.action.as_deref().is_some_and(|action| action != "Allow") {
        return Vec::new();
    }
    let mut unmet = Vec::new();
    // As the reader of the policy takes from it.
    let mut patterns = Budget::default();
    for (n, rule) in spec.rules.iter().enumerate() {
        for (m, http) in rule.http_attributes.iter().flatten().enumerate() {
            let take_ambiguous = http.ambiguous_paths.as_deref() == Some("Match");
            for (k, path) in http.paths.iter().flatten().enumerate() {
                if let Some(why) = why_unmet(path, take_ambiguous, &mut patterns) {
                    let field = format!("rules[{n}].httpAttributes[{m}].paths[{k}].value");
                    unmet.push(format!("{field}: no request meets {:?}, {why}", path.value));
                }
            }
        }
    }
    unmet
}

/// `None`: some request meets it, or nobody knows, or it is faulty.
fn why_unmet(path: &PathSpec, take_ambiguous: bool, patterns: &mut Budget) -> Option<&'static str> {
    let (kind, candidates) = match path.type_.as_str() {
        _ if path.value.chars().any(char::is_control) => return None,
        "Exact" => (string_match::Kind::Exact(path.value.clone()), of_text(&path.value)),
        "PathPrefix" => (string_match::Kind::PathPrefix(path.value.clone()), of_text(&path.value)),
        "RegularExpression" => {
            let kind = string_match::Kind::Regex(path.value.clone());
            (kind, of_pattern(&path.value, patterns)?)
        }
        _ => return None,
    };
    let paths = http_condition::Kind::Paths(proto::Paths {
        any: vec![StringMatch { kind: Some(kind) }],
        take_ambiguous,
    });
    let message = proto::HttpMatches {
        any: vec![proto::HttpMatch {
            all: vec![proto::HttpCondition { kind: Some(paths) }],
        }],
    };
    // Of patterns, it compiles one that has been compiled.
    let condition = HttpMatches::new(&message, Effect::Allow, &mut Budget::default()).ok()?;
    if candidates.iter().any(|path| meets(path, &condition)) {
        return None;
    }
    let is_ambiguous = |path: &String| RequestPath::new(path).is_ambiguous();
    Some(match !take_ambiguous && candidates.iter().any(is_ambiguous) {
        true => "because servers read it in more than one way: ambiguousPaths: Match takes it as it is",
        false => "because paths are compared in the form of RFC 3986 section 6.2.2, and it is not in that form",
    })
}

/// Of the paths that could be equal to one that a rule names, or begin with it, the one that is most like it; and the same without slashes
/// at its end, which is what a prefix is.
fn of_text(text: &str) -> Vec<String> {
    let normal = RequestPath::new(text).normal().to_owned();
    let trimmed = normal.trim_end_matches('/').to_owned();
    vec![normal, if trimmed.is_empty() { "/".to_owned() } else { trimmed }]
}

/// All paths that a pattern is met by, where they can be listed.
fn of_pattern(pattern: &str, patterns: &mut Budget) -> Option<Vec<String>> {
    let beginnings = patterns.compile(pattern).ok()?.beginnings()?;
    let all = beginnings.iter().map(|beginning| {
        let text = std::str::from_utf8(&beginning.text).ok()?;
        beginning.is_all.then(|| text.to_owned())
    });
    all.collect()
}

fn meets(path: &str, condition: &HttpMatches) -> bool {
    let (headers, tokens, providers) = (HeaderMap::new(), Tokens::NONE, Default::default());
    let facts = Facts {
        port: 0,
        caller: Caller::default(),
        carries: Carries::Http(Head {
            method: "GET",
            path,
            host: "",
            headers: &headers,
            tokens: &tokens,
        }),
    };
    condition.are_met(&Call::new(&facts, &providers), Effect::Allow)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn unmet(action: &str, type_: &str, ambiguous: &str, path: &str) -> bool {
        let path = serde_json::to_string(path).unwrap();
        let spec = format!(
            r#"{{"action": "{action}", "rules": [{{"sources": [{{"type": "Any"}}]}}, {{"sources": [{{"type": "Any"}}], "httpAttributes": [
            {{"methods": ["GET"]}}, {{"ambiguousPaths": "{ambiguous}", "paths": [{{"type": "Exact", "value": "/"}},
            {{"type": "{type_}", "value": {path}}}]}}]}}]}}"#
        );
        let spec: AccessPolicySpec = serde_json::from_str(&spec).unwrap();
        let (_, mistakes) = spec.to_wire("shop/p", "shop");
        let unmet = met_by_nothing(&spec);
        let field = "rules[1].httpAttributes[1].paths[1].value: ";
        assert!(unmet.iter().all(|mistake| mistake.starts_with(field)), "{unmet:?}");
        // It is said once what is wrong with a path.
        assert!(unmet.len() + mistakes.len() <= 1, "{mistakes:?} {unmet:?}");
        !unmet.is_empty()
    }

    #[test]
    fn paths_that_no_request_has_are_found() {
        // What is said of a path as it is, as the beginning of others, and where ambiguous paths are taken as they are.
        for (path, exact, prefix) in [
            ("/", false, false),
            ("/orders", false, false),
            ("/orders/", false, false),
            ("/a.b/..c/d..", false, false),
            ("/caf\u{e9} au lait", false, false),
            ("/caf%c3%a9", false, false),
            ("/%61", false, false),
            ("/100%", false, false),
            ("/a%2541", true, true),
            ("/a%2Fb", true, true),
            ("/a%2fb", true, true),
            ("/a%5Cb", true, true),
            ("/a\\b", true, true),
            ("/a%00", true, true),
            ("/a//b", true, true),
            ("/a/./b", true, true),
            ("/a/%2e%2E/b", true, true),
            ("/a/..", true, true),
            ("/a;v=1/b", true, true),
            ("/%FF", true, true),
            // A prefix ends before its slashes.
            ("/a//", true, false),
            ("//", true, false),
        ] {
            assert_eq!(unmet("Allow", "Exact", "Refuse", path), exact, "{path}");
            assert_eq!(unmet("Allow", "PathPrefix", "Refuse", path), prefix, "{path}/*");
            for type_ in ["Exact", "PathPrefix"] {
                assert!(!unmet("Allow", type_, "Match", path), "{path}");
                assert!(!unmet("Deny", type_, "Refuse", path), "{path}");
            }
        }
        // What is faulty is said elsewhere.
        for path in ["orders", "/a?b", "/a#b", "/a\u{1}b"] {
            assert!(!unmet("Allow", "Exact", "Refuse", path), "{path}");
        }
    }

    #[test]
    fn patterns_that_no_path_is_like_are_found_where_they_can_be_listed() {
        for (pattern, refuse, take) in [
            ("/orders|/carts", false, false),
            ("/orders/[0-9]+", false, false),
            ("/a//b|/c", false, false),
            ("/a//b|/c;d", true, false),
            ("/a%2Fb", true, false),
            ("/[.][.]/a", true, false),
            // No path is compared in these forms.
            ("/caf%c3%a9", true, true),
            ("/a b", true, true),
            ("/%61", true, true),
            // It may begin so and go on otherwise.
            ("/a//.*", false, false),
            ("(", false, false),
        ] {
            assert_eq!(
                unmet("Allow", "RegularExpression", "Refuse", pattern),
                refuse,
                "{pattern}"
            );
            assert_eq!(unmet("Allow", "RegularExpression", "Match", pattern), take, "{pattern}");
        }
    }
}
