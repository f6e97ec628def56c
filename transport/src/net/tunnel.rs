//! Two connections that are one.

use std::time::Duration;

use super::Stream;
use super::copy::{self, Meter};
use super::quiet::TunnelLimit;

/// Moves bytes until both sides have ended, and resets both where one broke or was cut. `in_flight` is what counts the tunnel, and
/// lasts as long as it does; `meter` counts the bytes. Where nothing moves for `limit`, it ends as if it broke; the answer is whether it did.
pub async fn tunnel(
    client: &mut Stream,
    server: &mut Stream,
    in_flight: impl Sized,
    meter: &impl Meter,
    limit: Option<Duration>,
) -> bool {
    // Where one side takes no bytes, the other is not read, and would not find that it was cut. One of them is no sidecar's.
    let peer = if client.is_mesh() { client.term() } else { server.term() };
    let (idle, meter) = TunnelLimit::new(limit, meter);
    let mut was_idle = false;
    let broken = tokio::select! {
        biased;
        copied = copy::both_ways(client, server, &meter) => copied
            .result
            .inspect_err(|error| tracing::debug!(%error, sent = copied.sent, received = copied.received, "a tunnel broke"))
            .is_err(),
        () = peer.until_cut() => true,
        () = idle => {
            was_idle = true;
            true
        }
    };
    if broken {
        client.reset_on_close();
        server.reset_on_close();
    }
    drop(in_flight);
    was_idle
}
