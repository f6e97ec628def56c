//! Labels and annotations. They are about the sidecar itself; how traffic is treated is said by policies.

/// Label of a namespace, and annotation or label of a pod: [`ENABLED`] or [`DISABLED`]. The pod's word wins.
pub const INJECT: &str = "outrigger.dev/inject";
/// The sidecar is put into the pod.
pub const ENABLED: &str = "enabled";
/// The sidecar is left out.
pub const DISABLED: &str = "disabled";

/// Label that the injector puts on a pod: the version of its sidecar, for people and for `outrigger check`. Nothing is decided
/// by it: whoever may change a running pod's labels could otherwise take it out of the mesh.
pub const PROXY_VERSION: &str = "outrigger.dev/proxy-version";

/// Annotation of a pod, a Service or a namespace: ports whose bytes are not looked into, "3306,9000-9010".
pub const OPAQUE_PORTS: &str = "outrigger.dev/opaque-ports";
/// Annotation of a Service: [`IGNORE`] balances over its endpoints in spite of its `sessionAffinity: ClientIP`.
pub const SESSION_AFFINITY: &str = "outrigger.dev/session-affinity";
/// See [`SESSION_AFFINITY`].
pub const IGNORE: &str = "ignore";
/// Annotation of a pod: ports at which incoming connections reach the app untouched.
pub const SKIP_INBOUND_PORTS: &str = "outrigger.dev/skip-inbound-ports";
/// Annotation of a pod: ports to which outgoing connections leave untouched.
pub const SKIP_OUTBOUND_PORTS: &str = "outrigger.dev/skip-outbound-ports";
/// Annotation of a pod: addresses (CIDR, comma-separated) to which outgoing connections leave untouched.
pub const SKIP_OUTBOUND_CIDRS: &str = "outrigger.dev/skip-outbound-cidrs";
/// Annotation of a pod: users (numeric, comma-separated) whose connections leave untouched.
pub const SKIP_UIDS: &str = "outrigger.dev/skip-uids";
/// Annotation of a pod or a namespace: `strict` refuses plaintext to the pod's ports, `permissive`, the default, lets it in.
pub const MTLS: &str = "outrigger.dev/mtls";
/// Annotation of a pod: "false" leaves its probes as they are; a `strict` sidecar lets them in as plaintext.
pub const REWRITE_PROBES: &str = "outrigger.dev/rewrite-probes";
/// Annotation of a pod: "false" puts the sidecar in as an ordinary container even where native sidecars work.
pub const NATIVE_SIDECAR: &str = "outrigger.dev/native-sidecar";
/// Annotation of a pod: the sidecar's log filter, "info" or "outrigger_proxy=debug".
pub const LOG_LEVEL: &str = "outrigger.dev/log-level";
/// Annotation of a pod: "true" switches the access log on.
pub const ACCESS_LOG: &str = "outrigger.dev/access-log";
/// Annotation of a pod: "Append" writes the client's address behind what is in X-Forwarded-For, "Leave" nothing.
pub const FORWARDED_FOR: &str = "outrigger.dev/forwarded-for";
/// Annotations of a pod: the sidecar's resources, as Kubernetes quantities.
pub const CPU_REQUEST: &str = "outrigger.dev/proxy-cpu-request";
/// See [`CPU_REQUEST`].
pub const CPU_LIMIT: &str = "outrigger.dev/proxy-cpu-limit";
/// See [`CPU_REQUEST`].
pub const MEMORY_REQUEST: &str = "outrigger.dev/proxy-memory-request";
/// See [`CPU_REQUEST`].
pub const MEMORY_LIMIT: &str = "outrigger.dev/proxy-memory-limit";

/// The sidecar's container, among a pod's containers or its init containers. A pod that has it is in the mesh: unlike labels,
/// the containers of a pod and their environment cannot be changed after its creation.
pub const PROXY_CONTAINER: &str = "outrigger-proxy";
/// The init container that programs the capture.
pub const INIT_CONTAINER: &str = "outrigger-init";
/// In the environment of [`INIT_CONTAINER`]: what [`SKIP_INBOUND_PORTS`] said.
pub const SKIP_INBOUND_PORTS_VARIABLE: &str = "OUTRIGGER_SKIP_INBOUND_PORTS";
/// In the environment of the sidecar: whether it is a native one.
pub const NATIVE_SIDECAR_VARIABLE: &str = "OUTRIGGER_NATIVE_SIDECAR";

/// The audience of the projected ServiceAccount token that proves who a sidecar is.
pub const TOKEN_AUDIENCE: &str = "outrigger";
/// The ConfigMap with the trust bundle: in Outrigger's own namespace, where the injector reads it; and in every namespace that is
/// labelled for injection, for sidecars of `outrigger inject` and of the version before.
pub const TRUST_BUNDLE_CONFIG_MAP: &str = "outrigger-trust-bundle";
/// The key in that ConfigMap: PEM certificates, one or more roots.
pub const TRUST_BUNDLE_KEY: &str = "ca.crt";
/// In the environment of [`PROXY_CONTAINER`]: the trust bundle when the pod was made, PEM.
pub const TRUST_BUNDLE_VARIABLE: &str = "OUTRIGGER_TRUST_BUNDLE";
/// Bytes that a trust bundle may have as PEM: some 40 roots with P-256 keys, 16 with RSA keys of 4096 bits. It is in every pod, and
/// Linux takes no variable beyond 128 KiB.
pub const MAX_TRUST_BUNDLE: usize = 32 * 1024;

/// Parses a list of ports and ranges of ports, "3306, 9000-9010".
///
/// # Errors
/// Says which element is not a port or a range.
pub fn parse_ports(list: &str) -> Result<Vec<std::ops::RangeInclusive<u16>>, String> {
    list.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            match (low.trim().parse::<u16>(), high.trim().parse::<u16>()) {
                (Ok(low), Ok(high)) if 0 < low && low <= high => Ok(low..=high),
                _ => Err(format!("{part:?} is neither a port (1 to 65535) nor a range of ports")),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse_ports;

    #[test]
    fn ports_and_ranges() {
        assert_eq!(parse_ports("25, 9000-9002").unwrap(), [25..=25, 9000..=9002]);
        assert_eq!(parse_ports("").unwrap(), []);
        for wrong in ["0", "http", "9-8", "70000", "1-"] {
            assert!(parse_ports(wrong).unwrap_err().contains(wrong));
        }
    }
}
