//! What an app's connection speaks: the first bytes of anybody.

use outrigger_proxy_transport::net::detect::{Detected, Verdict, protocol};
use outrigger_proxy_transport::net::wary::wary_protocol;

/// More is never waited for.
const ENOUGH: usize = 2048;

/// Any first bytes.
pub fn run(bytes: &[u8]) {
    let whole = judge(protocol, bytes);
    let wary = judge(wary_protocol, bytes);
    if let Verdict::Is(known @ (Detected::Http1 | Detected::Http2 | Detected::Tls)) = whole {
        assert_eq!(wary, Verdict::Is(known));
    }
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    if matches!(request.parse(bytes), Ok(httparse::Status::Complete(_))) {
        // Who is wary misses none. Of empty lines alone there may be more than anybody waits for.
        assert_eq!(wary, Verdict::Is(Detected::Http1), "{request:?}");
        if is_usual(bytes, &request) {
            assert_eq!(whole, Verdict::Is(Detected::Http1), "{request:?}");
        }
    }
}

fn judge(protocol: fn(&[u8]) -> Verdict<Detected>, bytes: &[u8]) -> Verdict<Detected> {
    let whole = protocol(bytes);
    // How the bytes are cut into packets decides nothing.
    let step = 1 + bytes.len() / 100;
    for end in (0..bytes.len()).step_by(step) {
        let part = protocol(&bytes[..end]);
        assert!(
            part == Verdict::NeedMore || part == whole,
            "{part:?} at {end}, and {whole:?}"
        );
    }
    if bytes.len() >= ENOUGH {
        assert_ne!(whole, Verdict::NeedMore);
    }
    whole
}

/// Not one of the forms that HTTP allows and nobody uses: empty lines first, punctuation in a method, more than one space.
fn is_usual(bytes: &[u8], request: &httparse::Request<'_, '_>) -> bool {
    let (Some(method), Some(path)) = (request.method, request.path) else {
        return false;
    };
    let line = format!("{method} {path} HTTP/1.{}", request.version.unwrap_or(9));
    let rest = bytes.strip_prefix(line.as_bytes()).unwrap_or_default();
    method.len() <= 32
        && method
            .bytes()
            .all(|b| b.is_ascii_alphabetic() || b == b'-' || b == b'_')
        && path.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '*' | '['))
        && (rest.starts_with(b"\r\n") || rest.starts_with(b"\n"))
}
