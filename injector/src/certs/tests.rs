#![allow(clippy::unwrap_used)]

use std::time::Duration;

use time::OffsetDateTime;

use super::{Material, Plan, Profile, plan};

const HOUR: Duration = Duration::from_secs(3600);

fn profile() -> Profile {
    Profile {
        leaf_life: 30 * HOUR,
        ca_life: 300 * HOUR,
        ..Profile::of_service("outrigger-injector", "outrigger")
    }
}

fn start() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

/// What the Secret holds after that time, with kube-apiserver trusting the current CA or not yet.
fn after(current: &Material, hours: u32, trusted: bool) -> Option<Material> {
    match plan(Some(current), &profile(), start() + hours * HOUR, trusted).unwrap() {
        Plan::Keep => None,
        Plan::Write(next) => Some(*next),
    }
}

fn first() -> Material {
    match plan(None, &profile(), start(), false).unwrap() {
        Plan::Write(material) => *material,
        Plan::Keep => panic!("nothing was made"),
    }
}

#[test]
fn a_secret_is_read_as_it_was_written() {
    let material = first();
    let read = Material::from_secret(&material.to_secret()).unwrap();
    assert!(read == material);
    assert_eq!(material.expiry().unwrap().leaf, start() + 30 * HOUR);
    assert_eq!(material.expiry().unwrap().ca, start() + 300 * HOUR);
    assert!(after(&material, 0, false).is_none());
}

#[test]
fn what_does_not_fit_together_is_not_usable() {
    let (material, other) = (first().to_secret(), first().to_secret());
    for key in ["ca.crt", "ca.key", "tls.crt", "tls.key"] {
        let mut missing = material.clone();
        missing.remove(key);
        assert!(Material::from_secret(&missing).is_err(), "without {key}");
    }
    for key in ["ca.key", "tls.key"] {
        let mut mixed = material.clone();
        mixed.insert(key.to_owned(), other[key].clone());
        assert!(Material::from_secret(&mixed).is_err(), "with another {key}");
    }
}

#[test]
fn a_leaf_is_renewed_after_two_thirds_of_its_life() {
    let material = first();
    assert!(after(&material, 19, true).is_none());
    let renewed = after(&material, 21, true).unwrap();
    assert!(renewed.leaf != material.leaf);
    assert!(renewed.bundle == material.bundle);
    renewed.certified_key().unwrap();
    // Not before kube-apiserver trusts its CA, except when the old one is of no use any more.
    assert!(after(&material, 21, false).is_none());
    assert!(after(&material, 31, false).is_some());
}

#[test]
fn a_leaf_for_other_names_is_renewed() {
    let mut profile = profile();
    profile.names.push("127.0.0.1".to_owned());
    let Plan::Write(renewed) = plan(Some(&first()), &profile, start(), true).unwrap() else {
        panic!()
    };
    assert!(plan(Some(&renewed), &profile, start(), true).unwrap() == Plan::Keep);
}

#[test]
fn a_new_ca_is_trusted_before_it_signs() {
    let old = first();
    // Leaves were renewed many times until the CA is worn.
    let old = after(&old, 199, true).unwrap();
    let both = after(&old, 201, true).unwrap();
    assert_eq!(both.bundle.len(), 2);
    assert_eq!(both.bundle[1], old.bundle[0]);
    assert!(both.leaf == old.leaf, "a leaf that nobody trusts yet");
    assert!(after(&both, 202, false).is_none());
    let done = after(&both, 202, true).unwrap();
    assert!(done.leaf_fits(&profile()).unwrap());
    assert_eq!(done.bundle, both.bundle);
    // The old CA goes when it has expired, and the leaf by then is long a new one.
    let pruned = after(&done, 301, true).unwrap();
    assert_eq!(pruned.bundle, [both.bundle[0].clone()]);
}

#[test]
fn after_a_long_absence_everything_is_new() {
    let old = first();
    let new = after(&old, 1000, false).unwrap();
    assert_eq!(new.bundle.len(), 1);
    assert!(new.bundle[0] != old.bundle[0]);
    assert!(new.leaf_fits(&profile()).unwrap());
    assert!(Material::from_secret(&new.to_secret()).is_ok());
}
