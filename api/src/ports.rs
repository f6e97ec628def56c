//! Ports and users of Outrigger's own processes. They are fixed: the capture rules, the injector and the chart must agree.

/// Where the pod's outgoing connections are redirected to.
pub const OUTBOUND: u16 = 14140;
/// Where the pod's incoming connections are redirected to.
pub const INBOUND: u16 = 14143;
/// `/livez`, `/readyz`, `/metrics`, …: of the sidecar, the controller and the injector alike, each in its own pod.
pub const ADMIN: u16 = 14190;
/// What a call to a sidecar's admin port must have that changes something: `outrigger-admin: 1`. Sidecars take `outrigger-*` out
/// of what they pass on, so no request that somebody makes a sidecar forward has it.
pub const ADMIN_HEADER: &str = "outrigger-admin";
/// The controller's gRPC: identity and discovery, over TLS.
pub const CONTROLLER: u16 = 14150;
/// The injector's webhook, over TLS.
pub const WEBHOOK: u16 = 14443;

/// The uid of the sidecar. Its own connections are not captured.
pub const PROXY_UID: u32 = 2140;

/// Ports on which the server speaks first, or which are certainly not HTTP: opaque unless a Service says otherwise.
/// SMTP, submission, MySQL, Galera, PostgreSQL, Redis, Elasticsearch's transport, memcached.
pub const DEFAULT_OPAQUE: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];
