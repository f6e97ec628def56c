//! The path of an `httpGet`, as kubelet puts it into a request: `url.Parse` of Go's net/url, with scheme and host replaced;
//! what cannot be parsed is escaped as a whole (Kubernetes, pkg/probe/http/request.go, `formatURL`).

/// Path and query of the request. `None` where kubelet's request has no host and fails ("mailto:x").
pub fn request_target(path: &str) -> Option<String> {
    let target = match parse(path) {
        Parsed::Opaque => return None,
        Parsed::Broken => escape(path.as_bytes()),
        Parsed::Url { path, query } => {
            let mut target = encoded(path);
            if !target.starts_with('/') {
                target.insert(0, '/');
            }
            if let Some(query) = query {
                target.push('?');
                target.push_str(query);
            }
            return Some(target);
        }
    };
    let slash = if target.starts_with('/') { "" } else { "/" };
    Some(format!("{slash}{target}"))
}

enum Parsed<'a> {
    Url {
        path: &'a str,
        query: Option<&'a str>,
    },
    /// "scheme:without-a-slash".
    Opaque,
    Broken,
}

fn parse(url: &str) -> Parsed<'_> {
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    if rest.bytes().any(|b| b.is_ascii_control()) || unescape(fragment).is_none() {
        return Parsed::Broken;
    }
    let (scheme, rest) = match scheme(rest) {
        Some(found) => found,
        None => return Parsed::Broken,
    };
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    if !path.starts_with('/') {
        if scheme {
            return Parsed::Opaque;
        }
        let segment = path.split('/').next().unwrap_or_default();
        if segment.contains(':') {
            return Parsed::Broken;
        }
    }
    let path = match path.strip_prefix("//") {
        Some(after) if scheme || !after.starts_with('/') => {
            let (authority, path) = after.split_at(after.find('/').unwrap_or(after.len()));
            if !authority.bytes().all(in_authority) {
                return Parsed::Broken;
            }
            path
        }
        _ => path,
    };
    match unescape(path) {
        Some(_) => Parsed::Url { path, query },
        None => Parsed::Broken,
    }
}

/// Whether the URL begins with a scheme, and what is behind it. `None`: it begins with a colon.
fn scheme(url: &str) -> Option<(bool, &str)> {
    let end = url.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '-' | '.'));
    match end {
        Some(0) if url.starts_with(':') => None,
        Some(end) if url[end..].starts_with(':') && url.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            Some((true, &url[end + 1..]))
        }
        _ => Some((false, url)),
    }
}

/// A path that is escaped properly stays as it was written; another one is decoded and escaped anew. What is no path because
/// of a percent sign that escapes nothing becomes an empty one.
pub fn encoded(path: &str) -> String {
    let proper = |b: u8| kept(b) || matches!(b, b'!' | b'\'' | b'(' | b')' | b'*' | b'[' | b']' | b'%');
    if path.bytes().all(proper) {
        return path.to_owned();
    }
    escape(&unescape(path).unwrap_or_default())
}

fn escape(bytes: &[u8]) -> String {
    let mut escaped = String::with_capacity(bytes.len());
    for &byte in bytes {
        if kept(byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// What Go's net/url leaves alone when it escapes a path.
fn kept(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'_' | b'.' | b'~' | b'$' | b'&' | b'+' | b',' | b'/' | b':' | b';' | b'=' | b'@'
        )
}

/// What may stand between "//" and the path. Brackets are left out: kubelet puts the pod's address there anyway.
fn in_authority(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte) || !byte.is_ascii()
}

/// `None` where a percent sign does not begin an escape.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut unescaped = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            unescaped.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        unescaped.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(unescaped)
}

#[cfg(test)]
mod tests {
    use super::request_target;

    /// What kubelet's own function makes of each (Go 1.26).
    #[test]
    fn paths_become_what_kubelet_makes_of_them() {
        for (path, expected) in [
            ("", "/"),
            ("/", "/"),
            ("healthz", "/healthz"),
            ("/ready?full=1", "/ready?full=1"),
            ("/a b", "/a%20b"),
            ("/%zz", "/%25zz"),
            ("/%zz?x=1#y", "/%25zz%3Fx=1%23y"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%20b/c d", "/a%20b/c%20d"),
            ("//foo/bar", "/bar"),
            ("///foo", "///foo"),
            ("http://x/y?z", "/y?z"),
            ("/x#frag", "/x"),
            ("/a?", "/a?"),
            ("/a?b?c", "/a?b?c"),
            ("/ä", "/%C3%A4"),
            ("/q?ä=1", "/q?ä=1"),
            ("/q?a b", "/q?a b"),
            ("/a:b", "/a:b"),
            (":x", "/:x"),
            ("/[x]", "/[x]"),
            ("/a!*'()", "/a!*'()"),
            ("/\"<>\\^`{|}", "/%22%3C%3E%5C%5E%60%7B%7C%7D"),
            ("/a\tb", "/a%09b"),
            ("/a\0b", "/a%00b"),
            ("*", "/*"),
            ("?x=1", "/?x=1"),
            ("#f", "/"),
            ("/a/../b", "/a/../b"),
            ("//", "/"),
            ("/%", "/%25"),
            ("//[::1", "//%5B::1"),
            ("//a b/c", "//a%20b/c"),
            ("/|%41", "/%7CA"),
            ("//foo?x", "/?x"),
            ("1http://x/y", "/1http://x/y"),
            ("/a%2fb|", "/a/b%7C"),
        ] {
            assert_eq!(request_target(path).as_deref(), Some(expected), "{path:?}");
        }
        assert_eq!(request_target("mailto:x"), None);
        assert_eq!(request_target("a:b"), None);
    }
}
