//! Where a probe is sent, and where a redirect sends it: kubelet follows redirects that stay at the pod's address, to any
//! port, and takes all others for the last answer (Kubernetes, `RedirectChecker`).

use std::fmt;

use outrigger_api::probes::encoded;

/// Scheme, address and request target of one request to the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) tls: bool,
    /// The pod's address as text, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query.
    pub(super) target: String,
}

/// What a redirect asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Follow(Location),
    /// It leaves the pod: it is not followed.
    Leave,
}

impl Location {
    /// Resolves a `Location` header against this (RFC 3986 section 5.2).
    ///
    /// # Errors
    /// What cannot be read as a reference: to kubelet the probe has failed.
    pub(super) fn redirected(&self, reference: &str) -> Result<Next, String> {
        let wrong = |why: &str| format!("the app redirects to {reference:?}: {why}");
        if reference.bytes().any(|b| b.is_ascii_control()) {
            return Err(wrong("it has a control character"));
        }
        let reference = reference.split('#').next().unwrap_or_default();
        let (tls, rest) = match scheme(reference) {
            (None, rest) => (self.tls, rest),
            (Some(scheme), rest) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            (Some(scheme), rest) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            (Some(_), _) => return Ok(Next::Leave),
        };
        if let Some(rest) = rest.strip_prefix("//") {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (authority, target) = rest.split_at(end);
            let (host, port) = authority_parts(authority).ok_or_else(|| wrong("its port is not a number"))?;
            if host != self.host {
                return Ok(Next::Leave);
            }
            let port = port.unwrap_or(if tls { 443 } else { 80 });
            return Ok(Next::Follow(Location {
                tls,
                host: self.host.clone(),
                port,
                target: joined("/", target),
            }));
        }
        if rest.len() != reference.len() {
            // A scheme and no host.
            return Ok(Next::Leave);
        }
        Ok(Next::Follow(Location {
            target: joined(&self.target, reference),
            ..self.clone()
        }))
    }

    /// The host of the request, where no header says another one.
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.target)
    }
}

/// Whether it names its own host: then a `Host` header that was declared is not sent.
pub(super) fn is_absolute(reference: &str) -> bool {
    scheme(reference).0.is_some()
}

fn scheme(reference: &str) -> (Option<&str>, &str) {
    let named = |scheme: &&str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    };
    match reference.split_once(':') {
        Some((scheme, rest)) if named(&scheme) => (Some(scheme), rest),
        _ => (None, reference),
    }
}

/// Host without brackets, and port. `None` where the port is no number.
fn authority_parts(authority: &str) -> Option<(&str, Option<u16>)> {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').unwrap_or(port)),
        None => authority.rsplit_once(':').unwrap_or((authority, "")),
    };
    match port {
        "" => Some((host, None)),
        port => Some((host, Some(port.parse().ok()?))),
    }
}

/// A reference without a host, joined to a target.
fn joined(base: &str, reference: &str) -> String {
    let (path, query) = match reference.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (reference, None),
    };
    let (base_path, base_query) = match base.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (base, None),
    };
    let (merged, query) = match path {
        "" => (base_path.to_owned(), query.or(base_query)),
        path if path.starts_with('/') => (path.to_owned(), query),
        path => {
            let directory = base_path.rfind('/').map_or("/", |at| &base_path[..=at]);
            (format!("{directory}{path}"), query)
        }
    };
    let mut target = encoded(&without_dots(&merged));
    if !target.starts_with('/') {
        target.insert(0, '/');
    }
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    target
}

/// RFC 3986 section 5.2.4.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::{Location, Next};

    /// The results are those of Go's `url.Parse` and `ResolveReference`.
    #[test]
    fn redirects_are_resolved_as_kubelet_does() {
        let base = Location {
            tls: false,
            host: "10.0.0.1".to_owned(),
            port: 8080,
            target: "/a/b?x=1".to_owned(),
        };
        for (reference, expected) in [
            ("/ready", Some("http://10.0.0.1:8080/ready")),
            ("c", Some("http://10.0.0.1:8080/a/c")),
            ("../c?d", Some("http://10.0.0.1:8080/c?d")),
            ("./", Some("http://10.0.0.1:8080/a/")),
            ("/../../c/.", Some("http://10.0.0.1:8080/c/")),
            ("", Some("http://10.0.0.1:8080/a/b?x=1")),
            ("?y=2", Some("http://10.0.0.1:8080/a/b?y=2")),
            ("#top", Some("http://10.0.0.1:8080/a/b?x=1")),
            ("/a b", Some("http://10.0.0.1:8080/a%20b")),
            ("http://10.0.0.1:9090/x", Some("http://10.0.0.1:9090/x")),
            ("https://10.0.0.1:8443", Some("https://10.0.0.1:8443/")),
            ("https://10.0.0.1/x?q", Some("https://10.0.0.1:443/x?q")),
            ("//10.0.0.1/x", Some("http://10.0.0.1:80/x")),
            ("http://user@10.0.0.1:8080/x", Some("http://10.0.0.1:8080/x")),
            ("http://10.0.0.2:8080/x", None),
            ("https://login.example/?next=http://10.0.0.1/", None),
            ("//login.example/x", None),
            ("mailto:somebody", None),
            ("http:/x", None),
        ] {
            let next = base.redirected(reference);
            let next = next.map(|next| match next {
                Next::Follow(location) => Some(location.to_string()),
                Next::Leave => None,
            });
            assert_eq!(next, Ok(expected.map(str::to_owned)), "{reference:?}");
        }
        assert!(base.redirected("http://10.0.0.1:port/").is_err());
        assert!(base.redirected("/a\u{7}").is_err());
        let v6 = Location {
            host: "fd00::1".to_owned(),
            ..base
        };
        let followed = v6.redirected("http://[fd00::1]:1/x");
        assert!(matches!(followed, Ok(Next::Follow(l)) if l.to_string() == "http://[fd00::1]:1/x"));
    }
}
