use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_api::spiffe::SpiffeId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::time::Instant;

use super::rotation::{Now, Previous, Rotation, WAIT};
use super::tests::make_ca;
use super::{Ca, CaPem};

const DOMAIN: &str = "cluster.local";
const TTL: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

/// A process of the controller, and the Secret.
struct Scene {
    rotation: Rotation,
    secret: (CaPem, Option<Previous>),
    now: Now,
}

impl Scene {
    fn new(first: &CaPem) -> Self {
        let now = Now::read();
        Self {
            rotation: begin(first, None, now),
            secret: (first.clone(), None),
            now,
        }
    }

    fn want(&mut self, pem: &CaPem) {
        self.rotation = self.rotation.want(pem.clone(), self.now).unwrap();
        self.secret = (pem.clone(), self.rotation.previous().cloned());
    }

    fn pass(&mut self, time: Duration) {
        self.now.wall += time;
        self.now.instant += time;
        self.rotation = self.rotation.clone().advance(self.now).unwrap();
        self.secret.1 = self.rotation.previous().cloned();
    }

    /// Sees what another process has written.
    fn see(&mut self, written: &Self) {
        if let Some(previous) = &written.secret.1
            && let Some(next) = self.rotation.adopt(previous, self.now).unwrap()
        {
            self.rotation = next;
        }
        self.secret.1 = self.rotation.previous().cloned();
    }

    fn restart(&mut self) {
        self.rotation = begin(&self.secret.0, self.secret.1.clone(), self.now);
        self.secret.1 = self.rotation.previous().cloned();
    }

    fn issues_by(&self, pem: &CaPem) -> bool {
        let ca = self.rotation.ca().pem();
        (&ca.certificates, &ca.key) == (&pem.certificates, &pem.key)
    }

    fn roots(&self) -> usize {
        self.rotation.ca().bundle().len()
    }
}

fn begin(pem: &CaPem, previous: Option<Previous>, now: Now) -> Rotation {
    let wanted = Ca::from_pem(pem.clone(), DOMAIN, now.wall).unwrap();
    Rotation::begin(wanted, previous, DOMAIN, TTL, now).unwrap()
}

fn new_ca() -> CaPem {
    Ca::generate(DOMAIN).unwrap().pem().clone()
}

fn with_root(pem: &CaPem, other: &CaPem) -> CaPem {
    let both = [pem, other].map(|pem| pem.roots.clone().unwrap()).concat();
    CaPem {
        roots: Some(both),
        ..pem.clone()
    }
}

#[test]
fn the_first_ca_issues_at_once() {
    let first = new_ca();
    let scene = Scene::new(&first);
    assert!(scene.issues_by(&first) && !scene.rotation.waits());
    assert_eq!((scene.roots(), scene.rotation.rest(scene.now)), (1, None));
}

#[test]
fn a_new_ca_issues_when_its_root_was_published_for_ten_minutes() {
    let (old, new) = (new_ca(), new_ca());
    let mut scene = Scene::new(&old);
    scene.want(&new);
    assert_eq!(scene.rotation.rest(scene.now), Some(WAIT));
    for _ in 0..10 {
        assert!(scene.issues_by(&old) && scene.rotation.waits());
        assert_eq!(scene.roots(), 2, "both are published");
        scene.pass(MINUTE);
    }
    assert!(scene.issues_by(&new) && !scene.rotation.waits());
    // Whoever has an SVID below the old root is trusted until it has ended, and the old key is gone.
    assert!(matches!(scene.secret.1, Some(Previous::Trusted { .. })));
    assert_eq!((scene.roots(), scene.rotation.rest(scene.now)), (2, Some(TTL + WAIT)));
    scene.pass(TTL + WAIT - MINUTE);
    assert_eq!(scene.roots(), 2);
    scene.pass(MINUTE);
    assert!(scene.roots() == 1 && scene.secret.1.is_none());
}

#[test]
fn a_restart_waits_anew_and_loses_nothing() {
    let (old, new) = (new_ca(), new_ca());
    let mut scene = Scene::new(&old);
    scene.want(&new);
    scene.pass(9 * MINUTE);
    scene.restart();
    assert!(scene.issues_by(&old) && scene.roots() == 2);
    scene.pass(9 * MINUTE);
    assert!(scene.issues_by(&old));
    scene.pass(MINUTE);
    assert!(scene.issues_by(&new));
    scene.restart();
    assert!(scene.issues_by(&new) && scene.roots() == 2);
}

#[test]
fn controllers_that_began_at_different_times_end_together() {
    let (old, new) = (new_ca(), new_ca());
    let mut long = Scene::new(&old);
    let mut late = Scene::new(&old);
    late.now = long.now;
    long.want(&new);
    late.want(&new);
    let pass = |time: Duration, long: &mut Scene, late: &mut Scene| {
        long.pass(time);
        late.pass(time);
        late.see(long);
        assert!(long.rotation.ca().bundle() == late.rotation.ca().bundle());
        assert_eq!(
            long.rotation.ca().pem().certificates,
            late.rotation.ca().pem().certificates
        );
    };
    pass(9 * MINUTE, &mut long, &mut late);
    late.restart();
    pass(MINUTE, &mut long, &mut late);
    assert!(long.issues_by(&new) && long.rotation.previous() == late.rotation.previous());
    pass(TTL + WAIT, &mut long, &mut late);
    assert!(long.roots() == 1 && late.rotation.previous().is_none());
    // What is behind is not adopted, nor what leaves out a root that is needed here.
    let behind = Previous::Issuing(old.clone());
    assert!(
        long.rotation.adopt(&behind, long.now).unwrap().is_some(),
        "nothing is known here"
    );
    late.want(&new_ca());
    let others = Previous::Trusted {
        roots: old.roots.clone().unwrap(),
        until: late.now.wall + TTL,
    };
    for written in [behind, others] {
        assert!(late.rotation.adopt(&written, late.now).unwrap().is_none());
    }
}

#[test]
fn what_needs_no_new_root_does_not_wait() {
    let (root, root_pem, root_key) = make_ca(|_| {}, None);
    let under = |key: bool| {
        let (_, pem, own_key) = make_ca(|_| {}, Some(&root));
        CaPem {
            certificates: if key { pem } else { root_pem.clone() },
            key: if key { own_key } else { root_key.clone() },
            roots: Some(root_pem.clone()),
        }
    };
    let mut scene = Scene::new(&under(false));
    scene.pass(WAIT);
    for intermediate in [under(true), under(true)] {
        scene.want(&intermediate);
        assert!(scene.issues_by(&intermediate), "the root is known");
        assert!(scene.secret.1.is_none() && scene.roots() == 1);
    }
    // A root that was published by hand before.
    let new = new_ca();
    let (wanted, _) = scene.secret.clone();
    scene.want(&with_root(&wanted, &new));
    assert!(scene.issues_by(&wanted) && scene.roots() == 2);
    scene.pass(WAIT - MINUTE);
    scene.want(&with_root(&new, &wanted));
    assert!(scene.issues_by(&wanted), "one minute is left");
    assert_eq!(scene.rotation.rest(scene.now), Some(MINUTE));
    scene.pass(MINUTE);
    assert!(scene.issues_by(&new));
}

#[test]
fn a_ca_before_that_has_expired_or_cannot_be_read_does_not_stop_the_issuing() {
    let expires = SystemTime::now() + 5 * MINUTE;
    let (_, certificates, key) = make_ca(|p| p.not_after = expires.into(), None);
    let roots = Some(certificates.clone());
    let old = CaPem {
        certificates,
        key,
        roots,
    };
    let new = new_ca();
    let mut scene = Scene::new(&old);
    scene.want(&new);
    assert!(scene.issues_by(&old));
    let rest = scene.rotation.rest(scene.now).unwrap();
    assert!(rest <= 5 * MINUTE, "{rest:?}");
    scene.pass(rest);
    assert!(scene.issues_by(&new));

    let garbage = CaPem {
        key: "garbage".to_owned(),
        ..old.clone()
    };
    let no_roots = CaPem {
        roots: Some("garbage".to_owned()),
        ..old
    };
    for before in [garbage, no_roots] {
        let mut scene = Scene::new(&new);
        scene.secret.1 = Some(Previous::Issuing(before));
        scene.restart();
        assert!(scene.issues_by(&new) && !scene.rotation.waits());
    }
}

#[test]
fn a_third_one_waits_for_itself() {
    let (old, second, third) = (new_ca(), new_ca(), new_ca());
    let mut scene = Scene::new(&old);
    scene.want(&second);
    scene.pass(5 * MINUTE);
    scene.want(&third);
    // Another controller may have issued by the second one.
    assert!(scene.issues_by(&old) && scene.roots() == 3);
    scene.pass(5 * MINUTE);
    assert!(scene.issues_by(&old), "the third root has five more minutes to go");
    scene.pass(5 * MINUTE);
    assert!(scene.issues_by(&third));
    // And back again.
    scene.want(&old);
    assert!(scene.issues_by(&old), "its root was trusted all the time");
    assert_eq!(scene.roots(), 3);
}

#[test]
fn what_cannot_be_used_changes_nothing() {
    let old = new_ca();
    let scene = Scene::new(&old);
    let broken = CaPem {
        key: new_ca().key,
        ..old.clone()
    };
    assert!(scene.rotation.want(broken, scene.now).is_err());
}

/// Says whether an SVID is trusted by who knows `bundle`.
fn verifier(bundle: &[CertificateDer<'static>]) -> Arc<dyn ClientCertVerifier> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(bundle.iter().cloned());
    let provider = rustls::crypto::aws_lc_rs::default_provider().into();
    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
    builder.build().unwrap()
}

/// Two controllers and their Secret.
struct World {
    scenes: [Scene; 2],
    /// Every bundle that was published, and until when.
    bundles: Vec<(Vec<CertificateDer<'static>>, Instant)>,
    /// The last SVID of each CA, and when it was issued.
    svids: Vec<(Vec<CertificateDer<'static>>, String, Instant)>,
}

impl World {
    fn note(&mut self) {
        let id = SpiffeId::new(DOMAIN, "shop", "orders").unwrap();
        let Now { wall, instant } = self.scenes[0].now;
        for scene in &self.scenes {
            let ca = scene.rotation.ca();
            let issuer = &ca.pem().certificates;
            self.bundles
                .retain(|(bundle, until)| bundle != ca.bundle() && *until + WAIT >= instant);
            self.bundles.push((ca.bundle().to_vec(), instant));
            self.svids
                .retain(|(_, by, issued)| by != issuer && *issued + TTL > instant);
            let svid = ca.issue_at(&id, TTL, wall).unwrap();
            self.svids.push((svid.chain, issuer.clone(), instant));
        }
    }

    /// Of one Secret: whoever changes what it says writes it.
    fn each(&mut self, change: impl Fn(&mut Scene)) {
        let mut secret = self.scenes[0].secret.clone();
        for scene in &mut self.scenes {
            let before = scene.rotation.previous().cloned();
            scene.secret.1.clone_from(&secret.1);
            change(scene);
            let after = scene.rotation.previous().cloned();
            secret.0.clone_from(&scene.secret.0);
            if let Some(written) = &secret.1
                && let Some(next) = scene.rotation.adopt(written, scene.now).unwrap()
            {
                scene.rotation = next;
            }
            if before != after && !Previous::says_the_same(secret.1.as_ref(), after.as_ref()) {
                secret.1 = after;
            }
        }
        self.scenes.iter_mut().for_each(|scene| scene.secret = secret.clone());
    }

    fn check(&self, seed: u64) {
        let Now { wall, instant } = self.scenes[0].now;
        assert!(
            self.scenes[0].rotation.ca().bundle() == self.scenes[1].rotation.ca().bundle(),
            "seed {seed}: they write the same ConfigMaps"
        );
        let now = UnixTime::since_unix_epoch(wall.duration_since(SystemTime::UNIX_EPOCH).unwrap());
        for (bundle, until) in &self.bundles {
            let verifier = verifier(bundle);
            for (chain, _, issued) in &self.svids {
                let verified = verifier.verify_client_cert(&chain[0], &chain[1..], now);
                assert!(
                    verified.is_ok(),
                    "seed {seed}: issued {:?} ago, and a bundle of {:?} ago",
                    instant - *issued,
                    instant - *until
                );
            }
        }
    }
}

/// CAs that come at any time, and restarts: whoever hears of the roots with a delay of ten minutes trusts everybody whose SVID lives.
#[test]
fn whatever_happens_who_has_an_svid_is_trusted() {
    for seed in 0..10 {
        let mut random = SmallRng::seed_from_u64(seed);
        let first = new_ca();
        let mut world = World {
            scenes: [Scene::new(&first), Scene::new(&first)],
            bundles: Vec::new(),
            svids: Vec::new(),
        };
        world.scenes[1].now = world.scenes[0].now;
        for _ in 0..40 {
            let time = Duration::from_secs(random.random_range(0..900));
            // What was published until now was so until the last moment.
            for scene in &mut world.scenes {
                scene.now.wall += time;
                scene.now.instant += time;
            }
            world.note();
            world.each(|scene| scene.pass(Duration::ZERO));
            world.note();
            let (other, (wanted, _)) = (new_ca(), world.scenes[0].secret.clone());
            match random.random_range(0..8) {
                0 | 1 => world.each(|scene| scene.want(&other)),
                2 => world.each(|scene| scene.want(&with_root(&other, &wanted))),
                3 => world.each(|scene| scene.want(&with_root(&wanted, &other))),
                4 => world.scenes[0].restart(),
                5 => world.scenes[1].restart(),
                6 => world.each(Scene::restart),
                _ => {}
            }
            world.note();
            world.check(seed);
        }
    }
}
