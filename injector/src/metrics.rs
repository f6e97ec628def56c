//! What the injector counts, as Prometheus text.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use outrigger_gate::Gate;
use time::OffsetDateTime;

/// What became of a review.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reviewed {
    Patched,
    AlreadyInjected,
    OptedOut,
    NotSelected,
    LeftAlone,
    Refused,
    /// What came was no review.
    Malformed,
    /// The injector could not decide.
    Failed,
    /// There were too many, and most of them of the same address.
    Crowded,
}

/// One for the process.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    reviews: [AtomicU64; NAMES.len()],
    /// Unix times; 0 while there is none.
    leaf_end: AtomicI64,
    ca_end: AtomicI64,
    gate: OnceLock<Arc<Gate>>,
    secret_missing: AtomicBool,
}

/// In the order of [`Reviewed`].
const NAMES: [&str; 9] = [
    "patched",
    "already_injected",
    "opted_out",
    "not_selected",
    "left_alone",
    "refused",
    "malformed",
    "failed",
    "crowded",
];

impl Metrics {
    pub(crate) fn reviewed(&self, outcome: Reviewed) {
        self.reviews[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn expiry(&self, leaf: OffsetDateTime, ca: OffsetDateTime) {
        self.leaf_end.store(leaf.unix_timestamp(), Ordering::Relaxed);
        self.ca_end.store(ca.unix_timestamp(), Ordering::Relaxed);
    }

    /// Whether the Secret of the webhook's certificate is there.
    pub(crate) fn secret_is_there(&self, there: bool) {
        self.secret_missing.store(!there, Ordering::Relaxed);
    }

    /// Counts the webhook's connections.
    pub(crate) fn watch_gate(&self, gate: &Arc<Gate>) {
        // There is one webhook, which is served once.
        let _ = self.gate.set(Arc::clone(gate));
    }

    pub(crate) fn text(&self, now: OffsetDateTime) -> String {
        let mut text = String::from(
            "# HELP outrigger_admission_reviews_total Admission reviews, by what became of them.\n\
             # TYPE outrigger_admission_reviews_total counter\n",
        );
        for (name, count) in NAMES.iter().zip(&self.reviews) {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(text, "outrigger_admission_reviews_total{{outcome=\"{name}\"}} {count}");
        }
        let missing = u8::from(self.secret_missing.load(Ordering::Relaxed));
        let _ = writeln!(
            text,
            "# HELP outrigger_secret_missing 1 while the Secret of the webhook's certificate is not there.\n\
             # TYPE outrigger_secret_missing gauge\n\
             outrigger_secret_missing {missing}",
        );
        if let Some(gate) = self.gate.get() {
            let (open, displaced) = (gate.connections(), gate.displaced());
            let _ = writeln!(
                text,
                "# HELP outrigger_admission_connections Connections to the webhook.\n\
                 # TYPE outrigger_admission_connections gauge\n\
                 outrigger_admission_connections {open}\n\
                 # HELP outrigger_admission_connections_displaced_total Connections that were closed for others.\n\
                 # TYPE outrigger_admission_connections_displaced_total counter\n\
                 outrigger_admission_connections_displaced_total {displaced}",
            );
        }
        text.push_str(
            "# HELP outrigger_cert_expiry_seconds Seconds until a certificate of the webhook expires.\n\
             # TYPE outrigger_cert_expiry_seconds gauge\n",
        );
        for (kind, end) in [("leaf", &self.leaf_end), ("root", &self.ca_end)] {
            let end = end.load(Ordering::Relaxed);
            if end != 0 {
                let left = end - now.unix_timestamp();
                let _ = writeln!(text, "outrigger_cert_expiry_seconds{{kind=\"{kind}\"}} {left}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{Metrics, Reviewed};
    use time::{Duration, OffsetDateTime};

    #[test]
    fn text() {
        let metrics = Metrics::default();
        metrics.reviewed(Reviewed::Failed);
        let now = OffsetDateTime::UNIX_EPOCH + Duration::days(1);
        metrics.expiry(now + Duration::seconds(5), now - Duration::seconds(5));
        let text = metrics.text(now);
        assert!(
            text.contains("outrigger_admission_reviews_total{outcome=\"failed\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("outrigger_cert_expiry_seconds{kind=\"leaf\"} 5\n"),
            "{text}"
        );
        assert!(
            text.contains("outrigger_cert_expiry_seconds{kind=\"root\"} -5\n"),
            "{text}"
        );
    }
}
