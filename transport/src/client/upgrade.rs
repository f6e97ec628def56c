//! WebSocket, CONNECT and their like: after the response's head, bytes pass both ways.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::pool::Lease;
use crate::drain::InFlight;
use crate::net::copy;

/// Joins both ends once both sides have switched. `in_flight` and the server's connection last as long as the tunnel.
pub fn join(client: OnUpgrade, server: OnUpgrade, in_flight: InFlight, lease: Lease) {
    tokio::task::spawn_local(async move {
        let _until_it_ends = (in_flight, lease);
        match tokio::try_join!(client, server) {
            Ok((client, server)) => {
                let copied = copy::both_ways(&mut TokioIo::new(client), &mut TokioIo::new(server)).await;
                if let Err(error) = copied.result {
                    tracing::debug!(%error, sent = copied.sent, received = copied.received, "an upgraded connection broke");
                }
            }
            Err(error) => tracing::debug!(%error, "an upgrade was not completed"),
        }
    });
}
