//! The loop that accepts connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::guarded::{Times, Work};
use crate::place::Gate;

/// After an error of `accept`, which is most often that there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections for ever, each when it has a place, and gives them to `begin`, which must not block: it starts a task.
pub async fn accept(
    listener: &TcpListener,
    gate: &Arc<Gate>,
    times: Times,
    mut begin: impl FnMut(TcpStream, SocketAddr, Work),
) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                let place = gate.enter(address.ip()).await;
                begin(stream, address, Work::begin(place, times));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection: if it is EMFILE, raise the limit of open files");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
