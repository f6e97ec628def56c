//! Whose word counts, and what the next process of a container finds.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::sync::watch;

use super::FirstRoots;
use super::roots::Roots;
use super::testing::TestCa;

/// A pod: what it was made with, and what it keeps.
struct Pod {
    given: TestCa,
    folder: TempDir,
    told: watch::Sender<Vec<CertificateDer<'static>>>,
}

impl Pod {
    fn new() -> Self {
        Self {
            given: TestCa::new("given"),
            folder: tempfile::tempdir().unwrap(),
            told: watch::Sender::default(),
        }
    }

    fn kept(&self) -> PathBuf {
        self.folder.path().join("roots.der")
    }

    /// A process of the container, which has looked once.
    fn start(&self) -> Roots {
        let first = FirstRoots::Given {
            roots: vec![self.given.certificate.clone()],
            kept: self.kept(),
        };
        let mut roots = Roots::new(first, self.told.subscribe());
        assert_eq!(roots.look(), Ok(true));
        roots
    }
}

fn trusted(roots: &Roots) -> Vec<CertificateDer<'static>> {
    roots.trusted().unwrap().certificates().cloned().collect()
}

fn of(cas: &[&TestCa]) -> Vec<CertificateDer<'static>> {
    cas.iter().map(|ca| ca.certificate.clone()).collect()
}

#[test]
fn the_controllers_word_replaces_what_the_pod_was_made_with_and_outlives_the_process() {
    let pod = Pod::new();
    let (second, third) = (TestCa::new("second"), TestCa::new("third"));
    let mut roots = pod.start();
    assert_eq!(trusted(&roots), of(&[&pod.given]));
    // The same again is no news, and is kept all the same: the pod may be older than a process will ever be.
    assert_eq!(roots.learn(of(&[&pod.given])), Ok(false));
    assert!(pod.kept().exists());
    // A pod that lives through two rotations, with a new process in each.
    for steps in [
        [of(&[&pod.given, &second]), of(&[&second])],
        [of(&[&second, &third]), of(&[&third])],
    ] {
        for word in steps {
            assert_eq!(roots.learn(word.clone()), Ok(true));
            assert_eq!(trusted(&roots), word, "not that word alone");
            assert_eq!(roots.learn(word.iter().rev().cloned().collect()), Ok(false));
        }
        let before = trusted(&roots);
        roots = pod.start();
        assert_eq!(trusted(&roots), before, "after a restart");
        assert_eq!(roots.look(), Ok(false));
    }
    // Back to the first one, as when a Secret is restored from a backup.
    assert_eq!(roots.learn(of(&[&pod.given])), Ok(true));
    assert_eq!(trusted(&pod.start()), of(&[&pod.given]));
}

#[test]
fn a_word_on_the_discovery_stream_counts_like_one_with_an_svid() {
    let pod = Pod::new();
    let other = TestCa::new("other");
    let mut roots = pod.start();
    pod.told.send_replace(of(&[&other]));
    assert_eq!(roots.look(), Ok(true));
    assert_eq!(trusted(&roots), of(&[&other]));
    assert_eq!(roots.look(), Ok(false));
    assert_eq!(trusted(&pod.start()), of(&[&other]));
}

#[test]
fn a_controller_that_says_nothing_usable_changes_nothing() {
    let pod = Pod::new();
    let mut roots = pod.start();
    assert_eq!(roots.learn(Vec::new()), Ok(false));
    let rubbish = roots.learn(vec![b"rubbish".to_vec().into()]);
    assert!(rubbish.unwrap_err().contains("no usable root"));
    assert_eq!(trusted(&roots), of(&[&pod.given]));
    assert!(!pod.kept().exists());
}

#[test]
fn what_is_kept_and_cannot_be_used_is_as_if_it_was_not_there() {
    let pod = Pod::new();
    let other = TestCa::new("other");
    let der = other.certificate.to_vec();
    let with = |more: &[u8]| [&der[..], more].concat();
    for broken in [
        vec![],
        b"rubbish".to_vec(),
        der[..der.len() - 1].to_vec(),
        with(b"rubbish"),
        with(&der[..10]),
        other.pem.clone().into_bytes(),
        der.repeat(200),
        vec![0x30; 100_000],
    ] {
        fs::write(pod.kept(), &broken).unwrap();
        let mut roots = pod.start();
        assert_eq!(trusted(&roots), of(&[&pod.given]), "{} bytes", broken.len());
        roots.learn(of(&[&other])).unwrap();
        assert_eq!(trusted(&pod.start()), of(&[&other]), "it is not mended");
    }
    // What cannot be kept is trusted all the same.
    fs::remove_file(pod.kept()).unwrap();
    fs::create_dir(pod.kept()).unwrap();
    let mut roots = pod.start();
    assert_eq!(roots.learn(of(&[&other])), Ok(true));
    assert_eq!(trusted(&roots), of(&[&other]));
    // As soon as it can be, it is kept.
    fs::remove_dir(pod.kept()).unwrap();
    assert_eq!(roots.learn(of(&[&other])), Ok(false));
    assert_eq!(trusted(&pod.start()), of(&[&other]));
}

#[test]
fn a_file_is_believed_until_the_controller_has_spoken() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.crt");
    let (first, second, forged) = (TestCa::new("first"), TestCa::new("second"), TestCa::new("forged"));
    let told = watch::Sender::default();
    let mut roots = Roots::new(FirstRoots::File(file.clone()), told.subscribe());
    assert!(roots.look().unwrap_err().contains("cannot be read"));
    assert!(roots.trusted().is_none());
    for (pem, expected) in [(&first.pem, &first), (&second.pem, &second)] {
        fs::write(&file, pem).unwrap();
        assert_eq!(roots.look(), Ok(true));
        assert_eq!(trusted(&roots), of(&[expected]));
    }
    assert_eq!(roots.learn(of(&[&first])), Ok(true));
    fs::write(&file, format!("{}{}", first.pem, forged.pem)).unwrap();
    assert_eq!(roots.look(), Ok(false));
    assert_eq!(trusted(&roots), of(&[&first]));
}
