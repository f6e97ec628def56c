//! The CA in use follows the Secret, and time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{CaSecret, fields};
use crate::metrics::Metrics;
use outrigger_issuer::ca::Ca;
use outrigger_issuer::ca::rotation::{Now, Previous, Rotation};

/// The Secret is also read on a timer: a watch that hangs must not let a certificate expire.
const REREAD: Duration = Duration::from_secs(300);
/// After a change that could not be made.
const RETRY: Duration = Duration::from_secs(30);

pub(super) struct Follower {
    pub(super) secret: CaSecret,
    pub(super) rotation: Rotation,
    /// Whether what is left of the CA before may not be in the Secret yet.
    unwritten: bool,
    /// Whether time asks for a change that cannot be made.
    stuck: bool,
    ca: watch::Sender<Arc<Ca>>,
    pub(super) metrics: Arc<Metrics>,
}

impl CaSecret {
    /// Keeps `ca` as the Secret is, for ever. A Secret that is broken changes nothing: the last good CA is kept. One that is
    /// empty, because it was deleted and the chart brought it back, is filled with that CA: with the last process its key would
    /// be lost, and every workload would need a new root.
    pub async fn follow(self, rotation: Rotation, ca: watch::Sender<Arc<Ca>>, metrics: Arc<Metrics>) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = std::pin::pin!(watcher(self.api.clone(), config).default_backoff());
        let mut follower = Follower::new(self, rotation, ca, metrics);
        let mut reread = tokio::time::interval_at(Instant::now() + REREAD, REREAD);
        loop {
            let change = follower.rest();
            tokio::select! {
                event = events.try_next() => match event {
                    Ok(Some(watcher::Event::Apply(secret) | watcher::Event::InitApply(secret))) => follower.seen(secret).await,
                    Ok(Some(watcher::Event::Delete(_))) => follower.secret.missing(&follower.metrics).await,
                    Ok(Some(watcher::Event::Init | watcher::Event::InitDone)) => {}
                    Ok(None) => return,
                    Err(e) => tracing::warn!(error = %e, "watching the CA's Secret failed; trying again"),
                },
                _ = reread.tick() => follower.read().await,
                () = tokio::time::sleep(change.unwrap_or_default()), if change.is_some() => follower.advance().await,
            }
        }
    }
}

impl Follower {
    pub(super) fn new(secret: CaSecret, rotation: Rotation, ca: watch::Sender<Arc<Ca>>, metrics: Arc<Metrics>) -> Self {
        metrics.ca_waits(rotation.waits());
        Self {
            secret,
            rotation,
            unwritten: true,
            stuck: false,
            ca,
            metrics,
        }
    }

    /// Until [`Follower::advance`] has something to do.
    pub(super) fn rest(&self) -> Option<Duration> {
        let rest = self.rotation.rest(Now::read())?;
        Some(if self.stuck { rest.max(RETRY) } else { rest })
    }

    /// Reads the Secret.
    async fn read(&mut self) {
        match self.secret.api.get_opt(&self.secret.name).await {
            Ok(Some(secret)) => self.seen(secret).await,
            Ok(None) => self.secret.missing(&self.metrics).await,
            Err(e) => tracing::warn!(error = %e, "reading the CA's Secret failed; trying again"),
        }
    }

    /// As the Secret is now.
    pub(super) async fn seen(&mut self, secret: Secret) {
        self.metrics.secret_is_there(true);
        if fields::is_empty(&secret) {
            self.fill(secret).await;
            return;
        }
        if let Err(e) = self.want(&secret) {
            self.metrics.ca_error();
            tracing::error!(
                secret = self.secret.name,
                error = %format!("{e:#}"),
                "the CA's Secret cannot be used; the last good CA is kept"
            );
        }
        if self.unwritten {
            self.keep(secret).await;
        }
    }

    /// Time has passed.
    pub(super) async fn advance(&mut self) {
        let next = self.rotation.clone().advance(Now::read());
        self.stuck = next.is_err();
        match next {
            Ok(next) => self.put_in_force(next),
            Err(e) => {
                self.metrics.ca_error();
                tracing::error!(error = %e, "the CA that should issue from now on cannot be used");
            }
        }
        if self.unwritten {
            self.read().await;
        }
    }

    fn want(&mut self, secret: &Secret) -> anyhow::Result<()> {
        let wanted = fields::wanted(secret)?;
        if wanted == *self.rotation.wanted() {
            return self.adopt(secret);
        }
        let next = self.rotation.want(wanted, Now::read())?;
        let roots = next.ca().bundle().len();
        if next.waits() {
            tracing::info!(
                secret = self.secret.name,
                roots,
                "there is a new CA: its roots are published, and it issues as soon as all sidecars have heard of them; until then the \
                 one before it does"
            );
        } else {
            tracing::info!(secret = self.secret.name, roots, "the CA has changed");
        }
        if lost_roots(self.rotation.ca(), next.ca()) > 0 {
            self.metrics.ca_error();
            tracing::warn!(
                secret = self.secret.name,
                "a root that was trusted is gone from the CA's Secret: until they have renewed their SVIDs, workloads below it are \
                 refused; keep it in ca.crt for as long as an SVID lives"
            );
        }
        self.put_in_force(next);
        Ok(())
    }

    /// What another replica has written.
    fn adopt(&mut self, secret: &Secret) -> anyhow::Result<()> {
        if let Some(written) = fields::previous(secret)?
            && let Some(next) = self.rotation.adopt(&written, Now::read())?
        {
            self.put_in_force(next);
        }
        Ok(())
    }

    fn put_in_force(&mut self, next: Rotation) {
        self.unwritten |= next.previous() != self.rotation.previous();
        self.metrics.ca_waits(next.waits());
        self.rotation = next;
        let ca = self.rotation.ca();
        self.ca.send_if_modified(|current| {
            let other = current.pem() != ca.pem();
            if other {
                *current = Arc::clone(ca);
            }
            other
        });
    }

    async fn fill(&mut self, secret: Secret) {
        match self.secret.fill(secret, &self.rotation).await {
            Ok(true) => tracing::info!(
                secret = self.secret.name,
                "the CA's Secret was empty, and has its CA again"
            ),
            // Another replica was first; what it put there is seen next.
            Ok(false) => {}
            Err(e) => tracing::error!(
                secret = self.secret.name,
                error = %format!("{e:#}"),
                "the CA is in use until this process ends, and is lost then"
            ),
        }
    }

    /// Writes once what is left of the CA before. Where somebody takes it out again, this process goes on with what it knows.
    async fn keep(&mut self, secret: Secret) {
        let previous = self.rotation.previous();
        let there = fields::previous(&secret);
        if there.is_ok_and(|there| Previous::says_the_same(there.as_ref(), previous)) {
            self.unwritten = false;
            return;
        }
        match self.secret.keep(secret, previous).await {
            Ok(written) => self.unwritten = !written,
            Err(e) => tracing::error!(
                secret = self.secret.name,
                error = %format!("{e:#}"),
                "the CA before this one could not be kept in the Secret: if this process ends now, the new one issues at once"
            ),
        }
    }
}

/// How many roots were trusted and are not any more.
pub(super) fn lost_roots(old: &Ca, new: &Ca) -> usize {
    old.bundle().iter().filter(|root| !new.bundle().contains(root)).count()
}
