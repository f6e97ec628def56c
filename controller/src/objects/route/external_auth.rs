//! The filter ExternalAuth (Gateway API, HTTPExternalAuthFilter; GEP-1494): whom to ask whether a request is let through, and how.
//!
//! What is wrong with it leaves its rule without a decision, so the rule answers 500: none of its requests is let through unasked.

use outrigger_api::discovery as proto;
use outrigger_api::discovery::external_auth::Protocol;

use super::spec::{BackendRefSpec, ExternalAuthSpec};
use super::{BackendRef, RouteFilter};

/// As the API names it.
pub(super) const TYPE: &str = "ExternalAuth";
/// Bytes of a body that are sent along, at most: sidecars hold them in memory.
const MAX_BODY: u32 = 1 << 20;
/// Names of headers in one list (Gateway API), and bytes of a path.
const MAX_HEADERS: usize = 64;
const MAX_PATH: usize = 1024;

/// Reads the filter. `backend` makes a reference whole.
///
/// # Errors
/// What is wrong with it, behind its path in the route.
pub(super) fn read(
    spec: Option<ExternalAuthSpec>,
    backend: impl Fn(&BackendRefSpec) -> BackendRef,
) -> Result<RouteFilter, String> {
    let spec = spec.ok_or(" is missing")?;
    let reference = spec.backend_ref.filter(|reference| !reference.name.is_empty());
    let reference = reference.ok_or(".backendRef is missing")?;
    let protocol = match (spec.protocol.as_str(), spec.http, spec.grpc) {
        ("HTTP", _, Some(_)) => return Err(".grpc is set, and the protocol is HTTP".to_owned()),
        ("GRPC", Some(_), _) => return Err(".http is set, and the protocol is GRPC".to_owned()),
        ("HTTP", http, None) => {
            let http = http.unwrap_or_default();
            Protocol::Http(proto::HttpAuth {
                path: path(&http.path)?,
                headers: names(".http.allowedHeaders", http.allowed_headers)?,
                response_headers: names(".http.allowedResponseHeaders", http.allowed_response_headers)?,
            })
        }
        ("GRPC", None, grpc) => Protocol::Grpc(proto::GrpcAuth {
            headers: names(".grpc.allowedHeaders", grpc.unwrap_or_default().allowed_headers)?,
        }),
        (other, ..) => return Err(format!(".protocol {other:?} is not supported")),
    };
    let max_body = spec.forward_body.map_or(0, |forward| forward.max_size);
    let max_body = u32::try_from(max_body).ok().filter(|&bytes| bytes <= MAX_BODY);
    let max_body = max_body.ok_or(format!(".forwardBody.maxSize is not between 0 and {MAX_BODY}"))?;
    Ok(RouteFilter::ExternalAuth {
        backend: backend(&reference),
        auth: proto::ExternalAuth {
            backend: 0, // its place is known when an answer is made
            protocol: Some(protocol),
            max_body,
        },
    })
}

/// What stands before the paths of requests: as HTTPPathMatch says of a prefix, since it must not lead elsewhere, and begins with a slash.
fn path(path: &str) -> Result<String, String> {
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        return Ok(String::new());
    }
    let path = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-/._~!$&'()*+,;=:@%".contains(c);
    let is_dots = |segment: &str| matches!(segment, "." | "..");
    let lower = path.to_ascii_lowercase();
    let escapes = lower.split('%').skip(1);
    let escaped = escapes
        .clone()
        .all(|rest| rest.as_bytes().iter().take(2).filter(|b| b.is_ascii_hexdigit()).count() == 2);
    // What some server takes for a slash or a dot.
    let hidden = escapes
        .clone()
        .any(|rest| rest.starts_with("2f") || rest.starts_with("2e") || rest.starts_with("5c"));
    let leads_elsewhere = hidden || path.contains("//") || path.split('/').any(is_dots);
    if path.len() > MAX_PATH || !path.chars().all(plain) || !escaped || leads_elsewhere {
        return Err(format!(
            ".http.path {path:?} is not a path that could stand before others"
        ));
    }
    Ok(path)
}

fn names(field: &str, names: Vec<String>) -> Result<Vec<String>, String> {
    if names.len() > MAX_HEADERS {
        return Err(format!("{field} has more than {MAX_HEADERS} names"));
    }
    // RFC 9110 section 5.6.2.
    let token = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
    match names
        .iter()
        .find(|name| name.is_empty() || name.len() > 256 || !name.bytes().all(token))
    {
        Some(other) => Err(format!("{field}: {other:?} is not the name of a header")),
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kube::core::DynamicObject;
    use outrigger_api::discovery as proto;
    use outrigger_api::discovery::external_auth::Protocol;
    use serde_json::{Value, json};

    use super::super::{BackendRef, Route, RouteFilter, RouteKind};
    use super::read;
    use crate::objects::ObjectName;

    fn of(spec: Value) -> Result<proto::ExternalAuth, String> {
        let spec = serde_json::from_value(spec).unwrap();
        let filter = read(Some(spec), |reference| BackendRef {
            kind: "Service".to_owned(),
            name: ObjectName::new("shop", &reference.name),
            port: reference.port,
        });
        filter.map(|filter| match filter {
            RouteFilter::ExternalAuth { backend, auth } => {
                assert_eq!((&*backend.name.name, backend.port), ("auth", Some(80)));
                auth
            }
            other => panic!("{other:?}"),
        })
    }

    fn with(more: Value) -> Result<proto::ExternalAuth, String> {
        let mut spec = json!({"protocol": "HTTP", "backendRef": {"name": "auth", "port": 80}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        of(spec)
    }

    #[test]
    fn what_is_said_is_told() {
        let http = with(json!({
            "http": {"path": "/check/", "allowedHeaders": ["Cookie"], "allowedResponseHeaders": ["x-user"]},
            "forwardBody": {"maxSize": 8192},
        }));
        let expected = proto::ExternalAuth {
            backend: 0,
            protocol: Some(Protocol::Http(proto::HttpAuth {
                path: "/check".to_owned(),
                headers: vec!["Cookie".to_owned()],
                response_headers: vec!["x-user".to_owned()],
            })),
            max_body: 8192,
        };
        assert_eq!(http, Ok(expected));
        let grpc = with(json!({"protocol": "GRPC", "grpc": {"allowedHeaders": ["x-a"]}})).unwrap();
        let headers = vec!["x-a".to_owned()];
        let expected = Protocol::Grpc(proto::GrpcAuth { headers });
        assert_eq!((grpc.protocol, grpc.max_body), (Some(expected), 0));
        // What need not be said.
        for protocol in ["HTTP", "GRPC"] {
            assert!(with(json!({"protocol": protocol})).is_ok());
        }
    }

    #[test]
    fn the_example_is_understood() {
        let text = include_str!("../../../../examples/routes/external-auth.yaml");
        let object: DynamicObject = serde_saphyr::from_str(text).unwrap();
        let route = Route::read(RouteKind::Http, &object).unwrap();
        assert_eq!(route.unsupported, [""; 0]);
        let named: Vec<_> = route
            .references()
            .map(|backend| backend.name.name.to_string())
            .collect();
        assert_eq!(named, ["orders", "auth-grpc", "orders", "auth"]);
    }

    #[test]
    fn mistakes_are_named_with_their_path() {
        for (more, what) in [
            (json!({"backendRef": null}), ".backendRef is missing"),
            (json!({"backendRef": {}}), ".backendRef is missing"),
            (json!({"protocol": ""}), ".protocol \"\" is not supported"),
            (json!({"protocol": "SOAP"}), ".protocol \"SOAP\" is not supported"),
            (json!({"grpc": {}}), ".grpc is set"),
            (json!({"protocol": "GRPC", "http": {}}), ".http is set"),
            (json!({"forwardBody": {"maxSize": -1}}), ".forwardBody.maxSize"),
            (json!({"forwardBody": {"maxSize": 1_048_577}}), ".forwardBody.maxSize"),
            (
                json!({"http": {"allowedHeaders": ["x a"]}}),
                ".http.allowedHeaders: \"x a\"",
            ),
            (
                json!({"http": {"allowedResponseHeaders": [""]}}),
                ".http.allowedResponseHeaders: \"\"",
            ),
            (
                json!({"http": {"allowedHeaders": vec!["x"; 65]}}),
                ".http.allowedHeaders has more",
            ),
            (
                json!({"protocol": "GRPC", "grpc": {"allowedHeaders": ["\r"]}}),
                ".grpc.allowedHeaders",
            ),
        ] {
            let said = with(more.clone()).unwrap_err();
            assert!(said.starts_with(what), "{more}: {said}");
        }
        assert_eq!(read(None, |_| unreachable!()).unwrap_err(), " is missing");
    }

    #[test]
    fn a_path_leads_nowhere_else() {
        for (path, expected) in [
            ("", Some("")),
            ("/", Some("")),
            ("/a", Some("/a")),
            ("a/b/", Some("/a/b")),
            ("/a%20b", Some("/a%20b")),
            ("/a?b", None),
            ("/a#b", None),
            ("/a b", None),
            ("/a\r\nx: y", None),
            ("/../a", None),
            ("/a/.", None),
            ("/a//b", None),
            ("//evil.example", None),
            ("/a%2Fb", None),
            ("/%2e%2E/a", None),
            ("/a%5cb", None),
            ("/a%2", None),
            ("/a%zz", None),
            ("/a%", None),
        ] {
            let read = with(json!({"http": {"path": path}}));
            let read = read.ok().map(|auth| match auth.protocol {
                Some(Protocol::Http(http)) => http.path,
                other => panic!("{other:?}"),
            });
            assert_eq!(read.as_deref(), expected, "{path:?}");
        }
    }
}
