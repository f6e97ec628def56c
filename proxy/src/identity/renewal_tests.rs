//! Issuing and renewing, in simulated time.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rcgen::CertificateSigningRequestParams;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::bundle::TrustBundle;
use super::issuer::{Issue, Issued};
use super::renewal::RELOAD;
use super::testing::TestCa;
use super::{Clock, Credentials, Identity, IdentityConfig};

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";
const HOUR: Duration = Duration::from_secs(3600);

/// What the issuer is to do, and what it did.
struct Script {
    ca: TestCa,
    id: &'static str,
    failing: Option<&'static str>,
    hanging: bool,
    /// How far the issuer's clock is ahead.
    ahead: Duration,
    behind: Duration,
    roots: Vec<rustls_pki_types::CertificateDer<'static>>,
    calls: Vec<Instant>,
}

struct Scripted(Arc<Mutex<Script>>, Clock);

impl Issue for Scripted {
    async fn issue(&mut self, csr: Vec<u8>, _bundle: &TrustBundle) -> Result<Issued, String> {
        let hanging = {
            let mut script = self.0.lock();
            script.calls.push(Instant::now());
            script.hanging
        };
        if hanging {
            std::future::pending::<()>().await;
        }
        let script = self.0.lock();
        if let Some(error) = script.failing {
            return Err(error.to_owned());
        }
        let csr = CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        let now = self.1.now() + script.ahead - script.behind;
        let leaf = script
            .ca
            .leaf(&[script.id], now - HOUR / 60, now + 24 * HOUR, &csr.public_key);
        Ok(Issued {
            chain: vec![leaf],
            roots: script.roots.clone(),
        })
    }
}

struct Bench {
    script: Arc<Mutex<Script>>,
    folder: TempDir,
    identity: Identity,
    clock: Clock,
}

impl Bench {
    fn new(prepare: impl FnOnce(&mut Script)) -> Self {
        let (start, wall) = (Instant::now(), SystemTime::now());
        let clock = Clock::new(move || wall + start.elapsed());
        let mut script = Script {
            ca: TestCa::new("root"),
            id: ORDERS,
            failing: None,
            hanging: false,
            ahead: Duration::ZERO,
            behind: Duration::ZERO,
            roots: Vec::new(),
            calls: Vec::new(),
        };
        prepare(&mut script);
        let folder = tempfile::tempdir().unwrap();
        let config = IdentityConfig {
            id: ORDERS.parse().unwrap(),
            issuer: "controller:14150".parse().unwrap(),
            issuer_id: "spiffe://cluster.local/ns/outrigger/sa/outrigger-controller"
                .parse()
                .unwrap(),
            token_file: folder.path().join("token"),
            trust_bundle_file: folder.path().join("ca.crt"),
        };
        fs::write(&config.trust_bundle_file, &script.ca.pem).unwrap();
        let script = Arc::new(Mutex::new(script));
        let issuer = Scripted(script.clone(), clock.clone());
        let identity = Identity::start_with(config, issuer, clock.clone(), SmallRng::seed_from_u64(1));
        Self {
            script,
            folder,
            identity,
            clock,
        }
    }

    fn calls(&self) -> usize {
        self.script.lock().calls.len()
    }

    fn write_bundle(&self, text: &str) {
        fs::write(self.folder.path().join("ca.crt"), text).unwrap();
    }

    async fn problem(&self) -> String {
        loop {
            if let Some(problem) = self.identity.problem() {
                return problem;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn ready(identity: &Identity) -> Arc<Credentials> {
    timeout(HOUR, identity.ready()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn renews_at_a_quarter_of_its_life() {
    let bench = Bench::new(|_| {});
    let first = ready(&bench.identity).await;
    assert_eq!(first.id.as_str(), ORDERS);
    assert_eq!(first.generation, 1);
    let mut changes = bench.identity.subscribe();
    changes.mark_unchanged();
    let mut fractions = Vec::new();
    for round in 2..7 {
        let before = Instant::now();
        changes.changed().await.unwrap();
        fractions.push(before.elapsed().as_secs_f64() / (24.0 * HOUR.as_secs_f64()));
        let credentials = changes.borrow_and_update().clone().unwrap();
        assert_eq!(credentials.generation, round);
        assert!(credentials.not_after > bench.clock.now() + 23 * HOUR);
    }
    assert!(fractions.iter().all(|f| (0.21..0.29).contains(f)), "{fractions:?}");
    let (least, most) = fractions
        .iter()
        .fold((1.0, 0.0), |(l, m), &f| (f64::min(l, f), f64::max(m, f)));
    assert!(most - least > 0.01, "no jitter: {fractions:?}");
    assert_eq!(bench.identity.problem(), None);
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_is_away_is_asked_again_and_the_svid_kept_while_it_is_valid() {
    let bench = Bench::new(|_| {});
    let first = ready(&bench.identity).await;
    bench.script.lock().failing = Some("controller: connection refused");
    sleep(10 * HOUR).await;
    let kept = bench.identity.current().unwrap();
    assert_eq!(kept.generation, first.generation);
    assert_eq!(bench.problem().await, "controller: connection refused");
    // About four hours, two tries a minute at the end of the backoff.
    let calls = bench.calls();
    assert!((200..1200).contains(&calls), "{calls} calls");
    sleep(15 * HOUR).await;
    assert!(bench.identity.current().is_none(), "an SVID that has ended is in use");
    bench.script.lock().failing = None;
    sleep(Duration::from_secs(31)).await;
    assert_eq!(bench.identity.current().unwrap().generation, 2);
    assert_eq!(bench.identity.problem(), None);
}

#[tokio::test(start_paused = true)]
async fn backs_off_and_recovers_soon_at_the_start() {
    let bench = Bench::new(|script| script.failing = Some("no"));
    sleep(Duration::from_secs(120)).await;
    let calls = bench.script.lock().calls.clone();
    let gaps: Vec<_> = calls.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] <= Duration::from_millis(300), "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= Duration::from_secs(31)), "{gaps:?}");
    assert!((6..20).contains(&calls.len()), "{gaps:?}");
    assert!(gaps.last().unwrap() >= &Duration::from_secs(10), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_does_not_answer_is_given_up() {
    let bench = Bench::new(|script| script.hanging = true);
    assert!(bench.problem().await.contains("no answer within 10s"));
    bench.script.lock().hanging = false;
    ready(&bench.identity).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_trust_bundle_is_a_new_generation_with_the_same_svid() {
    let bench = Bench::new(|_| {});
    let first = ready(&bench.identity).await;
    let old = bench.script.lock().ca.pem.clone();
    let new = TestCa::new("new");
    bench.write_bundle(&format!("{old}{}", new.pem));
    sleep(RELOAD + Duration::from_secs(1)).await;
    let second = bench.identity.current().unwrap();
    assert_eq!(
        (second.generation, second.not_after),
        (first.generation + 1, first.not_after)
    );
    assert_eq!(second.roots_not_after.len(), 2);
    assert_eq!(bench.calls(), 1);
    // A broken file changes nothing, and is told.
    bench.write_bundle("rubbish");
    sleep(RELOAD + Duration::from_secs(1)).await;
    assert_eq!(bench.identity.current().unwrap().generation, second.generation);
    assert!(bench.problem().await.contains("ca.crt has no usable root"));
    // The old root goes.
    bench.write_bundle(&new.pem);
    sleep(RELOAD + Duration::from_secs(1)).await;
    let third = bench.identity.current().unwrap();
    assert_eq!(
        (third.generation, third.roots_not_after.len()),
        (second.generation + 1, 1)
    );
    assert_eq!(bench.identity.problem(), None);
}

#[tokio::test(start_paused = true)]
async fn roots_that_come_with_an_svid_are_trusted_until_the_file_has_them() {
    let new = TestCa::new("new");
    let root = new.certificate.clone();
    let bench = Bench::new(|script| script.roots = vec![script.ca.certificate.clone(), root]);
    assert_eq!(ready(&bench.identity).await.roots_not_after.len(), 2);
    let old = bench.script.lock().ca.pem.clone();
    bench.write_bundle(&format!("{old}{}", new.pem));
    sleep(RELOAD + Duration::from_secs(1)).await;
    assert_eq!(
        bench.identity.current().unwrap().generation,
        1,
        "the same roots are no news"
    );
    // The file had it: now it alone decides.
    bench.write_bundle(&old);
    sleep(RELOAD + Duration::from_secs(1)).await;
    assert_eq!(bench.identity.current().unwrap().roots_not_after.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn waits_for_a_bundle_that_comes_late() {
    let bench = Bench::new(|_| {});
    let pem = bench.script.lock().ca.pem.clone();
    fs::remove_file(bench.folder.path().join("ca.crt")).unwrap();
    let problem = bench.problem().await;
    assert!(problem.contains("labelled for injection"), "{problem}");
    assert_eq!(bench.calls(), 0);
    bench.write_bundle(&pem);
    sleep(Duration::from_secs(2)).await;
    assert!(bench.identity.current().is_some());
}

#[tokio::test(start_paused = true)]
async fn clocks_that_differ_are_both_shown() {
    for (ahead, behind) in [(48 * HOUR, Duration::ZERO), (Duration::ZERO, 48 * HOUR)] {
        let bench = Bench::new(|script| (script.ahead, script.behind) = (ahead, behind));
        let problem = bench.problem().await;
        assert!(
            problem.contains("is valid from") && problem.contains("the clock here says"),
            "{problem}"
        );
        assert!(bench.identity.current().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_svid_is_not_taken() {
    let bench = Bench::new(|script| script.id = "spiffe://cluster.local/ns/shop/sa/other");
    let problem = bench.problem().await;
    assert!(problem.contains("sa/other") && problem.contains(ORDERS), "{problem}");
    assert!(bench.identity.current().is_none());
}
