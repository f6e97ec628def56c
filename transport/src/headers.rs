//! Headers that a proxy has an opinion about.

use http::header::{CONNECTION, CONTENT_LENGTH, Entry, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

/// Carries the code of an error that a sidecar answered itself.
pub const OUTRIGGER_ERROR: HeaderName = HeaderName::from_static("outrigger-error");
/// Names that only sidecars may use: what they say to one another, and to those who call them.
const OURS: &str = "outrigger-";
/// One ID for a request in all logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A client's word that a request may be repeated (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// RFC 9112 section 3.2.2: where the request line names the host, that is the host; another one in `Host` is ignored by
/// some servers and believed by others.
pub fn settle_host<B>(request: &mut Request<B>) {
    let Some(authority) = request
        .uri()
        .authority()
        .filter(|_| request.method() != Method::CONNECT)
    else {
        return;
    };
    let host = authority
        .as_str()
        .rsplit_once('@')
        .map_or(authority.as_str(), |(_, host)| host);
    // An authority is made of visible characters.
    if let Ok(host) = HeaderValue::from_str(host) {
        request.headers_mut().insert(HOST, host);
    }
}

/// HTTP/1.1 has to have a host; a client of HTTP/1.0 need not send one.
pub fn add_host<B>(request: &mut Request<B>, to: std::net::SocketAddr) {
    if let Entry::Vacant(vacant) = request.headers_mut().entry(HOST)
        && let Ok(host) = HeaderValue::try_from(to.to_string())
    {
        vacant.insert(host);
    }
}

/// Whether a response is framed in one way only (RFC 9112 section 6.3); the mirror of what the guard refuses in requests,
/// as far as hyper's client lets it through.
///
/// # Errors
/// What is wrong with it.
pub fn check_response(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut coded = headers.get_all(TRANSFER_ENCODING).iter();
    match (coded.next(), coded.next()) {
        (None, _) => {}
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            if headers.contains_key(CONTENT_LENGTH) {
                return Err("both Transfer-Encoding and Content-Length");
            }
        }
        _ => return Err("a Transfer-Encoding other than chunked"),
    }
    Ok(())
}

/// Whether the client asks for another protocol on this connection. A CONNECT does as well. "h2c" (RFC 7540 section 3.2,
/// taken back by RFC 9113; Java's client asks for it by default) is not followed: everything after it would be opaque.
pub fn wants_upgrade(method: &Method, headers: &HeaderMap) -> bool {
    asks_for_tunnel(method, headers) && (method == Method::CONNECT || names_in_connection(headers, "upgrade"))
}

/// Whether other bytes than HTTP may follow the request; also when `Connection` does not say so.
pub fn asks_for_tunnel(method: &Method, headers: &HeaderMap) -> bool {
    let is_h2c = |protocol: &HeaderValue| protocol.as_bytes().eq_ignore_ascii_case(b"h2c");
    method == Method::CONNECT || headers.get_all(UPGRADE).iter().any(|protocol| !is_h2c(protocol))
}

/// Removes what is meant for this hop alone (RFC 9110 section 7.6.1). `Transfer-Encoding` stays: hyper frames the body
/// anew by it. With `upgrade`, the request for another protocol stays.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = connection_tokens(headers)
            .filter(|token| !token.eq_ignore_ascii_case("upgrade"))
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            // What frames or routes the message cannot be removed by a client's word.
            .filter(|name| {
                !matches!(
                    name.as_str(),
                    "host" | "content-length" | "transfer-encoding" | "te" | "trailer"
                )
            })
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    // They should be named in `Connection`, and are not always.
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    // A CONNECT, and its answer, name no protocol.
    if upgrade && headers.contains_key(UPGRADE) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
    // "te: trailers" alone passes: gRPC needs it.
    if headers.get_all(TE).iter().any(|te| te != "trailers") {
        let trailers = headers.get_all(TE).iter().any(|te| {
            te.to_str().is_ok_and(|te| {
                te.split(',')
                    .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
            })
        });
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// Removes what only a sidecar may say: from all that comes from elsewhere, trailers too, or anybody could say it.
pub fn strip_ours(headers: &mut HeaderMap) {
    let is_ours = |name: &&HeaderName| name.as_str().starts_with(OURS);
    // Found in one pass: a client may send thousands of them.
    let ours: Vec<HeaderName> = headers.keys().filter(is_ours).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// The host that the request is for, as it was sent: the URI's authority, or `Host`.
pub fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> &'a str {
    match uri.authority() {
        Some(authority) => authority.as_str(),
        None => headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or(""),
    }
}

/// HTTP/2 is sent with an absolute URI; a client may have sent `Host` instead of `:authority`.
pub fn complete_uri<B>(request: &mut Request<B>, fallback: std::net::SocketAddr) {
    if request.version() != Version::HTTP_2
        || request.uri().authority().is_some()
        || request.method() == Method::CONNECT
    {
        return;
    }
    let host = request.headers_mut().remove(HOST);
    let authority = host
        .as_ref()
        .and_then(|host| http::uri::Authority::try_from(host.as_bytes()).ok())
        .or_else(|| http::uri::Authority::try_from(fallback.to_string()).ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    parts.authority = authority;
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    }
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

fn names_in_connection(headers: &HeaderMap, wanted: &str) -> bool {
    connection_tokens(headers).any(|token| token.eq_ignore_ascii_case(wanted))
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{complete_uri, strip_hop_by_hop, strip_ours, wants_upgrade};
    use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Version};

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn hop_by_hop_headers_end_here() {
        let mut h = headers(&[
            ("connection", "close, x-private, host"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("host", "a"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("x-kept", "1"),
        ]);
        strip_hop_by_hop(&mut h, false);
        assert_eq!(h, headers(&[("host", "a"), ("te", "trailers"), ("x-kept", "1")]));
    }

    #[test]
    fn what_only_sidecars_say_is_removed() {
        let mut h = headers(&[
            ("outrigger-error", "app-unavailable"),
            ("x-outrigger-error", "1"),
            ("outrigger-error", "no-route"),
            ("outrigger", "1"),
            ("outrigger-", "1"),
            ("outrigger-of-tomorrow", "1"),
        ]);
        strip_ours(&mut h);
        assert_eq!(h, headers(&[("x-outrigger-error", "1"), ("outrigger", "1")]));
    }

    #[test]
    fn an_upgrade_passes() {
        let mut h = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert!(wants_upgrade(&Method::GET, &h));
        strip_hop_by_hop(&mut h, true);
        assert_eq!(h, headers(&[("connection", "upgrade"), ("upgrade", "websocket")]));
        assert!(!wants_upgrade(&Method::GET, &headers(&[("upgrade", "websocket")])));
        let h2c = [
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
        ];
        let mut h2c = headers(&h2c);
        assert!(!wants_upgrade(&Method::GET, &h2c));
        strip_hop_by_hop(&mut h2c, false);
        assert!(h2c.is_empty());
    }

    #[test]
    fn http2_gets_an_authority() {
        let mut r = Request::builder().uri("/x").header("host", "a:1").body(()).unwrap();
        *r.version_mut() = Version::HTTP_2;
        complete_uri(&mut r, "10.0.0.1:80".parse().unwrap());
        assert_eq!(r.uri(), "http://a:1/x");
    }
}
