//! What a route changes in a request and its response: decided from its filters and the head, without any I/O.

use std::fmt::Display;

use http::header::{HOST, LOCATION};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Response, Uri};
use outrigger_proxy_transport::authority;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::server::{ResponseBody, empty_response};

use crate::call::LocalReply;
use crate::model::{Filters, HeaderModifier, PathModifier, Redirect, Rewrite};

/// Changes the request's head. A redirect comes first: it is for the request as its client made it (Gateway API,
/// HTTPRequestRedirectFilter), and nothing is sent on. A rewrite of the host comes last: it is what the server sees.
///
/// # Errors
/// What answers the request: a redirect, or [`Reason::BadRequest`] when what comes out is not a URI.
pub fn on_request(filters: &Filters, prefix: Option<&str>, request: &mut Parts) -> Result<(), LocalReply> {
    let Filters {
        // See `super::cors`.
        cors: _,
        // See `super::super::auth`.
        external_auth: _,
        redirect,
        request_headers,
        rewrites,
        // See `on_response` and `super::mirror`.
        response_headers: _,
        mirrors: _,
    } = filters;
    if let Some(redirect) = redirect {
        return Err(self::redirect(redirect, prefix, request)?.into());
    }
    for modifier in request_headers {
        modify_request(modifier, request)?;
    }
    for rewrite in rewrites {
        self::rewrite(rewrite, prefix, request)?;
    }
    Ok(())
}

/// Changes the response's head.
pub fn on_response(filters: &Filters, headers: &mut HeaderMap) {
    for modifier in &filters.response_headers {
        modify(modifier, headers, |_| true);
    }
}

/// `Host` is no header of HTTP/2, and never a list: whether it is set or added, it is whom the request is for. A request is for
/// somebody, so it is not removed.
fn modify_request(modifier: &HeaderModifier, request: &mut Parts) -> Result<(), ProxyError> {
    modify(modifier, &mut request.headers, |name| *name != HOST);
    let mut hosts = modifier.set.iter().chain(&modifier.add);
    match hosts.rfind(|(name, _)| *name == HOST) {
        Some((_, host)) => set_authority(request, host),
        None => Ok(()),
    }
}

/// `of`: which headers.
fn modify(modifier: &HeaderModifier, headers: &mut HeaderMap, of: impl Fn(&HeaderName) -> bool) {
    for (name, value) in modifier.set.iter().filter(|(name, _)| of(name)) {
        headers.insert(name, value.clone());
    }
    for (name, value) in modifier.add.iter().filter(|(name, _)| of(name)) {
        headers.append(name, value.clone());
    }
    for name in modifier.remove.iter().filter(|name| of(name)) {
        headers.remove(name);
    }
}

fn set_authority(request: &mut Parts, host: &HeaderValue) -> Result<(), ProxyError> {
    authority::set(request, host).map_err(|what| malformed(&format!("{host:?}: {what}")))
}

fn rewrite(rewrite: &Rewrite, prefix: Option<&str>, request: &mut Parts) -> Result<(), ProxyError> {
    // A CONNECT has no path, and neither has what is asked of a server as a whole.
    let old = request.uri.path_and_query().filter(|old| *old != "*");
    if let (Some(path), Some(old)) = (&rewrite.path, old) {
        let new = with_query(&new_path(path, prefix, old.path()), old.query())?;
        let mut uri = std::mem::take(&mut request.uri).into_parts();
        uri.path_and_query = Some(new);
        request.uri = Uri::from_parts(uri).map_err(|e| malformed(&e))?;
    }
    match &rewrite.hostname {
        Some(hostname) => set_authority(request, hostname),
        None => Ok(()),
    }
}

fn redirect(redirect: &Redirect, prefix: Option<&str>, request: &Parts) -> Result<Response<ResponseBody>, ProxyError> {
    let (asked, asked_port) = authority::split(authority::of(request));
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    let host = redirect.hostname.as_deref().unwrap_or(asked);
    if host.is_empty() {
        return Err(malformed(&"it names no host, nor does the redirect"));
    }
    // Gateway API: the given port, or else the well-known one of a given scheme, or else the request's.
    let port = redirect.port.or(match redirect.scheme.as_deref() {
        Some(_) => None,
        None => asked_port.and_then(|port| port.parse().ok()),
    });
    let well_known = if scheme == Scheme::HTTPS.as_str() { 443 } else { 80 };
    let port = port
        .filter(|p| *p != well_known)
        .map(|p| format!(":{p}"))
        .unwrap_or_default();
    let path = match &redirect.path {
        Some(path) => new_path(path, prefix, request.uri.path()),
        None if request.uri.path() == "*" => "/".to_owned(),
        None => request.uri.path().to_owned(),
    };
    let path = with_query(&path, request.uri.query())?;
    let location = HeaderValue::try_from(format!("{scheme}://{host}{port}{path}")).map_err(|e| malformed(&e))?;
    let mut response = empty_response(redirect.status);
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

fn new_path(modifier: &PathModifier, prefix: Option<&str>, path: &str) -> String {
    match modifier {
        PathModifier::ReplaceFull(full) => full.clone(),
        PathModifier::ReplacePrefix(replacement) => {
            // A prefix has no trailing slash, so what is left of the path is empty or begins with one.
            let rest = path.strip_prefix(prefix.unwrap_or("")).unwrap_or(path);
            let new = format!("{}{rest}", replacement.trim_end_matches('/'));
            if new.is_empty() { "/".to_owned() } else { new }
        }
    }
}

fn with_query(path: &str, query: Option<&str>) -> Result<PathAndQuery, ProxyError> {
    match query {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    }
    .map_err(|e| malformed(&e))
}

fn malformed(error: &dyn Display) -> ProxyError {
    ProxyError::new(
        Reason::BadRequest,
        format!("the request's URI cannot be rewritten as its route says: {error}"),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{on_request, on_response};
    use crate::call::LocalReply;
    use crate::model::{Filters, HeaderModifier, PathModifier, Redirect, Rewrite};
    use http::request::Parts;
    use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version};
    use outrigger_proxy_transport::authority;

    fn request(uri: &str) -> Parts {
        let request = Request::builder()
            .uri(uri)
            .header("host", "shop.example:8080")
            .header("x-old", "1");
        request.body(()).unwrap().into_parts().0
    }

    fn passes(filters: &Filters, prefix: Option<&str>, request: &mut Parts) {
        assert!(on_request(filters, prefix, request).is_ok());
    }

    fn rewritten(path: PathModifier, prefix: Option<&str>, uri: &str) -> String {
        let mut request = request(uri);
        let rewrite = Rewrite {
            hostname: None,
            path: Some(path),
        };
        let filters = Filters {
            rewrites: vec![rewrite],
            ..Filters::default()
        };
        passes(&filters, prefix, &mut request);
        request.uri.to_string()
    }

    #[test]
    fn paths() {
        let full = || PathModifier::ReplaceFull("/new".into());
        assert_eq!(rewritten(full(), None, "/a/b?c=d"), "/new?c=d");
        // The table of Gateway API's HTTPPathModifier.
        for (path, prefix, replacement, result) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/", "/foo", "", "/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/foo", "/foo", "/", "/"),
        ] {
            let to = PathModifier::ReplacePrefix(replacement.into());
            assert_eq!(rewritten(to, Some(prefix), path), result, "{path} {replacement}");
        }
    }

    fn set(name: &'static str, value: &'static str) -> HeaderModifier {
        HeaderModifier {
            set: vec![(HeaderName::from_static(name), HeaderValue::from_static(value))],
            ..HeaderModifier::default()
        }
    }

    fn host(name: &'static str) -> Rewrite {
        Rewrite {
            hostname: Some(HeaderValue::from_static(name)),
            path: None,
        }
    }

    #[test]
    fn headers_and_host() {
        let modifier = || HeaderModifier {
            add: vec![(HeaderName::from_static("x-set"), HeaderValue::from_static("2"))],
            remove: vec![HeaderName::from_static("x-old")],
            ..set("x-set", "1")
        };
        let filters = Filters {
            request_headers: vec![modifier()],
            rewrites: vec![host("other")],
            response_headers: vec![modifier()],
            ..Filters::default()
        };
        let mut r = request("/");
        passes(&filters, None, &mut r);
        assert_eq!(r.headers["host"], "other");
        assert_eq!(r.headers.get_all("x-set").iter().count(), 2);
        assert!(!r.headers.contains_key("x-old"));
        let mut headers = HeaderMap::new();
        on_response(&filters, &mut headers);
        assert_eq!(headers.len(), 2);
    }

    /// What the filters of a route do where two of them want the same.
    #[test]
    fn in_their_order() {
        let mut r = request("/");
        let filters = Filters {
            request_headers: vec![set("x-a", "1"), set("x-a", "2"), set("host", "set")],
            rewrites: vec![host("first"), host("rewritten")],
            ..Filters::default()
        };
        passes(&filters, None, &mut r);
        assert_eq!(
            (&r.headers["x-a"], &r.headers["host"]),
            (&"2".parse().unwrap(), &"rewritten".parse().unwrap())
        );
        let filters = Filters {
            redirect: Some(found()),
            ..filters
        };
        assert_eq!(location(&filters), (302, "http://shop.example:8080/a/b?c".into()));
    }

    fn found() -> Redirect {
        Redirect {
            scheme: None,
            hostname: None,
            port: None,
            path: None,
            status: StatusCode::FOUND,
        }
    }

    /// Where a request for "/a/b?c" is sent, whose route has the prefix "/a".
    fn location(filters: &Filters) -> (u16, String) {
        let Err(LocalReply::Response(response)) = on_request(filters, Some("/a"), &mut request("/a/b?c")) else {
            panic!("no redirect");
        };
        (
            response.status().as_u16(),
            response.headers()["location"].to_str().unwrap().to_owned(),
        )
    }

    #[test]
    fn redirects() {
        let location = |redirect: Redirect| {
            location(&Filters {
                redirect: Some(redirect),
                ..Filters::default()
            })
        };
        assert_eq!(location(found()), (302, "http://shop.example:8080/a/b?c".into()));
        let https = Redirect {
            scheme: Some("https".into()),
            status: StatusCode::MOVED_PERMANENTLY,
            ..found()
        };
        assert_eq!(location(https), (301, "https://shop.example/a/b?c".into()));
        let all = Redirect {
            hostname: Some("x".into()),
            port: Some(81),
            path: Some(PathModifier::ReplacePrefix("/z".into())),
            ..found()
        };
        assert_eq!(location(all), (302, "http://x:81/z/b?c".into()));
    }

    /// A request of each version, and of each form of its target.
    fn each_form() -> Vec<(&'static str, Parts)> {
        [
            ("HTTP/1.1", Version::HTTP_11, "/a?b", Some("shop.example:8080")),
            (
                "a proxy's client",
                Version::HTTP_11,
                "http://shop.example:8080/a?b",
                Some("shop.example:8080"),
            ),
            ("HTTP/2", Version::HTTP_2, "http://shop.example:8080/a?b", None),
            ("HTTP/1.0", Version::HTTP_10, "/a?b", None),
            ("HTTP/2 without an authority", Version::HTTP_2, "/a?b", None),
        ]
        .map(|(name, version, uri, host)| {
            let mut request = Request::builder().version(version).uri(uri);
            if let Some(host) = host {
                request = request.header("host", host);
            }
            (name, request.body(()).unwrap().into_parts().0)
        })
        .into()
    }

    fn headers(modifier: HeaderModifier) -> Filters {
        Filters {
            request_headers: vec![modifier],
            ..Filters::default()
        }
    }

    #[test]
    fn the_authority_in_each_version() {
        let host = |host| (HeaderName::from_static("host"), HeaderValue::from_static(host));
        let set = || HeaderModifier {
            set: vec![host("new")],
            ..HeaderModifier::default()
        };
        let add = || HeaderModifier {
            add: vec![host("new")],
            ..HeaderModifier::default()
        };
        let both = || HeaderModifier {
            set: vec![host("old")],
            add: vec![host("new")],
            remove: vec![HeaderName::from_static("host")],
        };
        let rewrite = Filters {
            rewrites: vec![self::host("new")],
            ..Filters::default()
        };
        for filters in [headers(set()), headers(add()), headers(both()), rewrite] {
            for (name, mut request) in each_form() {
                let name = format!("{name}: {filters:?}");
                passes(&filters, None, &mut request);
                assert_eq!(authority::of(&request), "new", "{name}");
                let hosts: Vec<_> = request.headers.get_all("host").iter().collect();
                let http2 = request.version == Version::HTTP_2;
                let expected: &[&str] = if http2 { &[] } else { &["new"] };
                assert_eq!(hosts, expected, "{name}");
                assert_eq!(
                    request.uri.authority().is_some(),
                    http2 || name.starts_with("a proxy"),
                    "{name}"
                );
                assert_eq!(request.uri.path_and_query().unwrap(), "/a?b", "{name}");
            }
        }
    }

    /// Requests with no path: what is asked of a server as a whole, and a CONNECT, which has a port whoever it is for.
    #[test]
    fn what_has_no_path() {
        let rewrite = |path| Filters {
            request_headers: vec![set("host", "set")],
            rewrites: vec![Rewrite {
                hostname: Some(HeaderValue::from_static("new")),
                path: Some(path),
            }],
            ..Filters::default()
        };
        let paths = || {
            [
                PathModifier::ReplaceFull("/x".into()),
                PathModifier::ReplacePrefix("/x".into()),
            ]
        };
        for (version, method, uri, host, after) in [
            (Version::HTTP_11, "CONNECT", "a:80", Some("a:80"), "new:80"),
            (Version::HTTP_2, "CONNECT", "a:80", None, "new:80"),
            (Version::HTTP_11, "OPTIONS", "*", Some("a:80"), "*"),
        ] {
            for path in paths() {
                let mut request = Request::builder().version(version).method(method).uri(uri);
                if let Some(host) = host {
                    request = request.header("host", host);
                }
                let mut request = request.body(()).unwrap().into_parts().0;
                let name = format!("{version:?} {method} {path:?}");
                passes(&rewrite(path), Some("/"), &mut request);
                assert_eq!(request.uri, after, "{name}");
                let expected = if method == "CONNECT" { "new:80" } else { "new" };
                assert_eq!(authority::of(&request), expected, "{name}");
            }
        }
        let redirect = Filters {
            redirect: Some(found()),
            ..Filters::default()
        };
        let request = Request::options("*").header("host", "a:81").body(()).unwrap();
        let Err(LocalReply::Response(response)) = on_request(&redirect, None, &mut request.into_parts().0) else {
            panic!("no redirect");
        };
        assert_eq!(response.headers()["location"], "http://a:81/");
    }

    #[test]
    fn a_request_is_for_somebody() {
        let filters = headers(HeaderModifier {
            remove: vec![HeaderName::from_static("host")],
            ..HeaderModifier::default()
        });
        for (name, mut request) in each_form() {
            let before = authority::of(&request).to_owned();
            passes(&filters, None, &mut request);
            assert_eq!(authority::of(&request), before, "{name}");
        }
    }

    #[test]
    fn redirects_in_each_version() {
        let to = |hostname: Option<&str>| {
            let redirect = Redirect {
                hostname: hostname.map(str::to_owned),
                ..found()
            };
            Filters {
                redirect: Some(redirect),
                ..Filters::default()
            }
        };
        for (name, mut request) in each_form() {
            let known = !authority::of(&request).is_empty();
            let mut location = |filters: Filters| match on_request(&filters, None, &mut request) {
                Ok(()) => panic!("{name}: no redirect"),
                Err(LocalReply::Response(response)) => response.headers()["location"].to_str().unwrap().to_owned(),
                Err(LocalReply::Error(error)) => error.detail,
            };
            if known {
                assert_eq!(location(to(None)), "http://shop.example:8080/a?b", "{name}");
                assert_eq!(location(to(Some("new"))), "http://new:8080/a?b", "{name}");
            } else {
                assert!(location(to(None)).contains("names no host"), "{name}");
                assert_eq!(location(to(Some("new"))), "http://new/a?b", "{name}");
            }
        }
    }

    #[test]
    fn a_host_that_is_none_is_not_set() {
        for host in ["a b", "a/b", "u@a", "a:b", ""] {
            let filters = headers(set("host", host));
            for (name, mut request) in each_form() {
                let changed = on_request(&filters, None, &mut request);
                assert!(changed.is_err(), "{name}: {host:?}");
            }
        }
    }
}
