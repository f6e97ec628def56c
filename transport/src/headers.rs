//! Headers that a proxy has an opinion about.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

/// Carries the code of an error that a sidecar answered itself.
pub const OUTRIGGER_ERROR: HeaderName = HeaderName::from_static("outrigger-error");
/// Says what was done to a request on purpose: "delay", "abort" or both. The caller's own sidecar says it, and no other.
pub const OUTRIGGER_FAULT: HeaderName = HeaderName::from_static("outrigger-fault");
/// Says in place of which failure a response stands. The caller's own sidecar says it, and no other.
pub const OUTRIGGER_FALLBACK: HeaderName = HeaderName::from_static("outrigger-fallback");
/// To an app: the SPIFFE ID of who calls it, which mutual TLS has proven. Without mutual TLS there is none.
pub const OUTRIGGER_CLIENT_ID: HeaderName = HeaderName::from_static("outrigger-client-id");
/// Names that only sidecars may use: what they say to one another, and to those who call them.
const OURS: &str = "outrigger-";
/// One ID for a request in all logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The addresses that a request came by, the last proxy's word last.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// A client's word that a request may be repeated (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Whether the client asks for another protocol on this connection. A CONNECT does as well. HTTP itself ([`stays_http`]) is no
/// other one.
pub fn wants_upgrade(method: &Method, headers: &HeaderMap) -> bool {
    asks_for_tunnel(method, headers) && (method == Method::CONNECT || names_in_connection(headers, "upgrade"))
}

/// Whether other bytes than HTTP may follow the request; also when `Connection` does not say so.
pub fn asks_for_tunnel(method: &Method, headers: &HeaderMap) -> bool {
    let upgrade = || headers.get_all(UPGRADE).iter();
    method == Method::CONNECT
        || (headers.contains_key(UPGRADE) && !upgrade().any(|protocols| stays_http(protocols.as_bytes())))
}

/// Whether a list of protocols has another version of HTTP: "h2c" (RFC 7540 section 3.2, taken back by RFC 9113; Java's client asks
/// for it by default) or "HTTP/2.0". That is not followed, whatever stands beside it, because servers choose what they like: the
/// requests in it would be opaque, and nobody would judge them.
pub fn stays_http(list: &[u8]) -> bool {
    protocols(list).any(|protocol| is_named(protocol, b"h2c") || is_named(protocol, b"http"))
}

/// Whether TLS may begin where the request ends (RFC 2817 section 3): what follows is HTTP again, which nobody but the app can read.
pub fn asks_for_tls(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(UPGRADE).iter();
    lines.any(|list| protocols(list.as_bytes()).any(|protocol| is_named(protocol, b"tls")))
}

/// Whether a protocol of any version has this name, in any case. White space in it is no part of it: there are servers that drop it.
fn is_named(protocol: &[u8], name: &[u8]) -> bool {
    let before_version = protocol.split(|&b| b == b'/').next().unwrap_or_default();
    let letters = before_version.iter().filter(|b| !b.is_ascii_whitespace());
    letters.map(u8::to_ascii_lowercase).eq(name.iter().copied())
}

/// The members of a list of protocols (RFC 9110 section 7.8).
pub fn protocols(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let protocols = list.split(|&b| b == b',').map(<[u8]>::trim_ascii);
    protocols.filter(|protocol| !protocol.is_empty())
}

/// Several lines of cookies become one. In HTTP/2 a client may cut them at will, for the sake of compression, and whoever reads them as HTTP
/// is given them whole (RFC 9113 section 8.2.3): routes, policies, and apps. In HTTP/1 a client must not send several (RFC 6265 section 5.4);
/// where one does, the app reads what policies have judged.
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else {
        return;
    };
    let all: Vec<&HeaderValue> = [first, second].into_iter().chain(lines).collect();
    // One that is not to be in a table of compression, by its sender's word (RFC 7541 section 7.1.3).
    let is_sensitive = all.iter().any(|line| line.is_sensitive());
    let bytes: Vec<&[u8]> = all.iter().map(|line| line.as_bytes()).collect();
    // What were values are one together.
    if let Ok(mut joined) = HeaderValue::from_maybe_shared(Bytes::from(bytes.join(&b"; "[..]))) {
        joined.set_sensitive(is_sensitive);
        headers.insert(COOKIE, joined);
    }
}

/// Copies of the headers that [`strip_hop_by_hop`] will remove because the sender names them in `Connection`.
pub fn named_for_this_hop(headers: &HeaderMap) -> HeaderMap {
    let mut named = HeaderMap::new();
    if headers.contains_key(CONNECTION) {
        for name in removable(headers) {
            for value in headers.get_all(&name) {
                named.append(&name, value.clone());
            }
        }
    }
    named
}

/// Removes what is meant for this hop alone (RFC 9110 section 7.6.1). `Transfer-Encoding` stays: hyper frames the body
/// anew by it. With `upgrade`, the request for another protocol stays.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = removable(headers).collect();
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

/// The same of a response. An answer that is about another protocol keeps its name: 101, and 426, which has to name one (RFC 9110
/// section 15.5.22).
pub fn strip_response<B>(response: &mut Response<B>) {
    let names_protocol = matches!(
        response.status(),
        StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED
    );
    strip_hop_by_hop(response.headers_mut(), names_protocol);
}

/// Removes from trailers what only a sidecar may say, and what frames or routes a message, which no trailer does (RFC 9110
/// section 6.5.1).
pub fn strip_trailers(trailers: &mut HeaderMap) {
    remove_each(trailers, is_reserved);
}

/// Whether a header is what only a sidecar may say, or frames or routes the message that it stands in: it is no word that could be passed on in
/// another message.
pub fn is_reserved(name: &HeaderName) -> bool {
    is_ours(name)
        || [
            CONNECTION,
            CONTENT_LENGTH,
            HOST,
            TE,
            TRAILER,
            TRANSFER_ENCODING,
            UPGRADE,
        ]
        .contains(name)
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
}

/// Removes what only a sidecar may say: from all that comes from elsewhere, or anybody could say it.
pub fn strip_ours(headers: &mut HeaderMap) {
    remove_each(headers, is_ours);
}

fn is_ours(name: &HeaderName) -> bool {
    name.as_str().starts_with(OURS)
}

/// Found in one pass: a client may send thousands of them.
fn remove_each(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| goes(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// The names in `Connection` that end at this hop by the sender's word.
fn removable(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    connection_tokens(headers)
        .filter(|token| !token.eq_ignore_ascii_case("upgrade"))
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        // What frames or routes the message cannot be removed by a client's word.
        .filter(|name| {
            !matches!(
                name.as_str(),
                "host" | "content-length" | "transfer-encoding" | "te" | "trailer"
            )
        })
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
    use super::{
        asks_for_tls, asks_for_tunnel, join_cookies, named_for_this_hop, strip_hop_by_hop, strip_ours, strip_response,
        strip_trailers, wants_upgrade,
    };
    use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};

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
        let named = named_for_this_hop(&h);
        assert_eq!(named, headers(&[("x-private", "1")]));
        strip_hop_by_hop(&mut h, false);
        assert_eq!(h, headers(&[("host", "a"), ("te", "trailers"), ("x-kept", "1")]));
        assert!(named_for_this_hop(&h).is_empty());
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
    fn another_version_of_http_is_no_other_protocol_whatever_stands_beside_it() {
        for (upgrade, asks) in [
            (&["websocket"][..], true),
            (&["IRC/6.9, RTA/x11"], true),
            (&["xh2c", "h2", "httpx/1"], true),
            (&["h2c/1"], false),
            (&["h 2c"], false),
            (&["HTTP /2.0"], false),
            (&[""], true),
            (&[], false),
            (&["h2c"], false),
            (&["H2C"], false),
            (&["x", "h2c"], false),
            (&["h2c", "x"], false),
            (&["x, h2c"], false),
            (&["x,\tH2c ,y"], false),
            (&["HTTP/2.0"], false),
            (&["x", "http/3, y"], false),
            (&["HTTP"], false),
        ] {
            let lines: Vec<_> = upgrade.iter().map(|list| ("upgrade", *list)).collect();
            let lines = headers(&lines);
            assert_eq!(asks_for_tunnel(&Method::GET, &lines), asks, "{upgrade:?}");
            assert!(asks_for_tunnel(&Method::CONNECT, &lines), "{upgrade:?}");
        }
    }

    #[test]
    fn cookies_are_one_line() {
        for (lines, joined) in [
            (&[][..], &[][..]),
            (&["a=1; b=2"], &["a=1; b=2"]),
            (&["a=1", "b=2"], &["a=1; b=2"]),
            (&["a=1", "b=2; c=3", "a=1"], &["a=1; b=2; c=3; a=1"]),
        ] {
            let of = |lines: &[&'static str]| {
                let mut all = headers(&[("x", "1"), ("x", "2")]);
                all.extend(headers(&lines.iter().map(|line| ("cookie", *line)).collect::<Vec<_>>()));
                all
            };
            let mut all = of(lines);
            join_cookies(&mut all);
            assert_eq!(all, of(joined));
        }
        let mut all = headers(&[("cookie", "a=1")]);
        let mut secret = HeaderValue::from_static("b=2");
        secret.set_sensitive(true);
        all.append("cookie", secret);
        join_cookies(&mut all);
        assert!(all["cookie"].is_sensitive());
    }

    #[test]
    fn tls_that_is_asked_for_is_seen_wherever_it_stands() {
        for (upgrade, asks) in [
            (&["TLS/1.0"][..], true),
            (&["tls/1.3"], true),
            (&["TLS"], true),
            (&["websocket, TLS/1.2"], true),
            (&["websocket", "\ttLs /1.2 ,x"], true),
            (&["T LS/1.2"], true),
            (&["websocket"], false),
            (&["xtls/1", "tls1.2", "x/tls"], false),
            (&[""], false),
            (&[], false),
        ] {
            let lines: Vec<_> = upgrade.iter().map(|list| ("upgrade", *list)).collect();
            assert_eq!(asks_for_tls(&headers(&lines)), asks, "{upgrade:?}");
        }
    }

    #[test]
    fn an_answer_about_another_protocol_names_it() {
        let about = [
            ("connection", "close, Upgrade"),
            ("upgrade", "TLS/1.3"),
            ("keep-alive", "max=5"),
        ];
        for (status, left) in [
            (101, headers(&[("connection", "upgrade"), ("upgrade", "TLS/1.3")])),
            (426, headers(&[("connection", "upgrade"), ("upgrade", "TLS/1.3")])),
            // Advertised to the next hop, which is a sidecar.
            (200, HeaderMap::new()),
            (400, HeaderMap::new()),
        ] {
            let mut response = Response::builder().status(status).body(()).unwrap();
            *response.headers_mut() = headers(&about);
            strip_response(&mut response);
            assert_eq!(*response.headers(), left, "{status}");
        }
    }

    /// Part of what the answer means, though another proxy would take it for itself: the app may be one.
    #[test]
    fn what_a_proxy_asks_for_passes() {
        let asks = [
            ("proxy-authenticate", "Basic"),
            ("proxy-authorization", "Basic x"),
            ("proxy-authentication-info", "x"),
            ("trailer", "x-sum"),
            ("www-authenticate", "Negotiate"),
        ];
        let mut response = Response::builder().status(407).body(()).unwrap();
        *response.headers_mut() = headers(&asks);
        strip_response(&mut response);
        assert_eq!(*response.headers(), headers(&asks));
    }

    #[test]
    fn trailers_frame_and_route_nothing() {
        let mut trailers = headers(&[
            ("x-sum", "1"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "b"),
            ("connection", "close"),
            ("keep-alive", "max=5"),
            ("proxy-connection", "close"),
            ("upgrade", "x"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("outrigger-error", "no-route"),
            ("grpc-status", "0"),
        ]);
        strip_trailers(&mut trailers);
        assert_eq!(trailers, headers(&[("x-sum", "1"), ("grpc-status", "0")]));
    }
}
