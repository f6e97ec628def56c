//! `global`: the store in which all pods count.
//!
//! A name has to be whole: sidecars of many namespaces ask for it, and one without a dot would be another one to each of them.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::limits as proto;
use crate::policy::access::Reader;

/// Of `timeout`.
pub const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(1);
/// Values of `onFailure`.
pub const ON_FAILURE: [&str; 3] = ["Local", "Allow", "Deny"];
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(20);

/// The Redis in which limits of the scope `Global` are counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GlobalSpec {
    /// A whole name or an address, and a port: "redis.shop.svc:6379", "10.0.0.7:6379".
    #[schemars(
        length(min = 1, max = 260),
        regex(pattern = r"^([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}$")
    )]
    pub address: String,
    /// What asking it may add to a request, 1ms to 1s. Default 20ms.
    #[schemars(
        length(max = 28),
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) >= duration('1ms') && duration(self) <= duration('1s')",
            "message": "the timeout is 1ms to 1s"
        }])
    )]
    pub timeout: Option<String>,
    /// What its limits do while it does not answer. `Local` (default): they are carried out as if their scope was `Service`. `Allow`: they
    /// admit. `Deny`: requests that they are about are answered 503.
    #[schemars(extend("enum" = ["Local", "Allow", "Deny"]))]
    pub on_failure: Option<String>,
}

pub(super) fn global(reader: &mut Reader<'_>, spec: &GlobalSpec) -> proto::Global {
    if let Err(why) = host_and_port(&spec.address) {
        reader.mistake("global.address", &format!("{:?} {why}", spec.address));
    }
    let timeout = spec
        .timeout
        .as_deref()
        .map(|text| duration::parse_within(text, TIMEOUT));
    let timeout = timeout.unwrap_or(Ok(DEFAULT_TIMEOUT)).unwrap_or_else(|why| {
        reader.mistake("global.timeout", &why);
        DEFAULT_TIMEOUT
    });
    let on_failure = spec.on_failure.as_deref().unwrap_or("Local");
    let on_failure = match reader.one_of("global.onFailure", on_failure, &ON_FAILURE) {
        Some("Allow") => proto::OnFailure::Allow,
        Some("Deny") => proto::OnFailure::Deny,
        _ => proto::OnFailure::Unspecified,
    };
    proto::Global {
        address: spec.address.clone(),
        // At most a second.
        timeout_ms: timeout.as_millis() as u32,
        on_failure: on_failure.into(),
    }
}

fn host_and_port(text: &str) -> Result<(), &'static str> {
    const WRONG: &str = "is no host and port, like \"redis.shop.svc:6379\"";
    let (host, port) = text.rsplit_once(':').ok_or(WRONG)?;
    port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(WRONG)?;
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Some(inner) = inner {
        return inner.parse::<std::net::Ipv6Addr>().map(drop).map_err(|_| WRONG);
    }
    if host.parse::<std::net::Ipv4Addr>().is_ok() {
        return Ok(());
    }
    let of_a_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
    if host.is_empty() || host.len() > 253 || !host.bytes().all(of_a_name) {
        return Err(WRONG);
    }
    match host.contains('.') {
        true => Ok(()),
        false => Err("has no whole name: a Service has its namespace in it, like \"redis.shop.svc:6379\""),
    }
}

/// The address that the text names by itself, and not by a name.
pub(super) fn literal(text: &str) -> Option<IpAddr> {
    let (host, _) = text.rsplit_once(':')?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// A Service of the cluster, by the name under which pods ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreService {
    pub namespace: String,
    pub name: String,
    /// Of the Service. `None`: one of its pods is named, and the port is the pod's.
    pub port: Option<u16>,
    /// It is written as a Service (`redis.shop.svc`). Otherwise (`redis.shop`) it is one only if there is such a namespace.
    pub surely: bool,
}

/// `None`: the text names no Service, but an address, or a name of somewhere else.
pub(super) fn service(text: &str) -> Option<StoreService> {
    let (host, port) = text.rsplit_once(':')?;
    if literal(text).is_some() {
        return None;
    }
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let labels: Vec<&str> = host.split('.').collect();
    let port = port.parse().ok();
    let (name, namespace, port, surely) = match &labels[..] {
        [name, namespace] => (name, namespace, port, false),
        [name, namespace, "svc", ..] => (name, namespace, port, true),
        [_, name, namespace, "svc", ..] => (name, namespace, None, true),
        _ => return None,
    };
    Some(StoreService {
        namespace: (*namespace).to_owned(),
        name: (*name).to_owned(),
        port,
        surely,
    })
}
