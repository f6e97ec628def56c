//! A rule's matches, and which of them goes first.

use outrigger_api::discovery as proto;
use outrigger_api::discovery::string_match::Kind;
use serde::Deserialize;

use super::spec::{GrpcMethodSpec, MatchSpec, NamedSpec, ValueSpec};

/// How specific a match is; the greater goes first. HTTPRouteRule.matches: an exact path, then the longest prefix, then
/// a method, then the most headers, then the most query parameters. A regular expression is between exact and prefix.
/// GRPCRouteRule.matches: the longest service, then the longest method, then the most headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank([usize; 5]);

/// Compiled programs of the sidecars are bounded, and so is what is accepted here.
const MAX_REGEX_PROGRAM: usize = 1024 * 1024;

pub(super) fn http(at: &str, specs: Vec<MatchSpec>, problems: &mut Vec<String>) -> Vec<(Rank, proto::Match)> {
    if specs.is_empty() {
        // The API's default: the prefix "/".
        return vec![(Rank([1, 1, 0, 0, 0]), proto::Match::default())];
    }
    let mut read = |spec: MatchSpec| {
        let path = http_path(spec.path)?;
        let method = spec.method.as_str().unwrap_or_default().to_ascii_uppercase();
        let headers = named(spec.headers, str::eq_ignore_ascii_case)?;
        let query = named(spec.query_params, |a, b| a == b)?;
        let (kind, length) = match &path {
            Kind::Exact(path) => (3, path.len()),
            Kind::Regex(path) => (2, path.len()),
            Kind::PathPrefix(path) => (1, path.len()),
        };
        let rank = Rank([
            kind,
            length,
            usize::from(!method.is_empty()),
            headers.len(),
            query.len(),
        ]);
        let matched = proto::Match {
            path: Some(proto::StringMatch { kind: Some(path) }),
            headers,
            query,
            method,
        };
        Ok((rank, matched))
    };
    collect(at, specs, problems, &mut read)
}

pub(super) fn grpc(at: &str, specs: Vec<MatchSpec>, problems: &mut Vec<String>) -> Vec<(Rank, proto::Match)> {
    if specs.is_empty() {
        return vec![(Rank::default(), proto::Match::default())];
    }
    let mut read = |spec: MatchSpec| {
        let method = match spec.method {
            serde_json::Value::Null => GrpcMethodSpec::default(),
            method => GrpcMethodSpec::deserialize(method).map_err(|e| format!("method: {e}"))?,
        };
        let headers = named(spec.headers, str::eq_ignore_ascii_case)?;
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let rank = Rank([length(&method.service), length(&method.method), headers.len(), 0, 0]);
        let path = grpc_path(method)?.map(|kind| proto::StringMatch { kind: Some(kind) });
        let matched = proto::Match {
            path,
            headers,
            ..proto::Match::default()
        };
        Ok((rank, matched))
    };
    collect(at, specs, problems, &mut read)
}

fn collect(
    at: &str,
    specs: Vec<MatchSpec>,
    problems: &mut Vec<String>,
    read: &mut dyn FnMut(MatchSpec) -> Result<(Rank, proto::Match), String>,
) -> Vec<(Rank, proto::Match)> {
    let mut matches = Vec::new();
    for (i, spec) in specs.into_iter().enumerate() {
        match read(spec) {
            Ok(matched) => matches.push(matched),
            Err(why) => {
                problems.push(format!("{at}.matches[{i}].{why}; it matches nothing"));
                matches.push((Rank::default(), never()));
            }
        }
    }
    matches
}

/// What no request has. A match that cannot be read is not left out: without it its rule, or the Service with no other
/// rule, would take more than it should.
fn never() -> proto::Match {
    proto::Match {
        path: Some(proto::StringMatch {
            kind: Some(Kind::Exact("\0".to_owned())),
        }),
        ..proto::Match::default()
    }
}

fn http_path(path: Option<ValueSpec>) -> Result<Kind, String> {
    let path = path.unwrap_or_default();
    let value = path.value.unwrap_or_else(|| "/".to_owned());
    match path.type_.as_deref() {
        None | Some("PathPrefix") => Ok(Kind::PathPrefix(value)),
        Some("Exact") => Ok(Kind::Exact(value)),
        Some("RegularExpression") => regex("path", value),
        Some(other) => Err(format!("path: the type {other:?} is not supported")),
    }
}

/// The path of a gRPC request is "/package.Service/Method".
fn grpc_path(method: GrpcMethodSpec) -> Result<Option<Kind>, String> {
    let any = |part: &Option<String>| part.as_ref().is_none_or(String::is_empty);
    match method.type_.as_deref() {
        None | Some("Exact") => Ok(match (any(&method.service), any(&method.method)) {
            (true, true) => None,
            (false, true) => Some(Kind::PathPrefix(format!("/{}", method.service.unwrap_or_default()))),
            (false, false) => Some(Kind::Exact(format!(
                "/{}/{}",
                method.service.unwrap_or_default(),
                method.method.unwrap_or_default()
            ))),
            (true, false) => Some(Kind::Regex(format!(
                "/[^/]+/{}",
                regex::escape(&method.method.unwrap_or_default())
            ))),
        }),
        Some("RegularExpression") => {
            let part = |part: Option<String>| match part {
                Some(part) if !part.is_empty() => format!("(?:{part})"),
                _ => "[^/]+".to_owned(),
            };
            regex("method", format!("/{}/{}", part(method.service), part(method.method))).map(Some)
        }
        Some(other) => Err(format!("method: the type {other:?} is not supported")),
    }
}

/// Of several with the same name only the first counts (HTTPHeaderMatch, HTTPQueryParamMatch).
fn named(specs: Vec<NamedSpec>, same: impl Fn(&str, &str) -> bool) -> Result<Vec<proto::NamedMatch>, String> {
    let read = |spec: NamedSpec| {
        let kind = match spec.type_.as_deref() {
            None | Some("Exact") => Kind::Exact(spec.value),
            Some("RegularExpression") => regex(&spec.name, spec.value)?,
            Some(other) => return Err(format!("{}: the type {other:?} is not supported", spec.name)),
        };
        Ok(proto::NamedMatch {
            name: spec.name,
            value: Some(proto::StringMatch { kind: Some(kind) }),
        })
    };
    let mut matches: Vec<proto::NamedMatch> = Vec::new();
    for spec in specs {
        if !matches.iter().any(|known| same(&known.name, &spec.name)) {
            matches.push(read(spec)?);
        }
    }
    Ok(matches)
}

fn regex(what: &str, pattern: String) -> Result<Kind, String> {
    regex::RegexBuilder::new(&pattern)
        .size_limit(MAX_REGEX_PROGRAM)
        .build()
        .map_err(|e| format!("{what}: {pattern:?} is not a regular expression that can be used: {e}"))?;
    Ok(Kind::Regex(pattern))
}
