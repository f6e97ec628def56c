//! Who may call: AccessPolicies, through real sidecars with real mutual TLS, in HTTP/1, HTTP/2, gRPC, bytes and the app's own TLS.
//!
//! The decision itself has a table of its own (`access/tests`). Here is what can be in its way: how the sidecar finds its facts, what
//! goes on while policies change, and what is told of it.

mod bytes;
mod cases;
mod changes;
mod hostile;
pub(crate) mod issuer;
mod scene;
mod script;
mod table;
mod tokens;
mod told;
mod unknown;

use std::time::Duration;

use outrigger_tests::mesh::until_within;

/// Everything on loopback is there within this, or never; also what waits for a controller's first word.
const SOON: Duration = Duration::from_secs(25);
const DAY: Duration = Duration::from_secs(86_400);

/// Does not wait for ever.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it takes too long")
}

/// Waits for a condition that must come true.
async fn until(what: &str, condition: impl AsyncFnMut() -> bool) {
    until_within(SOON, what, condition).await;
}
