//! Whom a request is for: one answer, whatever a stranger says in the target and in `Host`.

use http::{HeaderValue, Request, Version};
use outrigger_proxy_transport::authority::{complete, is_authority, is_destination, of, set, settle, split};

use crate::Input;

const METHODS: [&str; 4] = ["GET", "OPTIONS", "CONNECT", "PUT"];
const VERSIONS: [Version; 3] = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2];

/// A version, a method, and lines: a target, and what is in `Host`.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (version, method) = (input.pick(&VERSIONS), input.pick(&METHODS));
    let mut lines = input.rest().split(|byte| *byte == b'\n');
    let target = lines.next().unwrap_or_default();
    grammar(target);
    let Ok(request) = Request::builder().version(version).method(method).uri(target).body(()) else {
        return;
    };
    let (mut head, ()) = request.into_parts();
    for line in lines.take(3) {
        grammar(line);
        if let Ok(host) = HeaderValue::from_bytes(line) {
            head.headers.append("host", host);
        }
    }
    let http2 = version == Version::HTTP_2;
    let hosts = || head.headers.get_all("host").iter();
    if !http2 && (hosts().count() > 1 || hosts().any(|host| !host.is_empty() && !is_authority(host.as_bytes()))) {
        return; // The guard sees to it.
    }
    let mut request = Request::from_parts(head, ());
    if settle(&mut request).is_err() {
        assert!(http2, "the guard has seen that it is in order");
        return;
    }
    let (mut head, ()) = request.clone().into_parts();
    let authority = of(&head).to_owned();
    if http2 {
        assert!(!head.headers.contains_key("host"));
        assert!(
            authority.is_empty() || is_authority(authority.as_bytes()),
            "{authority}"
        );
    } else {
        assert!(
            head.headers
                .get("host")
                .is_none_or(|host| host.as_bytes() == authority.as_bytes())
        );
    }
    assert!(!authority.contains('@'), "{authority}");
    assert_eq!(settle(&mut request), Ok(()), "not the same when it is done twice");
    let to = "10.0.0.1:80".parse().expect("an address");
    complete(&mut request, version, to);
    let sent = request.into_parts().0;
    let nobody = authority.is_empty() && version != Version::HTTP_11 && !sent.headers.contains_key("host");
    if nobody && method != "CONNECT" {
        assert_eq!(of(&sent), "10.0.0.1:80");
    } else if !authority.is_empty() {
        assert_eq!(of(&sent), authority);
    }
    let (path, other) = (head.uri.path_and_query().cloned(), HeaderValue::from_static("other:81"));
    assert_eq!(set(&mut head, &other), Ok(()));
    assert_eq!((of(&head), head.uri.path_and_query()), ("other:81", path.as_ref()));
}

/// Another reading of RFC 3986 section 3.2.2.
fn grammar(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        assert!(!is_authority(bytes));
        return;
    };
    let (host, port) = split(text);
    assert_eq!([host, port.map_or("", |_| ":"), port.unwrap_or("")].concat(), text);
    let port_is_one = port.is_none_or(|port| {
        port.bytes().all(|b| b.is_ascii_digit())
            && (port.is_empty() || port.parse::<u64>().is_ok_and(|port| port < 65_536))
    });
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host_is_one = match literal {
        Some(literal) if literal.starts_with(['v', 'V']) => is_authority(host.as_bytes()),
        Some(literal) => literal.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let bytes = host.as_bytes();
            let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
            !host.is_empty()
                && bytes.iter().enumerate().all(|(at, byte)| match byte {
                    b'%' => hex(at + 1) && hex(at + 2),
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => true,
                    other => b"-._~!$&'()*+,;=".contains(other),
                })
        }
    };
    assert_eq!(is_authority(bytes), host_is_one && port_is_one, "{text:?}");
    let has_port = port.is_some_and(|port| port.bytes().any(|b| b != b'0'));
    assert_eq!(is_destination(bytes), is_authority(bytes) && has_port, "{text:?}");
}
