//! Two connections that are one.

use super::Stream;
use super::copy::{self, Meter};

/// Moves bytes until both sides have ended, and resets both where one broke or was cut. `in_flight` is what counts the tunnel, and
/// lasts as long as it does; `meter` counts the bytes.
pub async fn tunnel(client: &mut Stream, server: &mut Stream, in_flight: impl Sized, meter: &impl Meter) {
    // Where one side takes no bytes, the other is not read, and would not find that it was cut. One of them is no sidecar's.
    let peer = if client.is_mesh() { client.term() } else { server.term() };
    let broken = tokio::select! {
        biased;
        copied = copy::both_ways(client, server, meter) => copied
            .result
            .inspect_err(|error| tracing::debug!(%error, sent = copied.sent, received = copied.received, "a tunnel broke"))
            .is_err(),
        () = peer.until_cut() => true,
    };
    if broken {
        client.reset_on_close();
        server.reset_on_close();
    }
    drop(in_flight);
}
