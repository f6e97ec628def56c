//! WebSocket, CONNECT and their like: after the response's head, bytes pass both ways.

use std::pin::pin;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::guard::Guard;
use crate::client::Lease;
use crate::drain::InFlight;
use crate::net::{Stream, Term, copy};

/// Joins both ends once both sides have switched. `in_flight` and the server's connection last as long as the tunnel, and the
/// tunnel no longer than `peer`, the term of the connection to or from another sidecar.
pub fn join(client: OnUpgrade, server: OnUpgrade, peer: Term, in_flight: InFlight, lease: Lease) {
    tokio::task::spawn_local(async move {
        let _until_it_ends = (in_flight, lease);
        // Where one side takes no bytes, the other is not read, and would not find that it was cut.
        let mut cut = pin!(peer.until_cut());
        let switched = tokio::select! {
            biased;
            () = &mut cut => return,
            switched = async { tokio::try_join!(client, server) } => switched,
        };
        let (mut client, mut server) = match switched {
            Ok((client, server)) => (TokioIo::new(client), TokioIo::new(server)),
            Err(error) => return tracing::debug!(%error, "an upgrade was not completed"),
        };
        let broken = tokio::select! {
            biased;
            copied = copy::both_ways(&mut client, &mut server, &()) => copied
                .result
                .inspect_err(|error| {
                    tracing::debug!(%error, sent = copied.sent, received = copied.received, "an upgraded connection broke");
                })
                .is_err(),
            () = cut => true,
        };
        if broken {
            reset(client.into_inner());
            reset(server.into_inner());
        }
    });
}

/// Ends it so that it is not taken for a complete stream. Of HTTP/2 the library knows no other end than a clean one.
fn reset(end: Upgraded) {
    match end.downcast::<TokioIo<Stream>>() {
        Ok(to_server) => to_server.io.inner().reset_on_close(),
        Err(end) => {
            if let Ok(of_client) = end.downcast::<TokioIo<Guard<Stream>>>() {
                of_client.io.inner().get_ref().reset_on_close();
            }
        }
    }
}
