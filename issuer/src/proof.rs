//! How long a connection may rest on what its peer has proven: until its SVID ends, or its chain leads to no root any more.
//!
//! A sidecar renews its SVID long before that, and then moves to another connection. Who is left cannot renew, or holds the
//! connection because no handshake of his would be accepted again.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::watch;

use crate::ca::{self, Ca, CaError};
use crate::clock;

/// The roots by which peers are checked.
#[derive(Clone, Debug)]
pub(crate) struct Trusted {
    roots: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Trusted {
    /// The bundle of the CA.
    pub(crate) fn new(ca: &Ca) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(ca.roots()?), provider)
            .allow_unauthenticated()
            .build()?;
        Ok(Self {
            roots: ca.bundle().to_vec(),
            verifier,
        })
    }

    /// For handshakes.
    pub(crate) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifier)
    }

    /// Says it to all that are connected, unless the roots are the same.
    pub(crate) fn publish(self, to: &watch::Sender<Self>) {
        to.send_if_modified(|now| {
            let others = now.roots != self.roots;
            if others {
                *now = self;
            }
            others
        });
    }

    fn reaches(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return false;
        };
        let since_epoch = clock::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(since_epoch);
        self.verifier.verify_client_cert(leaf, intermediates, now).is_ok()
    }
}

/// Waits until nothing is left of what a peer has proven. `trusted` is from before its handshake: roots that change meanwhile
/// are seen. Gives why it is over.
///
/// # Errors
/// When the chain begins with no certificate, which no handshake accepts.
pub(crate) fn over(
    chain: Vec<CertificateDer<'static>>,
    mut trusted: watch::Receiver<Trusted>,
) -> Result<impl Future<Output = &'static str> + Send, CaError> {
    let none = CertificateDer::from_slice(&[]);
    let ends = ca::not_after(chain.first().unwrap_or(&none))?;
    let left = ends.duration_since(clock::now()).unwrap_or_default();
    let end = tokio::time::sleep(left + Duration::from_millis(1));
    Ok(async move {
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return "its SVID has ended",
                Ok(()) = trusted.changed() => {
                    if !trusted.borrow_and_update().reaches(&chain) {
                        return "the root of its SVID is not trusted any more";
                    }
                }
            }
        }
    })
}
