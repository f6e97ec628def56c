//! Whom this sidecar trusts, whether it has an SVID or not.

use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, UnixTime};

use super::bundle::TrustBundle;
use super::tls::provider;
use super::verify::Verifier;
use crate::telemetry::Direction;

/// One state of the roots.
pub struct Trust {
    /// Changes with the roots, and with nothing else.
    pub generation: u64,
    /// When each root ends.
    pub not_after: Vec<SystemTime>,
    verifier: Arc<Verifier>,
}

impl Trust {
    /// Peers are to be of `trust_domain`.
    ///
    /// # Errors
    /// When the bundle cannot be used.
    pub fn new(bundle: &TrustBundle, trust_domain: &str, generation: u64) -> Result<Self, String> {
        Ok(Self {
            generation,
            not_after: bundle.not_after().collect(),
            verifier: Arc::new(Verifier::new(provider(), bundle, trust_domain)?),
        })
    }

    /// Whether the chain of a peer that calls (inbound) or is called leads to one of the roots, at a time.
    pub(super) fn reaches(&self, direction: Direction, chain: &[CertificateDer<'_>], at: SystemTime) -> bool {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return false;
        };
        let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        match direction {
            Direction::Inbound => self.verifier.check_client(leaf, intermediates, at).is_ok(),
            Direction::Outbound => self.verifier.check_server(leaf, intermediates, at).is_ok(),
        }
    }

    /// For handshakes.
    pub(super) fn verifier(&self) -> &Arc<Verifier> {
        &self.verifier
    }
}
