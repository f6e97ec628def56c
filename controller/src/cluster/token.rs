//! A look at a ServiceAccount token before anybody is asked about it.
//!
//! Nothing here is believed: the signature is not checked. A token that cannot be good is refused for the price of reading it,
//! so that garbage does not become load on the API server; whether it is good, the API server says.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrigger_api::labels::TOKEN_AUDIENCE;
use serde::Deserialize;

/// The clocks of the API server and of this node may differ.
const CLOCKS: Duration = Duration::from_secs(300);

/// What a token says of itself (RFC 7519, and Kubernetes' own claims).
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    /// Who says that it issued it.
    #[serde(default, rename = "iss")]
    pub(super) issuer: String,
    #[serde(default, rename = "aud")]
    audience: Audience,
    /// Seconds since 1970, perhaps with a fraction.
    #[serde(default, rename = "exp")]
    expires: f64,
    #[serde(default, rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

/// RFC 7519 section 4.1.3: one or many.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Kubernetes {
    namespace: String,
    pod: Reference,
    serviceaccount: Reference,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reference {
    name: String,
    uid: String,
}

/// Who says that it issued the token.
pub(super) fn issuer(token: &str) -> Option<String> {
    read(token).ok().map(|claims| claims.issuer)
}

/// Reads a token.
///
/// # Errors
/// Says why no API server would take it, or why it is none of a pod.
pub(super) fn look(token: &str, now: SystemTime) -> Result<Claims, String> {
    let claims = read(token)?;
    let audiences = match &claims.audience {
        Audience::One(one) => std::slice::from_ref(one),
        Audience::Many(many) => many,
    };
    if !audiences.iter().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(format!("the token is not for the audience {TOKEN_AUDIENCE:?}"));
    }
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Not by subtraction: what the token says may be any number, or none.
    if claims.expires.is_nan() || claims.expires + CLOCKS.as_secs_f64() <= now.as_secs_f64() {
        return Err("the token has expired: kubelet renews the file of a projected token, read it again".to_owned());
    }
    let Kubernetes {
        namespace,
        pod,
        serviceaccount,
    } = &claims.kubernetes;
    if [namespace, &pod.name, &pod.uid, &serviceaccount.name]
        .iter()
        .any(|part| part.is_empty())
    {
        return Err(
            "the token is not bound to a pod: it must be a projected one (kubectl create token makes others)"
                .to_owned(),
        );
    }
    Ok(claims)
}

fn read(token: &str) -> Result<Claims, String> {
    let parts: Vec<&str> = token.split('.').collect();
    let [_, payload, _] = parts[..] else {
        return Err("the token is no JSON Web Token".to_owned());
    };
    let payload = URL_SAFE_NO_PAD
        .decode(payload.trim_end_matches('='))
        .map_err(|_| "the token's claims are not in base64".to_owned())?;
    serde_json::from_slice(&payload).map_err(|e| format!("the token's claims cannot be read: {e}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn claims() -> Value {
        json!({
            "iss": "https://kubernetes.default.svc.cluster.local", "aud": ["outrigger"], "exp": NOW + 3600,
            "sub": "system:serviceaccount:shop:orders",
            "kubernetes.io": {
                "namespace": "shop", "node": {"name": "n1"}, "pod": {"name": "orders-1", "uid": "u1"},
                "serviceaccount": {"name": "orders", "uid": "u2"}, "warnafter": NOW,
            },
        })
    }

    fn token(claims: &Value) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn look_at(token: &str) -> Result<Claims, String> {
        look(token, SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
    }

    #[test]
    fn a_projected_token_of_a_pod_passes() {
        let claims = claims();
        let seen = look_at(&token(&claims)).unwrap();
        assert_eq!(seen.issuer, "https://kubernetes.default.svc.cluster.local");
        for (field, value) in [
            ("aud", json!("outrigger")),
            ("exp", json!(NOW - 100)),
            ("exp", json!(f64::MAX)),
        ] {
            let mut claims = claims.clone();
            claims[field] = value;
            assert!(look_at(&token(&claims)).is_ok(), "{claims}");
        }
    }

    #[test]
    fn what_no_api_server_would_take_is_refused() {
        for (path, value, why) in [
            ("/aud", json!(["https://kubernetes.default.svc"]), "audience"),
            ("/aud", json!([]), "audience"),
            ("/exp", json!(NOW - 301), "expired"),
            ("/exp", json!(-1), "expired"),
            ("/exp", json!("soon"), "claims cannot be read"),
            (
                "/kubernetes.io",
                json!({"namespace": "shop", "serviceaccount": {"name": "orders"}}),
                "bound to a pod",
            ),
            ("/kubernetes.io", json!(null), "claims cannot be read"),
            ("/kubernetes.io/pod/uid", json!(""), "bound to a pod"),
        ] {
            let mut claims = claims();
            *claims.pointer_mut(path).unwrap() = value.clone();
            let error = look_at(&token(&claims)).unwrap_err();
            assert!(error.contains(why), "{path} {value}: {error}");
        }
        for garbage in ["", "a", "a.b", "a.b.c.d", "..", "a.!.c", "e30.e30.e30", "e30.W10.e30"] {
            assert!(look_at(garbage).is_err(), "{garbage}");
        }
    }
}
