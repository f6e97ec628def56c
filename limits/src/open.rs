//! Connections that carry bytes: how many are open, of all callers and of one, and how many come.
//!
//! All that are open are counted, whether a policy limits them or not: one that comes later knows of them. What is kept is bounded by the
//! connections themselves: an entry for each port and caller that has one, a caller as a hash.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use outrigger_api::limits as proto;
use outrigger_api::policy::limits::CONNECTIONS;
use serde::{Deserialize, Serialize};

use crate::bucket::{Bucket, Rate};

/// What a policy says of them.
#[derive(Clone, Debug)]
pub(crate) struct Cap {
    /// "namespace/name".
    name: Arc<str>,
    shadow: bool,
    /// `None`: all.
    ports: Option<Box<[u16]>>,
    max: Option<u32>,
    per_identity: Option<u32>,
    new: Option<Rate>,
}

/// A policy, and which of its numbers.
pub(crate) type By = (Arc<str>, &'static str);

/// All that are open.
#[derive(Debug, Default)]
pub(crate) struct Open {
    all: HashMap<Key, u32>,
    /// In the order of the names of their policies.
    counts: Vec<Count>,
}

/// A port, and a caller as a hash.
pub(crate) type Key = (u16, u64);

/// What a policy has to know.
#[derive(Debug)]
struct Count {
    cap: Cap,
    open: u32,
    of_callers: HashMap<u64, u32>,
    bucket: Bucket,
}

/// What a policy says of connections, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionsView {
    /// Open ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Of one identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_identity: Option<u32>,
    /// In a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_per_second: Option<u64>,
    /// Those that are open.
    pub open: u32,
}

impl Cap {
    /// `None`: a number is out of its range, or there is none.
    pub(crate) fn new(policy: &proto::Policy) -> Option<Self> {
        // 0: it says nothing.
        let number = |number: u32| match number {
            0 => Some(None),
            number => CONNECTIONS.contains(&number).then_some(Some(number)),
        };
        let message = policy.connections.as_ref()?;
        let new = match number(message.new_per_second)? {
            Some(requests) => {
                let rate = proto::Rate {
                    requests,
                    interval_ms: 1000,
                    burst: requests,
                };
                Some(Rate::new(&rate, 1)?)
            }
            None => None,
        };
        let cap = Self {
            name: policy.name.as_str().into(),
            shadow: policy.shadow,
            ports: policy.ports.as_ref().map(|ports| ports.tcp().collect()),
            max: number(message.max)?,
            per_identity: number(message.per_identity)?,
            new,
        };
        (cap.max.is_some() || cap.per_identity.is_some() || cap.new.is_some()).then_some(cap)
    }

    fn selects(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }
}

impl Count {
    fn add(&mut self, caller: u64, open: u32) {
        self.open += open;
        *self.of_callers.entry(caller).or_default() += open;
    }

    /// Which number refuses one more.
    fn refuses(&self, caller: u64, now: u64) -> Option<&'static str> {
        let cap = &self.cap;
        let of_caller = || self.of_callers.get(&caller).copied().unwrap_or_default();
        if cap.max.is_some_and(|max| self.open >= max) {
            Some("max")
        } else if cap.per_identity.is_some_and(|max| of_caller() >= max) {
            Some("perIdentity")
        } else if cap.new.is_some_and(|rate| self.bucket.wait(&rate, 1, now) > 0) {
            Some("newPerSecond")
        } else {
            None
        }
    }
}

impl Open {
    /// Puts other policies in the place of those before. One of the same name keeps what it has counted of new ones.
    pub(crate) fn follow(&mut self, message: &proto::Limits, now: u64) {
        let mut caps: Vec<Cap> = message.policies.iter().filter_map(Cap::new).collect();
        caps.sort_by(|a, b| a.name.cmp(&b.name));
        let counts = caps.into_iter().map(|cap| {
            let mut count = Count {
                bucket: self.bucket_of(&cap, now),
                cap,
                open: 0,
                of_callers: HashMap::new(),
            };
            for (&(port, caller), &open) in &self.all {
                if count.cap.selects(port) {
                    count.add(caller, open);
                }
            }
            count
        });
        self.counts = counts.collect();
    }

    fn bucket_of(&self, cap: &Cap, now: u64) -> Bucket {
        let old = self.counts.iter().find(|count| count.cap.name == cap.name);
        let old = old.and_then(|count| Some((count.bucket, count.cap.new?)));
        match (old, cap.new) {
            (Some((bucket, old)), Some(new)) => bucket.at_rate(&old, &new, now),
            _ => Bucket::default(),
        }
    }

    /// One more, if all policies in force admit it: these, and the shadows that would refuse it. `Err`: the first that refuses it.
    pub(crate) fn enter(&mut self, (port, caller): Key, now: u64) -> Result<(Vec<By>, Vec<By>), By> {
        let (mut enforced, mut shadows) = (Vec::new(), Vec::new());
        for count in self.counts.iter().filter(|count| count.cap.selects(port)) {
            let name = || Arc::clone(&count.cap.name);
            match (count.cap.shadow, count.refuses(caller, now)) {
                (false, Some(number)) => return Err((name(), number)),
                (false, None) => enforced.push((name(), "")),
                (true, Some(number)) => shadows.push((name(), number)),
                (true, None) => {}
            }
        }
        *self.all.entry((port, caller)).or_default() += 1;
        for count in self.counts.iter_mut().filter(|count| count.cap.selects(port)) {
            count.add(caller, 1);
            let is_refused = shadows.iter().any(|(name, _)| *name == count.cap.name);
            if let Some(rate) = count.cap.new.filter(|_| !is_refused) {
                count.bucket.take(&rate, 1, now);
            }
        }
        Ok((enforced, shadows))
    }

    /// One that has entered is closed.
    pub(crate) fn leave(&mut self, key: Key) {
        less(&mut self.all, key);
        for count in self.counts.iter_mut().filter(|count| count.cap.selects(key.0)) {
            count.open -= 1;
            less(&mut count.of_callers, key.1);
        }
    }

    /// Of a policy. `None`: it limits none.
    pub(crate) fn view(&self, policy: &str) -> Option<ConnectionsView> {
        let count = self.counts.iter().find(|count| &*count.cap.name == policy)?;
        Some(ConnectionsView {
            max: count.cap.max,
            per_identity: count.cap.per_identity,
            new_per_second: count.cap.new.map(|rate| rate.requests),
            open: count.open,
        })
    }
}

fn less<K: Hash + Eq>(counts: &mut HashMap<K, u32>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}
