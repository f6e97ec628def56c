//! WebSocket, CONNECT and their like: after the response's head, bytes pass both ways.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::{Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::guard::Guard;
use crate::client::{Lease, Leaving};
use crate::drain::{Activity, InFlight};
use crate::net::{Stream, TunnelLimit, copy};

/// Where a response begins a tunnel, the connection that it came from goes into it, joined with the client's (`None`: it asked for none).
/// Else that connection is given back. `connect`: the request was a CONNECT. `until_cut`: the tunnel lasts no longer; nor where nothing
/// moves in it for `idle`.
pub fn join_if_switched<C>(
    response: &mut Response<Incoming>,
    connect: bool,
    client: Option<OnUpgrade>,
    until_cut: impl FnOnce(&Lease) -> C,
    idle: Option<Duration>,
    activity: &Rc<Activity>,
    lease: Lease,
) -> Option<Lease>
where
    C: Future<Output = ()> + 'static,
{
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS || (connect && response.status().is_success());
    if !switched {
        return Some(lease);
    }
    if let Some(client) = client {
        let server = hyper::upgrade::on(response);
        join(client, server, until_cut(&lease), idle, activity.begin(), lease);
    }
    None
}

/// Joins both ends once both sides have switched. `in_flight` and the server's connection last as long as the tunnel, and the
/// tunnel no longer than `cut`.
fn join(
    client: OnUpgrade,
    server: OnUpgrade,
    cut: impl Future<Output = ()> + 'static,
    idle: Option<Duration>,
    in_flight: InFlight,
    lease: Lease,
) {
    tokio::task::spawn_local(async move {
        let _until_it_ends = (in_flight, lease);
        // Where one side takes no bytes, the other is not read, and would not find that it was cut.
        let mut cut = pin!(cut);
        let switched = tokio::select! {
            biased;
            () = &mut cut => return,
            switched = async { tokio::try_join!(client, server) } => switched,
        };
        let (mut client, mut server) = match switched {
            Ok((client, server)) => (TokioIo::new(client), TokioIo::new(server)),
            Err(error) => return tracing::debug!(%error, "an upgrade was not completed"),
        };
        let (idle, meter) = TunnelLimit::new(idle, &());
        let broken = tokio::select! {
            biased;
            copied = copy::both_ways(&mut client, &mut server, &meter) => copied
                .result
                .inspect_err(|error| {
                    tracing::debug!(%error, sent = copied.sent, received = copied.received, "an upgraded connection broke");
                })
                .is_err(),
            () = cut => true,
            () = idle => {
                tracing::debug!("an upgraded connection was idle for too long");
                true
            }
        };
        if broken {
            reset(client.into_inner());
            reset(server.into_inner());
        }
    });
}

/// Ends it so that it is not taken for a complete stream. Of HTTP/2 the library knows no other end than a clean one.
fn reset(end: Upgraded) {
    match end.downcast::<TokioIo<Leaving>>() {
        Ok(to_server) => to_server.io.inner().get_ref().reset_on_close(),
        Err(end) => {
            if let Ok(of_client) = end.downcast::<TokioIo<Guard<Stream>>>() {
                of_client.io.inner().get_ref().reset_on_close();
            }
        }
    }
}
