//! Connections of this pod to itself: a sidecar's own are not captured, so a dialled one would come to the app in ciphertext. They
//! are made in memory, and the worker takes them as it takes a listener's.

use std::net::SocketAddr;

use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::net::Io;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

/// Connections that wait to be taken; as many as a listener's queue has.
const QUEUE: usize = 1024;
/// What a connection may hold on its way, in bytes.
const BUFFER: usize = 64 * 1024;

/// The end of a connection that the worker takes.
pub struct SelfCall {
    pub io: DuplexStream,
    /// Where the app is.
    pub app: SocketAddr,
}

/// Makes connections to this pod.
pub struct SelfCalls(mpsc::Sender<SelfCall>);

impl SelfCalls {
    /// Makes none yet. The second is where they come out.
    pub fn new() -> (Self, mpsc::Receiver<SelfCall>) {
        let (calls, taken) = mpsc::channel(QUEUE);
        (Self(calls), taken)
    }

    /// A connection to the app of this pod. It is not waited for: whoever would wait may be what has to end before others are
    /// taken.
    ///
    /// # Errors
    /// [`Reason::ConnectFailed`]: too many wait to be taken.
    pub fn connect(&self, app: SocketAddr) -> Result<Io, ProxyError> {
        let (near, far) = tokio::io::duplex(BUFFER);
        match self.0.try_send(SelfCall { io: far, app }) {
            Ok(()) => Ok(Io::Pipe(near)),
            Err(_) => Err(ProxyError::new(
                Reason::ConnectFailed,
                format!(
                    "cannot connect to {app}: this pod calls itself, and too many such connections wait to be taken"
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{QUEUE, SelfCalls};
    use outrigger_proxy_transport::error::Reason;
    use std::net::SocketAddr;

    #[tokio::test]
    async fn what_finds_the_queue_full_is_refused_at_once() {
        let (calls, mut taken) = SelfCalls::new();
        let app: SocketAddr = "10.0.0.7:8080".parse().unwrap();
        let made: Vec<_> = (0..QUEUE).map(|_| calls.connect(app).unwrap()).collect();
        assert_eq!(calls.connect(app).unwrap_err().reason, Reason::ConnectFailed);
        assert_eq!(taken.recv().await.unwrap().app, app);
        assert!(calls.connect(app).is_ok(), "there is room again");
        drop(made);
    }
}
