#![allow(clippy::unwrap_used)]
use super::{complete, is_authority, is_destination, of, set, settle, split};
use http::request::Parts;
use http::{HeaderValue, Request, Version};
use hyper::ext::Protocol;

const ONE: Version = Version::HTTP_11;
const TWO: Version = Version::HTTP_2;
const OLD: Version = Version::HTTP_10;

fn request(version: Version, method: &str, uri: &str, hosts: &[&'static str]) -> Request<()> {
    let mut request = Request::builder()
        .version(version)
        .method(method)
        .uri(uri)
        .body(())
        .unwrap();
    for host in hosts {
        request.headers_mut().append("host", HeaderValue::from_static(host));
    }
    request
}

fn head(request: Request<()>) -> Parts {
    request.into_parts().0
}

fn hosts(request: &Parts) -> Vec<&str> {
    request
        .headers
        .get_all("host")
        .iter()
        .map(|host| host.to_str().unwrap())
        .collect()
}

#[test]
fn a_host_and_a_port() {
    for (authority, is_one, is_target_of_connect) in [
        ("a", true, false),
        ("a:80", true, true),
        ("A.b-c_d~e", true, false),
        ("a.b.", true, false),
        ("a:", true, false),
        ("a:0", true, false),
        ("a:00080", true, true),
        ("a:65535", true, true),
        ("10.0.0.1:8080", true, true),
        ("[::1]", true, false),
        ("[::1]:80", true, true),
        ("[::ffff:10.0.0.1]:80", true, true),
        ("[v1.a:b]:80", true, true),
        ("a!$&'()*+,;=b", true, false),
        ("a%4a%F0", true, false),
        ("", false, false),
        (":80", false, false),
        (":", false, false),
        ("a:b", false, false),
        ("a:80:90", false, false),
        ("a:65536", false, false),
        ("a:-1", false, false),
        ("a:+1", false, false),
        ("a: 80", false, false),
        ("::1", false, false),
        ("[::1", false, false),
        ("::1]", false, false),
        ("[]", false, false),
        ("[a]", false, false),
        ("[10.0.0.1]", false, false),
        ("[::1]x", false, false),
        ("[::1]x:80", false, false),
        ("[::1%25eth0]", false, false),
        ("[v.a]", false, false),
        ("x[::1]", false, false),
        ("a b", false, false),
        ("a\tb", false, false),
        ("a/b", false, false),
        ("a\\b", false, false),
        ("a?b", false, false),
        ("a#b", false, false),
        ("u@a", false, false),
        ("u:p@a:80", false, false),
        ("http://a", false, false),
        ("a%", false, false),
        ("a%4", false, false),
        ("a%zz", false, false),
        ("a\"b", false, false),
        ("<a>", false, false),
        ("a|b", false, false),
        ("a^b", false, false),
        ("caf\u{e9}", false, false),
        ("a\0", false, false),
    ] {
        assert_eq!(is_authority(authority.as_bytes()), is_one, "{authority:?}");
        assert_eq!(
            is_destination(authority.as_bytes()),
            is_target_of_connect,
            "{authority:?}"
        );
    }
}

/// Whatever it is, it has two parts, and one that is an authority has a host that is one.
#[test]
fn parts_of_anything() {
    const BYTES: &[u8] = b"a1.:[]%@/v\xc3\xa9 -";
    let mut state = 1_u64;
    for _ in 0..20_000 {
        // xorshift64
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        let bytes: Vec<u8> = (0..next() % 12).map(|_| BYTES[next() % BYTES.len()]).collect();
        let Ok(text) = std::str::from_utf8(&bytes) else {
            assert!(!is_authority(&bytes));
            continue;
        };
        let (host, port) = split(text);
        assert_eq!([host, port.map_or("", |_| ":"), port.unwrap_or("")].concat(), text);
        if is_authority(&bytes) {
            assert!(is_authority(host.as_bytes()), "{text}");
            assert!(!host.contains(['@', '/', ' ']), "{text}");
            // The library that carries it in a URI takes all of it, or none: percent-encoding.
            assert!(
                text.parse::<http::uri::Authority>().is_ok() || text.contains('%') || text.contains("[v"),
                "{text}"
            );
        }
    }
}

#[test]
fn one_answer_is_left() {
    // Version, method, URI, Host; and whom it is for, or what is wrong.
    for (version, method, uri, said, expected) in [
        (ONE, "GET", "/", &["a"][..], Ok("a")),
        (ONE, "GET", "/", &[""], Ok("")),
        (ONE, "OPTIONS", "*", &["a:81"], Ok("a:81")),
        (ONE, "GET", "http://b:80/", &["a"], Ok("b:80")),
        (ONE, "GET", "http://B/", &["b"], Ok("B")),
        (ONE, "GET", "ftp://u:p@b/", &["a"], Ok("b")),
        (ONE, "CONNECT", "b:443", &["a"], Ok("b:443")),
        (ONE, "CONNECT", "[::1]:443", &["a"], Ok("[::1]:443")),
        (OLD, "GET", "/", &[], Ok("")),
        (OLD, "GET", "/", &["a"], Ok("a")),
        (OLD, "GET", "http://b/", &[], Ok("b")),
        (TWO, "GET", "http://a/", &[], Ok("a")),
        (TWO, "GET", "http://A:8080/", &[], Ok("A:8080")),
        (TWO, "GET", "/", &["a"], Ok("a")),
        (TWO, "GET", "/", &["[::1]:80"], Ok("[::1]:80")),
        (TWO, "GET", "/", &[], Ok("")),
        (TWO, "GET", "/", &[""], Ok("")),
        (TWO, "GET", "/", &["a b"], Err("Host")),
        (TWO, "GET", "/", &["u@a"], Err("Host")),
        (TWO, "GET", "/", &["a:b"], Err("Host")),
        (TWO, "GET", "/", &["a", "a"], Err("two Host")),
        (TWO, "GET", "http://a/", &["a", "b"], Err("two Host")),
        // The same by RFC 3986 section 6.2.3.
        (TWO, "GET", "http://a/", &["a"], Ok("a")),
        (TWO, "GET", "http://a/", &["A"], Ok("a")),
        (TWO, "GET", "http://a/", &["a:80"], Ok("a")),
        (TWO, "GET", "http://a:80/", &["a"], Ok("a:80")),
        (TWO, "GET", "http://a:/", &["a"], Ok("a:")),
        (TWO, "GET", "https://a/", &["a:443"], Ok("a")),
        (TWO, "GET", "https://a/", &["a:80"], Err("another one")),
        (TWO, "GET", "http://a/", &["b"], Err("another one")),
        (TWO, "GET", "http://a/", &["a:81"], Err("another one")),
        (TWO, "GET", "http://a/", &["a."], Err("another one")),
        (TWO, "GET", "http://a/", &["u@a"], Err("another one")),
        (TWO, "GET", "http://a/", &[""], Err("another one")),
        (TWO, "GET", "http://u@a/", &[], Err("userinfo")),
        (TWO, "GET", "https://u:p@a/", &["a"], Err("userinfo")),
        (TWO, "GET", "ftp://u@a/", &["a"], Ok("a")),
        (TWO, "GET", "http://a:b/", &[], Err("not a host and a port")),
        (TWO, "GET", "http://a:65536/", &[], Err("not a host and a port")),
        (TWO, "GET", "http://[a]/", &[], Err("not a host and a port")),
        (TWO, "GET", "*", &["a"], Err("only OPTIONS")),
        (TWO, "OPTIONS", "*", &["a"], Ok("a")),
        (TWO, "GET", "http://a?b", &[], Err(":path")),
        (TWO, "CONNECT", "b:443", &[], Ok("b:443")),
        (TWO, "CONNECT", "b:443", &["b:443"], Ok("b:443")),
        (TWO, "CONNECT", "b:443", &["a"], Err("another one")),
        (TWO, "CONNECT", "b", &[], Err("CONNECT")),
        (TWO, "CONNECT", "b:", &[], Err("CONNECT")),
        (TWO, "CONNECT", "b:0", &[], Err("CONNECT")),
        (TWO, "CONNECT", "u@b:443", &[], Err("CONNECT")),
    ] {
        let name = format!("{version:?} {method} {uri} {said:?}");
        let mut request = request(version, method, uri, said);
        let settled = settle(&mut request);
        let head = head(request);
        match expected {
            Err(what) => assert!(settled.is_err_and(|why| why.contains(what)), "{name}: {settled:?}"),
            Ok(authority) => {
                assert_eq!((settled, of(&head)), (Ok(()), authority), "{name}");
                // HTTP/2 has it in the URI, HTTP/1 in Host; once.
                match version {
                    TWO => assert_eq!(hosts(&head), Vec::<&str>::new(), "{name}"),
                    _ => assert_eq!(hosts(&head).concat(), authority, "{name}"),
                }
            }
        }
    }
}

#[test]
fn extended_connect_has_a_path_like_any_other() {
    for (uri, proper) in [("http://a/chat", true), ("http://a:b/", false), ("http://a", true)] {
        let mut request = request(TWO, "CONNECT", uri, &[]);
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        assert_eq!(settle(&mut request).is_ok(), proper, "{uri}");
    }
}

#[test]
fn it_is_changed_wherever_it_is_said() {
    for (version, method, uri, said, after) in [
        (ONE, "GET", "/x?y", &["a"][..], "/x?y"),
        (ONE, "GET", "http://a/x", &["a"], "http://new:81/x"),
        (ONE, "CONNECT", "a:80", &["a:80"], "new:81"),
        (OLD, "GET", "/x", &[], "/x"),
        (TWO, "GET", "http://a/x?y", &[], "http://new:81/x?y"),
        (TWO, "GET", "https://a/x", &[], "https://new:81/x"),
        (TWO, "GET", "/x", &[], "http://new:81/x"),
        (TWO, "CONNECT", "a:80", &[], "new:81"),
    ] {
        let mut head = head(request(version, method, uri, said));
        let name = format!("{version:?} {method} {uri}");
        assert!(set(&mut head, &HeaderValue::from_static("a b")).is_err());
        assert!(set(&mut head, &HeaderValue::from_static("")).is_err());
        assert_eq!(head.uri, uri, "{name}: as it was");
        set(&mut head, &HeaderValue::from_static("new:81")).unwrap();
        assert_eq!((head.uri.to_string().as_str(), of(&head)), (after, "new:81"), "{name}");
        let expected: &[&str] = if version == TWO { &[] } else { &["new:81"] };
        assert_eq!(hosts(&head), expected, "{name}");
    }
}

#[test]
fn a_connect_keeps_its_port_where_none_is_named() {
    for (version, method, uri, said, new, after) in [
        (ONE, "CONNECT", "a:80", &["a:80"][..], "new", "new:80"),
        (ONE, "CONNECT", "[::1]:80", &["[::1]:80"], "new", "new:80"),
        (ONE, "CONNECT", "a:80", &["a:80"], "[::2]", "[::2]:80"),
        (ONE, "CONNECT", "a:80", &["a:80"], "new:", "new:80"),
        (ONE, "CONNECT", "a:80", &["a:80"], "new:81", "new:81"),
        (TWO, "CONNECT", "a:443", &[], "new", "new:443"),
        (TWO, "GET", "http://a:443/", &[], "new", "new"),
        (ONE, "GET", "/", &["a:80"], "new", "new"),
    ] {
        let mut head = head(request(version, method, uri, said));
        set(&mut head, &HeaderValue::from_static(new)).unwrap();
        assert_eq!(of(&head), after, "{version:?} {method} {uri} {new}");
        let host: &[&str] = if version == TWO { &[] } else { &[after] };
        assert_eq!(hosts(&head), host, "{version:?} {method} {uri} {new}");
    }
    let mut extended = request(TWO, "CONNECT", "http://a:80/chat", &[]);
    extended.extensions_mut().insert(Protocol::from_static("websocket"));
    let mut extended = head(extended);
    set(&mut extended, &HeaderValue::from_static("new")).unwrap();
    assert_eq!(extended.uri, "http://new/chat");
}

#[test]
fn who_names_nobody_means_the_endpoint() {
    let to = "10.0.0.1:80".parse().unwrap();
    for (version, method, uri, said, after, host) in [
        (OLD, "GET", "/x", &[][..], "/x", &["10.0.0.1:80"][..]),
        (OLD, "GET", "/x", &["a"], "/x", &["a"]),
        (ONE, "GET", "/x", &[""], "/x", &[""]),
        (TWO, "GET", "/x", &[], "http://10.0.0.1:80/x", &[]),
        (TWO, "OPTIONS", "*", &[], "http://10.0.0.1:80*", &[]),
        (TWO, "GET", "https://a/x", &[], "https://a/x", &[]),
        (TWO, "CONNECT", "a:80", &[], "a:80", &[]),
    ] {
        let mut request = request(version, method, uri, said);
        complete(&mut request, version, to);
        let head = head(request);
        assert_eq!(
            (head.uri.to_string().as_str(), &hosts(&head)[..]),
            (after, host),
            "{version:?} {method} {uri}"
        );
    }
    let mut extended = request(TWO, "CONNECT", "/chat", &[]);
    extended.extensions_mut().insert(Protocol::from_static("websocket"));
    complete(&mut extended, TWO, to);
    assert_eq!(extended.uri(), "http://10.0.0.1:80/chat");
}
