//! Two connections that are one.

use super::{Stream, copy};

/// Moves bytes until both sides have ended, and resets both where one broke. `in_flight` is what counts the tunnel, and lasts
/// as long as it does.
pub async fn tunnel(client: &mut Stream, server: &mut Stream, in_flight: impl Sized) {
    let copied = copy::both_ways(client, server).await;
    if let Err(error) = copied.result {
        tracing::debug!(%error, sent = copied.sent, received = copied.received, "a tunnel broke");
        client.reset_on_close();
        server.reset_on_close();
    }
    drop(in_flight);
}
