//! Keys of the issuers of tokens, and CA certificates: which ones the policies want, and what came of fetching them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Dep, Store, Touched};
use crate::objects::keys::KeySource;
use crate::room::{Room, Taken};

/// What is known of the keys of one source.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Keys {
    /// The last that came.
    pub(crate) fetched: Option<Arc<KeptKeys>>,
    /// Why there is nothing newer.
    pub(crate) problem: Option<KeyProblem>,
}

/// Keys that came, and the memory that they take.
#[derive(Debug)]
pub(crate) struct KeptKeys {
    /// The usable ones as a JWK Set; certificates as `jwks::certificates` writes them.
    jwks: String,
    taken: Taken,
}

impl KeptKeys {
    /// Charges them, in the place of `before`.
    ///
    /// # Errors
    /// When there is no room, in words for a status.
    pub(crate) fn new(jwks: String, room: &Room, namespace: &Arc<str>, before: Option<&Self>) -> Result<Self, String> {
        let instead = before.map_or(0, |before| before.taken.bytes());
        let taken = room.instead_of(instead).payer(namespace).take(jwks.len());
        let taken = taken.map_err(|_| {
            "there is no room for them: the namespace takes as much of the controller's memory as it may (fewer or smaller sets of \
             keys and routes, or more memory for the controller, controller.resources)"
                .to_owned()
        })?;
        Ok(Self { jwks, taken })
    }
}

impl PartialEq for KeptKeys {
    fn eq(&self, other: &Self) -> bool {
        self.jwks == other.jwks
    }
}

impl Keys {
    /// The usable ones as a JWK Set: the last that came. Certificates as `jwks::certificates` writes them.
    pub(crate) fn jwks(&self) -> Option<&str> {
        self.fetched.as_ref().map(|kept| &*kept.jwks)
    }
}

/// Why keys cannot be had.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeyProblem {
    pub(crate) since: SystemTime,
    /// In words for a status.
    pub(crate) why: String,
}

/// Sources, by how many times policies name each.
#[derive(Clone, Default)]
pub(super) struct Wanted(BTreeMap<KeySource, (usize, Keys)>);

impl Wanted {
    /// Whether the sources are others now.
    pub(super) fn replace(
        &mut self,
        old: impl Iterator<Item = KeySource>,
        new: impl Iterator<Item = KeySource>,
    ) -> bool {
        let mut changed = false;
        // First what comes: what is in both is not forgotten.
        for source in new {
            if !self.0.contains_key(&source) {
                let known = self.known_at(&source);
                self.0.insert(source.clone(), (0, known));
            }
            let (named, _) = self.0.entry(source).or_default();
            *named += 1;
            changed |= *named == 1;
        }
        for source in old {
            if let Some((named, _)) = self.0.get_mut(&source) {
                *named -= 1;
                if *named == 0 {
                    self.0.remove(&source);
                    changed = true;
                }
            }
        }
        changed
    }

    /// The keys of another source of the same place, which differs in how it is fetched.
    fn known_at(&self, source: &KeySource) -> Keys {
        let first = KeySource {
            cache: Duration::ZERO,
            timeout: Duration::ZERO,
            ..source.clone()
        };
        let there = self.0.range(first..).map(|(other, (_, keys))| (other, keys));
        let mut there =
            there.take_while(|(other, _)| (&other.namespace, &other.place) == (&source.namespace, &source.place));
        Keys {
            fetched: there.find_map(|(_, keys)| keys.fetched.clone()),
            problem: None,
        }
    }
}

impl Store {
    /// What is known of the keys there. None: no policy wants them.
    pub(crate) fn keys_at(&self, source: &KeySource) -> Option<&Keys> {
        self.keys.0.get(source).map(|(_, keys)| keys)
    }

    pub(crate) fn key_sources(&self) -> BTreeSet<KeySource> {
        self.keys.0.keys().cloned().collect()
    }

    /// Whether the keys of all sources that are wanted are there.
    pub(crate) fn has_all_keys(&self) -> bool {
        self.keys.0.values().all(|(_, keys)| keys.fetched.is_some())
    }

    /// What came of fetching. Where nothing came, or nothing that there is room for, what came last stays.
    pub(crate) fn set_keys(
        &mut self,
        source: &KeySource,
        result: Result<String, String>,
        room: &Room,
        now: SystemTime,
        touched: &mut Touched,
    ) {
        let Some((_, keys)) = self.keys.0.get_mut(source) else {
            return; // nobody wants them any more
        };
        let before = keys.clone();
        let kept = result.and_then(|jwks| match keys.jwks() == Some(&*jwks) {
            true => Ok(None),
            false => KeptKeys::new(jwks, room, &source.namespace, keys.fetched.as_deref()).map(Some),
        });
        match kept {
            Ok(new) => {
                if let Some(new) = new {
                    keys.fetched = Some(Arc::new(new));
                    touched.deps.insert(Dep::Keys(source.clone()));
                }
                keys.problem = None;
            }
            Err(why) => {
                let since = keys.problem.as_ref().map_or(now, |problem| problem.since);
                keys.problem = Some(KeyProblem { since, why });
            }
        }
        touched.statuses |= *keys != before;
    }

    /// There is nothing to be had any more, and what came last does not hold.
    pub(crate) fn forget_keys(&mut self, source: &KeySource, why: String, now: SystemTime, touched: &mut Touched) {
        let Some((_, keys)) = self.keys.0.get_mut(source) else {
            return; // nobody wants them any more
        };
        let before = keys.clone();
        let since = keys.problem.as_ref().map_or(now, |problem| problem.since);
        *keys = Keys {
            fetched: None,
            problem: Some(KeyProblem { since, why }),
        };
        if *keys != before {
            touched.deps.insert(Dep::Keys(source.clone()));
            touched.statuses = true;
        }
    }
}
