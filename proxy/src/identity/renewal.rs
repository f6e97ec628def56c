//! Keeps the credentials fresh: on a timer it looks whether others are to be trusted, and the SVID is renewed at a quarter of
//! its life.
//!
//! An SVID that cannot be renewed is kept while it is valid, and tried again with backoff; one that has ended is given up,
//! so that the error says so here, and not as a riddle at the peers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_api::spiffe::SpiffeId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::bundle::TrustBundle;
use super::clock::{Clock, written};
use super::credentials::{Credentials, Svid};
use super::issuer::{Issue, Issued};
use super::roots::Roots;
use super::trust::Trust;
use super::{IdentityConfig, State};
use crate::backoff::Backoff;

/// How often it looks whether others are to be trusted. The controller tells all sidecars at the same moment, and a new trust
/// bundle means a new connection of each to the controller: not all look at that moment.
pub(super) const LOOK: Duration = Duration::from_secs(10);
/// The same while nobody is: the pod may start before its namespace has a trust bundle.
const LOOK_MISSING: Duration = Duration::from_secs(1);
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
const ISSUE_TIMEOUT: Duration = Duration::from_secs(10);
/// When an SVID is renewed, as a share of the life that it has when it arrives. Early, because a renewal costs little, and what is
/// left is how long a controller may be away (docs/configuration.md). Spread, so that pods that started together do not come
/// together.
const RENEW: std::ops::Range<f64> = 0.22..0.28;

pub(super) struct Renewal<I> {
    config: IdentityConfig,
    issuer: I,
    clock: Clock,
    random: SmallRng,
    backoff: Backoff,
    state: State,
    roots: Roots,
    svid: Option<Svid>,
    /// By the wall clock, because certificates are: a machine that slept renews as soon as it wakes.
    renew_at: SystemTime,
    retry_at: Option<Instant>,
    generation: u64,
}

impl<I: Issue> Renewal<I> {
    pub(super) fn new(
        config: IdentityConfig,
        issuer: I,
        clock: Clock,
        mut random: SmallRng,
        state: State,
        told: watch::Receiver<Vec<CertificateDer<'static>>>,
    ) -> Self {
        let jitter = SmallRng::from_rng(&mut random);
        Self {
            roots: Roots::new(config.roots.clone(), told),
            config,
            issuer,
            renew_at: clock.now(),
            clock,
            random,
            backoff: Backoff::new(RETRY.0, RETRY.1, jitter),
            state,
            svid: None,
            retry_at: None,
            generation: 0,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let result = self.step().await;
            self.report(result.err());
            self.give_up_expired();
            sleep(self.wait()).await;
        }
    }

    /// One look at everything.
    async fn step(&mut self) -> Result<(), String> {
        let looked = self.look();
        let waited = self.retry_at.is_none_or(|at| Instant::now() >= at);
        if let (true, true, Some(bundle)) = (self.is_due(), waited, self.roots.trusted().cloned()) {
            match self.renew(&bundle).await {
                Ok(()) => {
                    self.backoff.succeeded();
                    self.retry_at = None;
                }
                Err(error) => {
                    self.retry_at = Some(Instant::now() + self.backoff.failed());
                    return Err(error);
                }
            }
        } else if self.is_due() && looked.is_ok() {
            // Still waiting: the problem is still the same.
            return Err(self.state.problem.lock().clone().unwrap_or_default());
        }
        looked
    }

    fn is_due(&self) -> bool {
        self.svid.is_none() || self.clock.now() >= self.renew_at
    }

    fn look(&mut self) -> Result<(), String> {
        if !self.roots.look()? {
            return Ok(());
        }
        self.trust()?;
        self.publish()
    }

    async fn renew(&mut self, bundle: &TrustBundle) -> Result<(), String> {
        let (key, csr) = key_and_csr(&self.config.id)?;
        let issuing = timeout(ISSUE_TIMEOUT, self.issuer.issue(csr, bundle));
        let issued = issuing.await.unwrap_or_else(|_| {
            Err(format!(
                "controller {}: no answer within {ISSUE_TIMEOUT:?}",
                self.config.issuer
            ))
        });
        let Issued { chain, roots } = issued?;
        let svid = Svid::new(chain, key).map_err(|error| format!("the controller issued no SVID: {error}"))?;
        if svid.leaf.id != self.config.id {
            return Err(format!(
                "the controller issued {}, and this sidecar is {}: check the pod's service account and the trust domain",
                svid.leaf.id, self.config.id
            ));
        }
        let now = self.clock.now();
        let leaf = &svid.leaf;
        if !(leaf.not_before..leaf.not_after).contains(&now) {
            return Err(format!(
                "the SVID that was issued just now is valid from {} to {}, and the clock here says {}: set the clocks of \
                 this node and the controller's",
                written(leaf.not_before),
                written(leaf.not_after),
                written(now)
            ));
        }
        if self.roots.learn(roots)? {
            self.trust()?;
        }
        // Not negative: just checked.
        let life = leaf.not_after.duration_since(now).unwrap_or_default();
        self.renew_at = now + life.mul_f64(self.random.random_range(RENEW));
        tracing::info!(
            id = %leaf.id,
            not_after = written(leaf.not_after),
            renew_at = written(self.renew_at),
            "got an SVID"
        );
        self.svid = Some(svid);
        self.publish()
    }

    /// Says whom to trust, because the roots are new. Connections of peers below a root that is gone end also while there is no
    /// SVID.
    fn trust(&mut self) -> Result<(), String> {
        if let Some(bundle) = self.roots.trusted() {
            let before = self.state.trusted.borrow().as_ref().map_or(0, |trust| trust.generation);
            let trust = Trust::new(bundle, self.config.id.trust_domain(), before + 1)?;
            self.state.trusted.send_replace(Some(Arc::new(trust)));
        }
        Ok(())
    }

    /// Makes new credentials, because the roots or the SVID are new.
    fn publish(&mut self) -> Result<(), String> {
        let trust = self.state.trusted.borrow().clone();
        if let (Some(svid), Some(trust)) = (&self.svid, trust) {
            self.generation += 1;
            let credentials = Credentials::new(svid, &trust, self.generation, &self.clock)?;
            self.state.current.send_replace(Some(Arc::new(credentials)));
        }
        Ok(())
    }

    fn give_up_expired(&mut self) {
        let now = self.clock.now();
        if let Some(svid) = self.svid.take_if(|svid| svid.leaf.not_after <= now) {
            tracing::error!(
                "the SVID ended at {}, the clock here says {}, and it could not be renewed: mesh connections fail",
                written(svid.leaf.not_after),
                written(now)
            );
            self.state.current.send_replace(None);
        }
    }

    /// Logs a problem once, and its end.
    fn report(&self, error: Option<String>) {
        let mut problem = self.state.problem.lock();
        if *problem == error {
            return;
        }
        match &error {
            Some(error) => tracing::warn!("identity: {error}"),
            None => tracing::info!("identity: all is well again"),
        }
        *problem = error;
    }

    fn wait(&self) -> Duration {
        let look = match self.roots.trusted() {
            Some(_) => LOOK,
            None => LOOK_MISSING,
        };
        let renew = self.renew_at.duration_since(self.clock.now()).unwrap_or_default();
        match self.retry_at {
            Some(at) if self.is_due() => look.min(at.saturating_duration_since(Instant::now())),
            _ if self.svid.is_some() => look.min(renew),
            _ => look,
        }
    }
}

/// A new key, which never leaves this process, and a request that proves that we have it.
fn key_and_csr(id: &SpiffeId) -> Result<(PrivateKeyDer<'static>, Vec<u8>), String> {
    let make = || {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        let csr = params.serialize_request(&key)?.der().to_vec();
        Ok((PrivatePkcs8KeyDer::from(key.serialize_der()).into(), csr))
    };
    make().map_err(|error: rcgen::Error| format!("no key could be made: {error}"))
}
