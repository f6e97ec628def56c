//! Who this sidecar is, and who it talks to: SVIDs, the trust bundle, and mutual TLS between sidecars.

mod bundle;
pub(crate) mod channel;
mod clock;
mod credentials;
mod hello;
mod issuer;
#[cfg(test)]
mod issuer_tests;
mod peers;
mod renewal;
#[cfg(test)]
mod renewal_tests;
mod roots;
#[cfg(test)]
mod roots_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod trust;
pub mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use outrigger_api::spiffe::SpiffeId;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use self::channel::Dialer;
use self::issuer::{Controller, Issue};
use self::renewal::Renewal;
use crate::dns::{HostPort, Resolver};

pub use bundle::TrustBundle;
pub use clock::Clock;
pub use credentials::{Credentials, HandshakeError, Svid};
pub use hello::{Hello, inspect_hello, server_name};
pub use peers::{Peers, Rules};
pub(crate) use tls::provider;
pub use trust::Trust;

/// How this sidecar gets its SVID, and whom it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityConfig {
    /// Who this sidecar is to be.
    pub id: SpiffeId,
    /// Where `Identity.Issue` is called.
    pub issuer: HostPort,
    /// Who must answer there.
    pub issuer_id: SpiffeId,
    /// The token that proves who this sidecar is; read again for each request, because kubelet renews it.
    pub token_file: PathBuf,
    /// Whom it trusts before the issuer has said it.
    pub roots: FirstRoots,
}

/// Whom a sidecar trusts at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstRoots {
    /// The injector wrote them into the environment, which nobody can change while the pod lives.
    Given {
        /// As they were when the pod was made.
        roots: Vec<CertificateDer<'static>>,
        /// The file in which the issuer's word is kept for the next process. It lives as long as the pod.
        kept: PathBuf,
    },
    /// A PEM file; read again on a timer until the issuer has said whom to trust. Whoever may write it decides.
    File(PathBuf),
}

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
    clock: Clock,
    state: State,
    /// The controller's last word on whom to trust.
    told: watch::Sender<Vec<CertificateDer<'static>>>,
    /// The task that renews; it ends with the last handle.
    renewal: Option<AbortHandle>,
}

/// What is known now. The renewal writes it, everybody else reads it.
#[derive(Clone, Default)]
struct State {
    current: watch::Sender<Option<Arc<Credentials>>>,
    trusted: watch::Sender<Option<Arc<Trust>>>,
    problem: Arc<Mutex<Option<String>>>,
}

impl Identity {
    /// Starts to issue and renew on the runtime that calls this.
    pub fn start(config: IdentityConfig, clock: Clock, resolver: Resolver) -> Self {
        let issuer = Controller {
            dialer: Dialer {
                address: config.issuer.clone(),
                id: config.issuer_id.clone(),
                resolver,
                clock: clock.clone(),
            },
            token_file: config.token_file.clone(),
        };
        Self::start_with(config, issuer, clock, SmallRng::from_os_rng())
    }

    fn start_with(config: IdentityConfig, issuer: impl Issue, clock: Clock, random: SmallRng) -> Self {
        let state = State::default();
        let (told, roots) = watch::channel(Vec::new());
        let renewal = Renewal::new(config, issuer, clock.clone(), random, state.clone(), roots);
        let renewal = tokio::spawn(renewal.run()).abort_handle();
        Self(Arc::new(Inner {
            clock,
            state,
            told,
            renewal: Some(renewal),
        }))
    }

    /// An identity that never changes, for tests.
    pub fn fixed(credentials: Credentials) -> Self {
        Self(Arc::new(Inner {
            clock: credentials.clock().clone(),
            state: State {
                trusted: watch::channel(Some(Arc::clone(&credentials.trust))).0,
                current: watch::channel(Some(Arc::new(credentials))).0,
                problem: Arc::default(),
            },
            told: watch::Sender::default(),
            renewal: None,
        }))
    }

    /// An identity whose credentials a test changes.
    #[cfg(test)]
    pub(crate) fn changing(credentials: Credentials) -> (Self, watch::Sender<Option<Arc<Credentials>>>) {
        let identity = Self::fixed(credentials);
        let sender = identity.0.state.current.clone();
        (identity, sender)
    }

    /// Why the credentials are not there or could not be renewed, if that is so: what was tried, and what to check.
    pub fn problem(&self) -> Option<String> {
        self.0.state.problem.lock().clone()
    }

    /// The clock by which certificates are valid or not.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The credentials now, or `None` while there are none.
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.0.state.current.borrow().clone()
    }

    /// Whom it trusts now, with credentials or without; `None` before it knows of a root.
    pub fn trusted(&self) -> Option<Arc<Trust>> {
        self.0.state.trusted.borrow().clone()
    }

    /// Waits until there are credentials.
    pub async fn ready(&self) -> Arc<Credentials> {
        let mut receiver = self.0.state.current.subscribe();
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

    /// Says whom to trust from now on, and nobody else, as the controller did over mutual TLS. It is in force within 10 s.
    pub(crate) fn trust(&self, roots: Vec<CertificateDer<'static>>) {
        self.0.told.send_replace(roots);
    }

    /// Tells of every change.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Credentials>>> {
        self.0.state.current.subscribe()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(renewal) = &self.renewal {
            renewal.abort();
        }
    }
}
