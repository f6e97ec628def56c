//! What the injector puts into pods: one YAML file, mounted from the chart's ConfigMap, or the defaults and a few flags
//! when `outrigger inject` works offline.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use outrigger_api::spiffe::SpiffeId;
use outrigger_api::{duration, labels, ports};
use serde::Deserialize;

use crate::{quantity, roots};

/// The version of this injector, and of the sidecar whose image it names by default.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How sidecars are made. Unknown fields are refused, so that a mistyped value is not silently the default.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Settings {
    /// The namespace that Outrigger itself is installed in. Its pods never get a sidecar.
    pub namespace: String,
    /// The sidecar's image, with its tag or digest.
    pub image: String,
    /// When the node pulls that image.
    pub image_pull_policy: PullPolicy,
    /// The trust domain of all SPIFFE IDs.
    pub trust_domain: String,
    /// Host and port of the controller's gRPC; by default its Service in [`Settings::namespace`].
    pub controller: Option<String>,
    /// Where spans go; without it none leave, and contexts are still passed on.
    pub tracing: Option<Tracing>,
    /// The sidecar's resources where no annotation says otherwise.
    pub resources: Resources,
    /// Whether the cluster has native sidecars (Kubernetes 1.29 and later).
    pub native_sidecars: bool,
    /// The sidecar's log filter.
    pub log_level: String,
    /// Whether sidecars write an access log.
    pub access_log: bool,
    /// What becomes of `X-Forwarded-For` on the way to the app.
    pub forwarded_for: ForwardedFor,
    /// How long a sidecar that was told to end waits for requests in flight, as "30s". It is kept below each pod's own
    /// grace period.
    pub drain_timeout: String,
    /// Whether sidecars close connections that outlive the certificate of their peer.
    pub close_expired: bool,
    /// Ports that are opaque in every pod, beside the well-known ones, as "3307,9000-9010".
    pub opaque_ports: String,
}

/// When a node pulls an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
#[allow(missing_docs)] // Kubernetes' own words
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// Where spans go, and how many.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tracing {
    /// An OTLP endpoint, "http://collector.observability.svc:4317". A name without a dot is a Service of the pod's own namespace:
    /// "http://jaeger:4317" becomes `jaeger.<namespace>.svc`.
    pub endpoint: String,
    /// Who may have signed the certificate of an `https` endpoint, in PEM. Empty: public authorities.
    #[serde(default)]
    pub ca_certificates: String,
    /// gRPC or HTTP.
    #[serde(default)]
    pub protocol: Protocol,
    /// The share of new traces that are recorded, 0 to 1. A trace that came in keeps its own decision.
    #[serde(default = "default_ratio")]
    pub sample_ratio: f64,
    /// What becomes of the context of a new trace that is not recorded.
    #[serde(default)]
    pub not_sampled: NotSampled,
}

/// What a sidecar does with the context of a trace that begins at it and is not recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum NotSampled {
    /// Apps do not see it.
    #[default]
    Omit,
    /// It is passed on, and says that nothing is recorded.
    Pass,
}

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// OTLP over gRPC, usually port 4317.
    #[default]
    Grpc,
    /// OTLP over HTTP with protobuf bodies, usually port 4318.
    Http,
}

/// What a sidecar does with `X-Forwarded-For` of a request to its app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum ForwardedFor {
    /// It passes as it came.
    #[default]
    Leave,
    /// The client's address comes behind what came.
    Append,
}

/// Kubernetes quantities; `None` leaves the field out.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(missing_docs)] // the fields say it
pub struct Resources {
    pub cpu_request: Option<String>,
    pub cpu_limit: Option<String>,
    pub memory_request: Option<String>,
    pub memory_limit: Option<String>,
}

impl Settings {
    /// Reads and checks a settings file.
    ///
    /// # Errors
    /// When the file cannot be read, is not YAML of this form, or has wrong values (all of them are named).
    pub fn load(file: &Path) -> anyhow::Result<Self> {
        let name = file.display();
        let text = std::fs::read_to_string(file).map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
        let settings: Self = serde_saphyr::from_str(&text).map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
        let mistakes = settings.mistakes();
        anyhow::ensure!(mistakes.is_empty(), "{name}: {}", mistakes.join("; "));
        Ok(settings)
    }

    /// What is wrong with the values, each with the name of its field. Empty: nothing.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut check = |field: &str, result: Result<(), String>| {
            if let Err(why) = result {
                mistakes.push(format!("{field}: {why}"));
            }
        };
        check("image", non_empty(&self.image));
        check("namespace", non_empty(&self.namespace));
        check("trustDomain", self.controller_id().map(drop));
        let drain = duration::parse_within(&self.drain_timeout, duration::DRAIN);
        check("drainTimeout", drain.map(drop));
        check("opaquePorts", labels::parse_ports(&self.opaque_ports).map(drop));
        check("logLevel", log_filter(&self.log_level));
        if let Some(tracing) = &self.tracing {
            check("tracing.endpoint", url(&tracing.endpoint));
            if !tracing.ca_certificates.is_empty() {
                check(
                    "tracing.caCertificates",
                    roots::certificates(&tracing.ca_certificates, "it"),
                );
                let used = tracing.endpoint.starts_with("https:");
                let why = || "it is for endpoints of https".to_owned();
                check("tracing.caCertificates", used.then_some(()).ok_or_else(why));
            }
            let ratio = tracing.sample_ratio;
            let valid = (0.0..=1.0).contains(&ratio);
            let why = || format!("{ratio} is not between 0 and 1");
            check("tracing.sampleRatio", valid.then_some(()).ok_or_else(why));
        }
        for (field, value) in self.resources.named() {
            check(field, value.map_or(Ok(()), |v| quantity::parse(v).map(drop)));
        }
        mistakes
    }

    /// Host and port of the controller.
    pub fn controller(&self) -> String {
        let default = || format!("outrigger-controller.{}.svc:{}", self.namespace, ports::CONTROLLER);
        self.controller.clone().unwrap_or_else(default)
    }

    /// Whom a sidecar takes for the controller.
    ///
    /// # Errors
    /// When trust domain or namespace have a character that a SPIFFE ID does not have.
    pub fn controller_id(&self) -> Result<SpiffeId, String> {
        SpiffeId::new(&self.trust_domain, &self.namespace, "outrigger-controller").map_err(|e| e.to_string())
    }

    /// The drain time limit; [`Settings::load`] has refused what does not parse.
    pub(crate) fn drain(&self) -> Duration {
        duration::parse(&self.drain_timeout).unwrap_or(Duration::from_secs(30))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "outrigger".to_owned(),
            image: format!("ghcr.io/outrigger-mesh/proxy:{VERSION}"),
            image_pull_policy: PullPolicy::IfNotPresent,
            trust_domain: "cluster.local".to_owned(),
            controller: None,
            tracing: Some(Tracing {
                ca_certificates: String::new(),
                endpoint: "http://jaeger:4317".to_owned(),
                protocol: Protocol::Grpc,
                sample_ratio: default_ratio(),
                not_sampled: NotSampled::Omit,
            }),
            resources: Resources::default(),
            native_sidecars: true,
            log_level: "info".to_owned(),
            access_log: false,
            forwarded_for: ForwardedFor::Leave,
            drain_timeout: "30s".to_owned(),
            close_expired: false,
            opaque_ports: String::new(),
        }
    }
}

impl Default for Resources {
    /// Small, and without a limit of CPU time: throttling a sidecar slows every request of its app.
    fn default() -> Self {
        Self {
            cpu_request: Some("10m".to_owned()),
            cpu_limit: None,
            memory_request: Some("32Mi".to_owned()),
            memory_limit: Some("256Mi".to_owned()),
        }
    }
}

/// Request and limit, of CPU time and of memory.
impl From<[[Option<String>; 2]; 2]> for Resources {
    fn from([[cpu_request, cpu_limit], [memory_request, memory_limit]]: [[Option<String>; 2]; 2]) -> Self {
        Self {
            cpu_request,
            cpu_limit,
            memory_request,
            memory_limit,
        }
    }
}

impl Resources {
    fn named(&self) -> [(&'static str, Option<&str>); 4] {
        [
            ("resources.cpuRequest", self.cpu_request.as_deref()),
            ("resources.cpuLimit", self.cpu_limit.as_deref()),
            ("resources.memoryRequest", self.memory_request.as_deref()),
            ("resources.memoryLimit", self.memory_limit.as_deref()),
        ]
    }
}

impl PullPolicy {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

impl Protocol {
    /// As the sidecar's environment has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

/// Whether `filter` is a log filter like "info" or "outrigger_proxy=debug".
pub(crate) fn log_filter(filter: &str) -> Result<(), String> {
    let wrong = |why: &str| format!("{filter:?} is not a log filter like \"info\" or \"outrigger_proxy=debug\"{why}");
    if filter.trim().is_empty() {
        return Err(wrong(""));
    }
    // A single word that is no level would be a target of that name, and everything else would be silent.
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    for part in filter.split(',').map(str::trim) {
        if !part.contains(['=', '[', ':', '_']) && !levels.contains(&part.to_ascii_lowercase().as_str()) {
            return Err(wrong(&format!(": {part:?} is no level")));
        }
    }
    match tracing_subscriber::EnvFilter::builder().parse(filter) {
        Ok(_) => Ok(()),
        Err(e) => Err(wrong(&format!(": {e}"))),
    }
}

fn non_empty(text: &str) -> Result<(), String> {
    (!text.trim().is_empty())
        .then_some(())
        .ok_or_else(|| "is empty".to_owned())
}

fn url(text: &str) -> Result<(), String> {
    let uri: Option<http::Uri> = text.parse().ok();
    let is_good = |uri: &http::Uri| match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(host)) => !host.is_empty(),
        // A certificate is for a name.
        (Some("https"), Some(host)) => !host.is_empty() && !host.starts_with('[') && host.parse::<IpAddr>().is_err(),
        _ => false,
    };
    uri.filter(is_good)
        .map(drop)
        .ok_or_else(|| format!("{text:?} is not a URL like \"http://jaeger:4317\" (or https, with a name)"))
}

fn default_ratio() -> f64 {
    0.1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Settings, log_filter};

    #[test]
    fn defaults_are_right() {
        assert_eq!(Settings::default().mistakes(), Vec::<String>::new());
        assert_eq!(
            Settings::default().controller(),
            "outrigger-controller.outrigger.svc:14150"
        );
        assert_eq!(serde_saphyr::from_str::<Settings>("{}").unwrap(), Settings::default());
    }

    #[test]
    fn all_mistakes_together() {
        let settings: Settings = serde_saphyr::from_str(
            "{image: '', trustDomain: A B, drainTimeout: soon, opaquePorts: http, logLevel: loud,\n\
             resources: {cpuRequest: lots}, tracing: {endpoint: jaeger, sampleRatio: 2}}",
        )
        .unwrap();
        let mistakes = settings.mistakes().join("\n");
        for field in [
            "image",
            "trustDomain",
            "drainTimeout",
            "opaquePorts",
            "logLevel",
            "resources.cpuRequest",
        ] {
            assert!(mistakes.contains(&format!("{field}: ")), "{field} not in {mistakes}");
        }
        assert_eq!(settings.mistakes().len(), 8);
        // No sidecar would start with it.
        let settings: Settings = serde_saphyr::from_str("{drainTimeout: 61m}").unwrap();
        assert_eq!(settings.mistakes(), ["drainTimeout: 61m is not between 0ns and 3600s"]);
        assert!(serde_saphyr::from_str::<Settings>("imagee: x").is_err());
    }

    #[test]
    fn log_filters() {
        for right in [
            "info",
            "outrigger_proxy=debug",
            "warn,outrigger_proxy::outbound=trace",
            "DEBUG",
        ] {
            log_filter(right).unwrap();
        }
        for wrong in ["", "verbose", "info,loud", "a=b=c"] {
            assert!(log_filter(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
