//! Whom a request is for: the authority of its target, a host and perhaps a port (RFC 9110 section 7.2).
//!
//! HTTP/1 says it in `Host`, and once more in the target of a CONNECT and of a proxy's client (RFC 9112 section 3.2); HTTP/2 in
//! `:authority`, and perhaps once more in `Host`. Who decides by one of them in front of an app that believes the other can be
//! walked past. So [`settle`] leaves one answer: in HTTP/2 the URI has it, and there is no `Host`; in HTTP/1 `Host` has it, and a
//! target that names an authority names the same. Who asks, asks [`of`]; who changes it, calls [`set`].

use std::net::{Ipv6Addr, SocketAddr};

use http::header::{Entry, HOST};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Extensions, HeaderValue, Method, Request, Uri, Version};
use hyper::ext::Protocol;

/// What is wrong with a CONNECT.
pub const NO_DESTINATION: &str = "the target of a CONNECT is not a host and a port";

/// Leaves one answer to whom a request is for. In HTTP/1 the guard has looked at the lines, each by its grammar.
///
/// # Errors
/// What is wrong with the request: it is malformed (RFC 9113 sections 8.1.1 and 8.3.1).
pub fn settle<B>(request: &mut Request<B>) -> Result<(), &'static str> {
    match request.version() {
        Version::HTTP_2 => settle_http2(request),
        _ => {
            settle_http1(request);
            Ok(())
        }
    }
}

/// RFC 9112 section 3.2.2: where the target names an authority, `Host` is replaced by it.
fn settle_http1<B>(request: &mut Request<B>) {
    let Some(authority) = request.uri().authority() else {
        return;
    };
    let named = without_userinfo(authority.as_str());
    if request.headers().get(HOST).is_none_or(|host| host != named)
        // An authority is made of visible characters.
        && let Ok(host) = HeaderValue::from_str(named)
    {
        request.headers_mut().insert(HOST, host);
    }
}

fn settle_http2<B>(request: &mut Request<B>) -> Result<(), &'static str> {
    let tunnel = is_tunnel(request.method(), request.extensions());
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err("two Host headers");
    }
    // RFC 9113 section 8.3.1.
    if let Some(path) = request.uri().path_and_query().filter(|_| !tunnel) {
        let asterisk = path.as_str() == "*";
        if asterisk && request.method() != Method::OPTIONS {
            return Err("only OPTIONS has the path *");
        }
        if !asterisk && !path.as_str().starts_with('/') {
            return Err("its :path does not begin with /");
        }
    }
    let Some(authority) = request.uri().authority().map(Authority::as_str) else {
        if tunnel {
            return Err(NO_DESTINATION);
        }
        return host_becomes_authority(request);
    };
    if tunnel && !is_destination(authority.as_bytes()) {
        return Err(NO_DESTINATION);
    }
    check(request.uri())?;
    if let Some(host) = host {
        let https = request.uri().scheme() == Some(&Scheme::HTTPS);
        if !are_equal(without_userinfo(authority).as_bytes(), host.as_bytes(), https) {
            return Err("its Host is another one than its :authority");
        }
        request.headers_mut().remove(HOST);
    }
    Ok(())
}

/// A CONNECT of no protocol, which has nothing but an authority. With one, it is like any other request (RFC 8441 section 4).
fn is_tunnel(method: &Method, extensions: &Extensions) -> bool {
    method == Method::CONNECT && extensions.get::<Protocol>().is_none()
}

/// Who translates from HTTP/1 may send `Host` in place of `:authority` (RFC 9113 section 8.3.1).
fn host_becomes_authority<B>(request: &mut Request<B>) -> Result<(), &'static str> {
    let Some(host) = request.headers_mut().remove(HOST) else {
        return Ok(());
    };
    if host.is_empty() {
        return Ok(());
    }
    let authority = Some(host).filter(|host| is_authority(host.as_bytes()));
    let authority = authority.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let authority = authority.ok_or("its Host header is not a host and a port")?;
    *request.uri_mut() = with_authority(std::mem::take(request.uri_mut()), authority);
    Ok(())
}

/// The authority of a request that was settled. Empty where it names none: HTTP/1.0 need not.
pub fn of(request: &Parts) -> &str {
    let host = match request.uri.authority() {
        Some(_) => None,
        None => request.headers.get(HOST),
    };
    said(&request.uri, host)
}

/// The same of the two things that say it.
pub fn said<'a>(uri: &'a Uri, host: Option<&'a HeaderValue>) -> &'a str {
    match uri.authority() {
        Some(authority) => without_userinfo(authority.as_str()),
        None => host.and_then(|host| host.to_str().ok()).unwrap_or(""),
    }
}

/// Makes the request one for another authority, wherever it is said. A CONNECT has a port (RFC 9110 section 9.3.6): its own, where
/// `host` names none.
///
/// # Errors
/// `host` is not a host and a port; the request is as it was.
pub fn set(request: &mut Parts, host: &HeaderValue) -> Result<(), &'static str> {
    const NO_HOST: &str = "it is not a host and a port";
    if !is_authority(host.as_bytes()) {
        return Err(NO_HOST);
    }
    let mut host = host.clone();
    if is_tunnel(&request.method, &request.extensions) && !is_destination(host.as_bytes()) {
        let port = split(of(request)).1.unwrap_or_default();
        let with_port = [split_bytes(host.as_bytes()).0, b":", port.as_bytes()].concat();
        host = HeaderValue::try_from(with_port).map_err(|_| NO_HOST)?;
    }
    let http2 = request.version == Version::HTTP_2;
    if http2 || request.uri.authority().is_some() {
        let authority = Authority::try_from(host.as_bytes()).map_err(|_| NO_HOST)?;
        request.uri = with_authority(std::mem::take(&mut request.uri), authority);
    }
    if !http2 {
        request.headers.insert(HOST, host);
    }
    Ok(())
}

/// Names the endpoint itself where the client names nobody: HTTP/1.1 has to have a host, and the library sends HTTP/2 with
/// an absolute URI only. `from`: the client's version of HTTP.
pub fn complete<B>(request: &mut Request<B>, from: Version, to: SocketAddr) {
    match from {
        Version::HTTP_10 => {
            if let Entry::Vacant(vacant) = request.headers_mut().entry(HOST)
                && let Ok(host) = HeaderValue::try_from(to.to_string())
            {
                vacant.insert(host);
            }
        }
        Version::HTTP_2
            if request.uri().authority().is_none() && !is_tunnel(request.method(), request.extensions()) =>
        {
            if let Ok(authority) = Authority::try_from(to.to_string()) {
                *request.uri_mut() = with_authority(std::mem::take(request.uri_mut()), authority);
            }
        }
        _ => {}
    }
}

/// What a target names is a host and perhaps a port. Userinfo is refused where a page could hide with it whom it links to
/// (RFC 9110 section 4.2.4); other schemes, `ftp` for instance, have it.
///
/// # Errors
/// What is wrong with it.
pub fn check(uri: &Uri) -> Result<(), &'static str> {
    let Some(authority) = uri.authority().map(Authority::as_str) else {
        return Ok(());
    };
    let named = without_userinfo(authority);
    if named.len() < authority.len() && matches!(uri.scheme_str(), None | Some("http" | "https")) {
        return Err("userinfo in its target");
    }
    match is_authority(named.as_bytes()) {
        true => Ok(()),
        false => Err("the authority of its target is not a host and a port"),
    }
}

/// Host and port of an authority; an IPv6 address with its brackets.
pub fn split(authority: &str) -> (&str, Option<&str>) {
    let (host, port) = split_bytes(authority.as_bytes());
    let after = authority.get(host.len() + 1..);
    (&authority[..host.len()], port.and(after))
}

/// RFC 9110 section 7.2: `uri-host [ ":" port ]`, the host by RFC 3986 section 3.2.2 and not empty (RFC 9110 section 4.2.1), the
/// port one that TCP has.
pub fn is_authority(bytes: &[u8]) -> bool {
    let (host, port) = split_bytes(bytes);
    is_host(host) && port.is_none_or(|port| port.is_empty() || number(port).is_some())
}

/// RFC 9110 section 9.3.6: the target of a CONNECT has a port, and a valid one.
pub fn is_destination(bytes: &[u8]) -> bool {
    let (host, port) = split_bytes(bytes);
    is_host(host) && port.and_then(number).is_some_and(|port| port > 0)
}

/// What comes behind the userinfo, which no request has in `Host` (RFC 9110 section 7.2).
fn without_userinfo(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

fn with_authority(uri: Uri, authority: Authority) -> Uri {
    let mut parts = uri.into_parts();
    if parts.path_and_query.is_some() && parts.scheme.is_none() {
        parts.scheme = Some(Scheme::HTTP);
    }
    if parts.scheme.is_some() && parts.path_and_query.is_none() {
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
    }
    parts.authority = Some(authority);
    // A scheme, an authority and a path, or an authority alone: both are URIs.
    Uri::from_parts(parts).unwrap_or_default()
}

fn split_bytes(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    // Of an IPv6 address, the colons are in brackets.
    let from = match authority.first() {
        Some(b'[') => memchr::memchr(b']', authority).unwrap_or(0),
        _ => 0,
    };
    match memchr::memrchr(b':', &authority[from..]) {
        Some(colon) => (&authority[..from + colon], Some(&authority[from + colon + 1..])),
        None => (authority, None),
    }
}

fn is_host(host: &[u8]) -> bool {
    match host.strip_prefix(b"[") {
        Some(rest) => rest.strip_suffix(b"]").is_some_and(is_ip_literal),
        None => !host.is_empty() && is_reg_name(host),
    }
}

/// RFC 3986 section 3.2.2: an IPv6 address, or one of a version to come.
fn is_ip_literal(literal: &[u8]) -> bool {
    let text = std::str::from_utf8(literal).unwrap_or("");
    let to_come = text.strip_prefix(['v', 'V']).and_then(|rest| rest.split_once('.'));
    text.parse::<Ipv6Addr>().is_ok()
        || to_come.is_some_and(|(version, address)| {
            !version.is_empty()
                && version.bytes().all(|b| b.is_ascii_hexdigit())
                && !address.is_empty()
                && address.bytes().all(|b| is_of_name(b) || b == b':')
        })
}

/// An IPv4 address is one, too.
fn is_reg_name(mut name: &[u8]) -> bool {
    while let Some(at) = name.iter().position(|&b| !is_of_name(b)) {
        match &name[at..] {
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => name = rest,
            _ => return false,
        }
    }
    true
}

/// RFC 3986: unreserved and sub-delims.
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

/// A port. `None`: it is none, or there is nothing.
fn number(port: &[u8]) -> Option<u16> {
    let digits = port.iter().all(u8::is_ascii_digit).then_some(port)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Whether both name the same entity (RFC 3986 section 6.2.3: letters of either case, and the scheme's own port or none).
fn are_equal(one: &[u8], other: &[u8], https: bool) -> bool {
    let port = |port: Option<&[u8]>| match port {
        None | Some([]) => Some(if https { 443 } else { 80 }),
        Some(port) => number(port),
    };
    let ((host, first), (other_host, second)) = (split_bytes(one), split_bytes(other));
    one == other || (host.eq_ignore_ascii_case(other_host) && port(first) == port(second))
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
