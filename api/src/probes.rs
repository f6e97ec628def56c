//! What kubelet asks of a pod's app, and the sidecar asks in its place: the injector points kubelet at the sidecar's admin
//! port, and writes what it took away into the sidecar's environment, which nobody can change in a running pod.

mod target;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use target::{encoded, request_target};

/// The environment variable with a JSON list of [`AppProbe`].
pub const APP_PROBES: &str = "OUTRIGGER_APP_PROBES";
/// The environment variable with a JSON list of what kubelet itself still asks, and is let in as plaintext for.
pub const LET_IN: &str = "OUTRIGGER_PROBES";
/// The path of a gRPC health check, as kubelet makes it.
pub const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";
/// The header with [`AppProbe::key`].
pub const KEY_HEADER: &str = "outrigger-probe-key";

/// One probe or lifecycle handler that the sidecar carries out when kubelet asks for [`path`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppProbe {
    /// The container that kubelet asks about.
    pub container: String,
    /// Which of its probes or handlers.
    pub kind: Kind,
    /// The app's port. A name was looked up among the container's ports.
    pub port: u16,
    /// How long kubelet waits, in seconds. `None` for a lifecycle handler, which takes as long as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    /// What the caller must show in [`KEY_HEADER`]. A lifecycle handler changes the app's state and has one; a probe has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What is asked.
    pub ask: Ask,
}

/// When kubelet asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// `startupProbe`.
    Startup,
    /// `readinessProbe`.
    Readiness,
    /// `livenessProbe`.
    Liveness,
    /// `lifecycle.postStart`.
    PostStart,
    /// `lifecycle.preStop`.
    PreStop,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// `httpGet`.
    Http(HttpGet),
    /// `grpc`: the health check of gRPC, of this service; empty for the server as a whole.
    Grpc(String),
    /// `tcpSocket`: whether a connection is accepted.
    Tcp,
}

/// A request as kubelet sends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpGet {
    /// Path and query, escaped as kubelet does.
    pub target: String,
    /// `scheme: HTTPS`; the certificate is not verified.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls: bool,
    /// `httpHeaders`, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

/// Where kubelet asks the sidecar: the path of the admin port.
pub fn path(container: &str, kind: Kind) -> String {
    format!("/probe/{container}/{kind}")
}

impl Kind {
    /// A lifecycle handler, whose answer kubelet does not look at: only that there is one.
    pub fn is_handler(self) -> bool {
        matches!(self, Kind::PostStart | Kind::PreStop)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Startup => "startup",
            Kind::Readiness => "readiness",
            Kind::Liveness => "liveness",
            Kind::PostStart => "postStart",
            Kind::PreStop => "preStop",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{AppProbe, Ask, HttpGet, Kind, path};

    #[test]
    fn what_is_written_is_read() {
        let http = HttpGet {
            target: "/ready?full=1".to_owned(),
            tls: true,
            headers: vec![("Host".to_owned(), "shop.example".to_owned())],
        };
        for (kind, ask) in [
            (Kind::Readiness, Ask::Http(http)),
            (Kind::Liveness, Ask::Grpc(String::new())),
            (Kind::Startup, Ask::Tcp),
        ] {
            let probe = AppProbe {
                container: "app".to_owned(),
                kind,
                port: 8080,
                timeout: Some(1),
                key: None,
                ask,
            };
            let text = serde_json::to_string(&probe).unwrap_or_default();
            assert_eq!(serde_json::from_str::<AppProbe>(&text).ok(), Some(probe), "{text}");
        }
        // A field of a later injector is no reason not to start.
        let later = r#"{"container":"app","kind":"startup","port":1,"ask":"tcp","later":true}"#;
        assert!(serde_json::from_str::<AppProbe>(later).is_ok());
        assert_eq!(path("app", Kind::PreStop), "/probe/app/preStop");
    }
}
