//! Issuing and renewing, in simulated time.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rcgen::CertificateSigningRequestParams;
use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::bundle::TrustBundle;
use super::issuer::{Issue, Issued};
use super::renewal::LOOK;
use super::testing::TestCa;
use super::{Clock, Credentials, FirstRoots, Identity, IdentityConfig, MeshProtocol, Trust};

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
    roots: Vec<CertificateDer<'static>>,
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
            roots: FirstRoots::File(folder.path().join("ca.crt")),
        };
        fs::write(folder.path().join("ca.crt"), &script.ca.pem).unwrap();
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
        let there_is_one = async {
            loop {
                if let Some(problem) = self.identity.problem() {
                    return problem;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(HOUR, there_is_one).await.expect("all is well")
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

/// A peer with an SVID of this CA, which itself would talk to anybody below either root.
fn peer(ca: &TestCa, other: &CertificateDer<'static>) -> Credentials {
    let both = TrustBundle::from_der([ca.certificate.clone(), other.clone()]).unwrap();
    let trust = Arc::new(Trust::new(&both, "cluster.local", 1).unwrap());
    Credentials::new(&ca.svid(ORDERS), &trust, 1, &Clock::system()).unwrap()
}

/// Whether the sidecar lets it in, and calls it.
async fn talks_to(identity: &Identity, peer: &Credentials) -> bool {
    let ours = identity.current().unwrap();
    let id = ORDERS.parse().unwrap();
    let mut talks = Vec::new();
    for (client, server) in [(peer, &*ours), (&*ours, peer)] {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let connecting = client.connect(near, [10, 244, 0, 7].into(), &id, MeshProtocol::Http1);
        let (connected, accepted) = tokio::join!(connecting, server.accept(far));
        talks.push(connected.is_ok() && accepted.is_ok());
    }
    assert_eq!(talks[0], talks[1], "in one direction only");
    talks[0]
}

#[tokio::test(start_paused = true)]
async fn other_roots_are_a_new_generation_with_the_same_svid() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let roots = [&old, &new].map(|ca| ca.certificate.clone());
    let peers = [peer(&old, &roots[1]), peer(&new, &roots[0])];
    let bench = Bench::new(|script| script.ca = old);
    let first = ready(&bench.identity).await;
    bench.identity.trust(roots.to_vec());
    sleep(LOOK + Duration::from_secs(1)).await;
    let second = bench.identity.current().unwrap();
    assert_eq!(
        (second.generation, second.not_after),
        (first.generation + 1, first.not_after)
    );
    assert_eq!(second.trust.not_after.len(), 2);
    assert_eq!(bench.calls(), 1);
    for no_news in [
        vec![],
        roots.iter().rev().cloned().collect(),
        vec![b"rubbish".to_vec().into()],
    ] {
        bench.identity.trust(no_news);
        sleep(LOOK + Duration::from_secs(1)).await;
        assert_eq!(bench.identity.current().unwrap().generation, second.generation);
    }
    // The old root goes.
    bench.identity.trust(vec![roots[1].clone()]);
    sleep(LOOK + Duration::from_secs(1)).await;
    let third = bench.identity.current().unwrap();
    assert_eq!(third.generation, second.generation + 1);
    assert!(!talks_to(&bench.identity, &peers[0]).await);
    assert!(talks_to(&bench.identity, &peers[1]).await);
    assert_eq!(bench.identity.problem(), None);
}

/// What is verified by the roots is not verified again for a new SVID, and is without one.
#[tokio::test(start_paused = true)]
async fn whom_it_trusts_is_a_state_of_its_own() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let root_of_new = new.certificate.clone();
    let bench = Bench::new(|script| script.ca = old);
    let first = ready(&bench.identity).await;
    sleep(8 * HOUR).await;
    let second = bench.identity.current().unwrap();
    assert!(second.generation > first.generation);
    assert!(Arc::ptr_eq(&first.trust, &second.trust));
    assert!(Arc::ptr_eq(&first.trust, &bench.identity.trusted().unwrap()));

    bench.script.lock().failing = Some("the controller is away");
    sleep(48 * HOUR).await;
    assert!(bench.identity.current().is_none());
    assert!(Arc::ptr_eq(&first.trust, &bench.identity.trusted().unwrap()));
    bench.identity.trust(vec![root_of_new]);
    sleep(LOOK + Duration::from_secs(1)).await;
    assert!(bench.identity.current().is_none());
    assert_eq!(bench.identity.trusted().unwrap().generation, first.trust.generation + 1);
}

#[tokio::test(start_paused = true)]
async fn a_forged_root_in_the_file_lets_nobody_in_once_the_controller_has_spoken() {
    let (right, forged) = (TestCa::new("root"), TestCa::new("root"));
    let right_root = right.certificate.clone();
    let (good, evil) = (peer(&right, &right_root), peer(&forged, &right_root));
    let both = format!("{}{}", right.pem, forged.pem);
    let bench = Bench::new(|script| (script.ca, script.roots) = (right, vec![right_root]));
    // Also one that was there before the first SVID.
    bench.write_bundle(&both);
    ready(&bench.identity).await;
    for file in [&both, &forged.pem, ""] {
        bench.write_bundle(file);
        sleep(LOOK + Duration::from_secs(1)).await;
        assert!(!talks_to(&bench.identity, &evil).await, "{file}");
        assert!(talks_to(&bench.identity, &good).await, "{file}");
        assert_eq!(bench.identity.problem(), None);
    }
    assert_eq!(bench.identity.current().unwrap().generation, 1);
    // Nor with the next SVID.
    sleep(8 * HOUR).await;
    assert_eq!(bench.identity.current().unwrap().generation, 2);
    assert!(!talks_to(&bench.identity, &evil).await);
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_a_usable_root_is_no_answer() {
    let bench = Bench::new(|script| script.roots = vec![b"rubbish".to_vec().into()]);
    assert!(bench.problem().await.contains("no usable root"));
    assert!(bench.identity.current().is_none());
    let calls = bench.calls();
    assert!(calls < 3, "{calls} calls without a pause");
    let root = bench.script.lock().ca.certificate.clone();
    bench.script.lock().roots = vec![root];
    ready(&bench.identity).await;
}

#[tokio::test(start_paused = true)]
async fn waits_for_a_bundle_that_comes_late() {
    let bench = Bench::new(|_| {});
    let pem = bench.script.lock().ca.pem.clone();
    fs::remove_file(bench.folder.path().join("ca.crt")).unwrap();
    let problem = bench.problem().await;
    assert!(problem.contains("labelled for injection"), "{problem}");
    assert_eq!(bench.calls(), 0);
    bench.write_bundle("rubbish");
    sleep(Duration::from_secs(2)).await;
    let problem = bench.problem().await;
    assert!(problem.contains("ca.crt has no usable root"), "{problem}");
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
