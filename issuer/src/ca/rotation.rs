//! From one CA to the next.
//!
//! An SVID is worth nothing to a peer that does not know the root above it. So where a new CA comes, its roots are published
//! first, beside those of the CA before it, which goes on issuing for [`WAIT`]. A sidecar hears of a root at once over discovery,
//! and within two minutes by the ConfigMap where it is of an earlier version; what is left of the ten minutes is for
//! connections to a controller that are made anew, and for a controller whose own watch hangs.
//!
//! From then on the new CA issues. The roots of the one before it stay in the bundle for as long as an SVID below them may live,
//! also where the new CA came in its place, as cert-manager renews a self-signed one.
//!
//! The time is this process's own: what counts is that a controller was there to tell. So after a restart it begins anew. All that a
//! restart must not lose is the key of the CA before, which is kept beside the new one ([`Previous`]).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use super::{Ca, CaError, CaPem, bundle_pem, rfc3339};
use crate::clock;

/// How long a root is published before something below it is issued.
pub const WAIT: Duration = Duration::from_secs(10 * 60);

/// The CA before the one that is wanted.
#[derive(Clone, PartialEq, Eq)]
pub enum Previous {
    /// It goes on issuing. Its roots are always named.
    Issuing(CaPem),
    /// It does not issue any more, and SVIDs below it may be alive.
    Trusted {
        /// PEM.
        roots: String,
        /// When the last of those SVIDs has ended.
        until: SystemTime,
    },
}

/// The time by both clocks: certificates go by one, waiting by the other.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Of the certificates.
    pub wall: SystemTime,
    /// Of this process.
    pub instant: Instant,
}

/// What is wanted, what was there before it, and what follows from both at a moment. Each change makes another one.
#[derive(Clone)]
pub struct Rotation {
    trust_domain: String,
    /// How long an SVID lives.
    ttl: Duration,
    wanted: Arc<Ca>,
    /// Since when this process knows that CA.
    wanted_since: SystemTime,
    previous: Option<Previous>,
    in_force: Arc<Ca>,
    /// Since when this process has published each root of the bundle.
    published: Vec<(CertificateDer<'static>, Instant)>,
    /// When it was made.
    since: Now,
}

impl Previous {
    /// Whether both are as far. Each controller has an end of its own, a moment apart; whichever is written stands.
    pub fn says_the_same(a: Option<&Self>, b: Option<&Self>) -> bool {
        match (a, b) {
            (Some(Self::Trusted { roots: a, .. }), Some(Self::Trusted { roots: b, .. })) => a == b,
            (a, b) => a == b,
        }
    }
}

impl Now {
    /// The clocks as they are.
    pub fn read() -> Self {
        Self {
            wall: clock::now(),
            instant: Instant::now(),
        }
    }
}

impl Rotation {
    /// As the Secret is when the process begins. A CA that has none before it issues at once. SVIDs live for `ttl`.
    ///
    /// # Errors
    /// When the CA cannot be used.
    pub fn begin(
        wanted: Ca,
        previous: Option<Previous>,
        trust_domain: &str,
        ttl: Duration,
        now: Now,
    ) -> Result<Self, CaError> {
        let wanted = Arc::new(wanted);
        let alone = Self {
            trust_domain: trust_domain.to_owned(),
            ttl,
            in_force: Arc::clone(&wanted),
            wanted,
            wanted_since: now.wall,
            previous: None,
            published: Vec::new(),
            since: now,
        };
        let both = Self {
            previous,
            ..alone.clone()
        };
        both.advance(now).or_else(|e| {
            tracing::warn!(error = %e, "what the Secret says of the CA before this one cannot be used");
            alone.advance(now)
        })
    }

    /// The CA that issues, with all roots that are trusted.
    pub fn ca(&self) -> &Arc<Ca> {
        &self.in_force
    }

    /// The CA that is wanted.
    pub fn wanted(&self) -> &CaPem {
        self.wanted.pem()
    }

    /// What has to be kept of the CA before.
    pub fn previous(&self) -> Option<&Previous> {
        self.previous.as_ref()
    }

    /// Whether the CA before goes on issuing.
    pub fn waits(&self) -> bool {
        matches!(self.previous, Some(Previous::Issuing(_)))
    }

    /// Another CA is wanted, or the same with other roots.
    ///
    /// # Errors
    /// When it cannot be used: then all stays as it is.
    pub fn want(&self, pem: CaPem, now: Now) -> Result<Self, CaError> {
        let wanted = Ca::from_pem(pem, &self.trust_domain, now.wall)?;
        let same_issuer = {
            let (old, new) = (self.wanted.pem(), wanted.pem());
            (&old.certificates, &old.key) == (&new.certificates, &new.key)
        };
        let previous = match &self.previous {
            previous if same_issuer => previous.clone(),
            previous => {
                // Another controller may not wait any more: then SVIDs of what was wanted until now are there as well.
                let (issuing, roots) = match previous {
                    Some(Previous::Issuing(before)) => (before, before.roots.as_deref()),
                    Some(Previous::Trusted { roots, .. }) => (self.wanted.pem(), Some(roots.as_str())),
                    None => (self.wanted.pem(), None),
                };
                let roots = Some(self.wanted.bundle_pem() + roots.unwrap_or_default());
                Some(Previous::Issuing(CaPem {
                    roots,
                    ..issuing.clone()
                }))
            }
        };
        Self {
            wanted: Arc::new(wanted),
            wanted_since: if same_issuer { self.wanted_since } else { now.wall },
            previous,
            ..self.clone()
        }
        .advance(now)
    }

    /// What another controller has written of the CA before, where it is further: that one does not wait any more, or its end stands, or
    /// this process began before anything was written. So all of them drop a root at the same time, and none loses a key. None: what is
    /// known here stands.
    ///
    /// # Errors
    /// When what was written cannot be used.
    pub fn adopt(&self, written: &Previous, now: Now) -> Result<Option<Self>, CaError> {
        // An end that an earlier change of CAs has left says nothing of this one.
        let is_of_this_change = |until: &SystemTime| *until > self.wanted_since + self.ttl + WAIT;
        let is_further = match (&self.previous, written) {
            (None, Previous::Issuing(_)) => true,
            (None, Previous::Trusted { until, .. }) => *until > now.wall,
            (Some(Previous::Issuing(_)), Previous::Issuing(_)) => false,
            (Some(Previous::Issuing(_)), Previous::Trusted { roots, until }) => {
                is_of_this_change(until) && *roots == bundle_pem(&self.others()?)
            }
            (Some(Previous::Trusted { until, .. }), Previous::Issuing(_)) => !is_of_this_change(until),
            (Some(Previous::Trusted { roots: known, until }), Previous::Trusted { roots, until: end }) => {
                roots == known && end != until
            }
        };
        if !is_further {
            return Ok(None);
        }
        let previous = Some(written.clone());
        Self {
            previous,
            ..self.clone()
        }
        .advance(now)
        .map(Some)
    }

    /// As time makes it.
    ///
    /// # Errors
    /// When the CA that would issue now cannot be used.
    pub fn advance(mut self, now: Now) -> Result<Self, CaError> {
        if let Some(Previous::Trusted { until, .. }) = &self.previous
            && *until <= now.wall
        {
            tracing::info!("the SVIDs of the CA before this one have ended: its roots are not trusted any more");
            self.previous = None;
        }
        let bundle = self.bundle()?;
        let with_all_roots = |pem: &CaPem| {
            let roots = Some(bundle_pem(&bundle));
            Ca::from_pem(CaPem { roots, ..pem.clone() }, &self.trust_domain, now.wall)
        };
        let mut issuing = None;
        if let Some(Previous::Issuing(before)) = &self.previous
            && !self.is_known(now)
        {
            match with_all_roots(before) {
                Ok(ca) => issuing = Some(ca),
                Err(e) => tracing::warn!(
                    error = %e,
                    "the CA before this one cannot go on issuing: the new one does at once. Sidecars that have not heard of its root \
                     refuse the SVIDs that are issued now, until they have"
                ),
            }
        }
        let over = issuing.is_none();
        let ca = match issuing {
            Some(ca) => ca,
            None => with_all_roots(self.wanted.pem())?,
        };
        self.published = bundle
            .iter()
            .map(|root| (root.clone(), self.published_since(root).unwrap_or(now.instant)))
            .collect();
        self.in_force = Arc::new(ca);
        self.since = now;
        if over {
            self.retire(now)?;
        }
        Ok(self)
    }

    /// How long nothing changes by itself, from `now` on; None: for ever.
    pub fn rest(&self, now: Now) -> Option<Duration> {
        match self.previous.as_ref()? {
            Previous::Trusted { until, .. } => Some(until.duration_since(now.wall).unwrap_or_default()),
            Previous::Issuing(_) => {
                let waits = self.published.iter().map(|(_, since)| *since + WAIT);
                let known = waits.filter(|end| *end > self.since.instant).min();
                let known = known.map(|end| end.saturating_duration_since(now.instant));
                let issuer = self.in_force.issuer_not_after();
                let issues = issuer.duration_since(now.wall).unwrap_or_default();
                Some(known.map_or(issues, |known| known.min(issues)))
            }
        }
    }

    /// In the same order whatever issues: all controllers write it into the same ConfigMaps.
    fn bundle(&self) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let mut bundle = self.wanted.bundle().to_vec();
        bundle.extend(self.others()?);
        Ok(bundle)
    }

    /// The roots that are trusted for the sake of the CA before.
    fn others(&self) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let before = match &self.previous {
            None => return Ok(Vec::new()),
            Some(Previous::Issuing(before)) => before.roots.as_deref().unwrap_or_default(),
            Some(Previous::Trusted { roots, .. }) => roots,
        };
        let mut others = super::certificates("previous-ca.crt", before)?;
        others.retain(|root| !self.wanted.bundle().contains(root));
        others.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        others.dedup();
        Ok(others)
    }

    fn published_since(&self, root: &CertificateDer<'_>) -> Option<Instant> {
        let found = self.published.iter().find(|(published, _)| published == root);
        found.map(|(_, since)| *since)
    }

    /// Whether what is wanted is trusted by who knows only the roots that were published long enough.
    fn is_known(&self, now: Now) -> bool {
        let settled = self.published.iter().filter(|(_, since)| *since + WAIT <= now.instant);
        let settled: Vec<_> = settled.map(|(root, _)| root.clone()).collect();
        let pem = CaPem {
            roots: Some(bundle_pem(&settled)),
            ..self.wanted.pem().clone()
        };
        // A bundle without roots would be made from the certificates.
        !settled.is_empty() && Ca::from_pem(pem, &self.trust_domain, now.wall).is_ok()
    }

    /// The CA before issues no more. Another controller may have a moment left, so its roots stay for that as well.
    fn retire(&mut self, now: Now) -> Result<(), CaError> {
        if !self.waits() {
            return Ok(());
        }
        let roots = self.others()?;
        let until = now.wall + self.ttl + WAIT;
        self.previous = (!roots.is_empty()).then(|| Previous::Trusted {
            roots: bundle_pem(&roots),
            until,
        });
        tracing::info!(
            others = roots.len(),
            until = rfc3339(until),
            "the new CA issues from now on; other roots than its own are trusted for a while"
        );
        Ok(())
    }
}
