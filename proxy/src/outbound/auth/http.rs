//! A question in plain HTTP: the head of the request, with little of its headers, to a path of the server's; and what its answer means.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, response};
use hyper::ext::Protocol;
use outrigger_proxy_transport::authority;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::headers::REQUEST_ID;
use outrigger_proxy_transport::net::HttpVersion;

use super::verdict::{Change, Denial};
use super::{Question, listed};

const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");

/// About a request. Whatever it speaks, the question is one of HTTP/1.1, which each server of HTTP speaks.
///
/// # Errors
/// There is no such question about this request, and it is not let through.
pub(super) fn question(
    prefix: &str,
    headers: &[HeaderName],
    head: &Parts,
    body: Option<Bytes>,
) -> Result<Question, ProxyError> {
    let method = match (&head.method, head.extensions.get::<Protocol>()) {
        // A question with this method would be a tunnel of its own. RFC 8441 section 5: what a WebSocket of HTTP/1 begins with is GET.
        (&Method::CONNECT, Some(_)) => Method::GET,
        (&Method::CONNECT, None) => {
            let tunnel = "its route has an ExternalAuth filter of the protocol HTTP, which cannot ask about a CONNECT";
            return Err(ProxyError::new(Reason::AuthDenied, tunnel));
        }
        (method, _) => method.clone(),
    };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = target(prefix, &head.uri)?;
    let (mut asked, ()) = request.into_parts();
    let host = authority::of(head);
    if let Ok(host) = HeaderValue::from_str(host)
        && !host.is_empty()
    {
        asked.headers.insert(HOST, host);
    }
    let all = [AUTHORIZATION];
    for name in listed(Some(headers), &head.headers).chain(&all) {
        if asked.headers.contains_key(name) {
            continue;
        }
        for value in head.headers.get_all(name) {
            asked.headers.append(name, value.clone());
        }
    }
    let body = body.unwrap_or_default();
    asked.headers.insert(CONTENT_LENGTH, body.len().into());
    Ok(Question {
        head: asked,
        body: [body, Bytes::new()],
        version: HttpVersion::Http1,
    })
}

/// The path of the request behind the prefix, with its query.
fn target(prefix: &str, uri: &Uri) -> Result<Uri, ProxyError> {
    if !prefix.is_empty() && climbs(uri.path()) {
        let other =
            "its path has segments \"..\", by which it would lead out of http.path of its route's ExternalAuth filter";
        return Err(ProxyError::new(Reason::AuthDenied, other));
    }
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    // "OPTIONS *" has no path that something could stand before.
    let slash = if path == "*" && !prefix.is_empty() { "/" } else { "" };
    format!("{prefix}{slash}{path}").parse().map_err(|error| {
        let what = format!("the path that its route's ExternalAuth filter makes of it is none: {error}");
        ProxyError::new(Reason::BadRequest, what)
    })
}

/// Whether some server reads a segment "..", however it is written: the question would be about another path than the request.
fn climbs(path: &str) -> bool {
    if !path.contains(['.', '%']) {
        return false;
    }
    let read = path.to_ascii_lowercase().replace("%2e", ".").replace("%3b", ";");
    let read = read.replace("%2f", "/").replace("%5c", "/").replace('\\', "/");
    // Some cut a segment off at its parameters (RFC 3986 section 3.3).
    read.split('/').any(|segment| segment.split(';').next() == Some(".."))
}

/// What makes the question a part of the request's trace; the span's own context is written later.
pub(super) fn trace(of: &HeaderMap, asked: &mut HeaderMap) {
    for name in [REQUEST_ID, TRACE_STATE] {
        if let Some(value) = of.get(&name) {
            asked.insert(name, value.clone());
        }
    }
}

/// GEP-1494: 200, and no other status.
pub(super) fn admits<B>(response: &Response<B>) -> bool {
    response.status() == StatusCode::OK
}

/// What the answer says of the request: each header in place of what the client has sent by that name. One that is asked for by name, and is not
/// there, is taken away: only the server says it. What is said of the answer's own content is not for the request, unless it is asked for.
pub(super) fn changes(list: Option<&[HeaderName]>, answer: &HeaderMap) -> Vec<Change> {
    let mut changes = Vec::new();
    for name in listed(list, answer) {
        let of_content = name.as_str().starts_with("content-");
        if list.is_none() && of_content {
            continue;
        }
        changes.push(Change::Remove(name.clone()));
        let values = answer.get_all(name).iter();
        changes.extend(values.map(|value| Change::Append(name.clone(), value.clone())));
    }
    changes
}

/// What the client hears of another answer.
pub(super) fn denial(head: response::Parts, body: Option<Bytes>) -> Denial {
    Denial {
        status: Denial::status(Some(head.status)),
        headers: head.headers,
        body,
    }
}
