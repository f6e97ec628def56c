//! Which sidecars are told of a Service, or who may call them, and what they understand.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_api::discovery::Feature;

use super::watches::Watches;
use crate::access::{Access, PodKey, Told as Policies};
use crate::discovery::Known;
use crate::objects::{ObjectName, Pod};
use crate::split::Routes;
use crate::topic::{Inbox, Topic};
use crate::topology::TargetViews;

type Key = (SocketAddr, Arc<str>);

/// All sidecars that this controller tells of anything.
pub(crate) struct Callers<'a> {
    sessions: &'a Watches<Key, Routes>,
    /// Of the version before the session, which understand nothing beyond it.
    streams: &'a Watches<Key, TargetViews>,
    accesses: &'a Watches<PodKey, Access>,
    workloads: &'a Watches<ObjectName, Known>,
    /// What they are told of each Service. Made once: there are as many policies to ask for as tenants like.
    told: OnceCell<BTreeMap<ObjectName, Vec<Told<'a>>>>,
    /// How many sessions say that they are the pod, rightly or not.
    sessions_of: OnceCell<HashMap<&'a ObjectName, usize>>,
}

/// What callers of one namespace are told of one address.
struct Told<'a> {
    port: u16,
    callers: &'a str,
    to: To<'a>,
}

enum To<'a> {
    Sessions(&'a Topic<Routes>),
    Streams(&'a Topic<TargetViews>),
}

impl To<'_> {
    fn sessions(&self) -> Vec<Arc<Inbox>> {
        match self {
            Self::Sessions(topic) => topic.readers(),
            Self::Streams(_) => Vec::new(),
        }
    }

    fn streams(&self) -> usize {
        match self {
            Self::Sessions(_) => 0,
            Self::Streams(topic) => topic.watchers(),
        }
    }
}

/// Of which Services.
pub(crate) enum Of<'a> {
    All,
    Namespace(&'a str),
    These(BTreeSet<&'a ObjectName>),
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) all: usize,
    /// Those that do not understand one of the features.
    pub(crate) lacking: usize,
}

/// What the sidecars of some pods are told of who may call them, by this controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Enforcers {
    /// Those that are told anything.
    pub(crate) all: usize,
    /// Those that do not understand it.
    pub(crate) lacking: usize,
    /// Those that understand it, and verify no tokens.
    pub(crate) without_tokens: usize,
    /// Those that are told less than all, because it is too much.
    pub(crate) cut: usize,
}

impl<'a> Callers<'a> {
    pub(super) fn new(
        sessions: &'a Watches<Key, Routes>,
        streams: &'a Watches<Key, TargetViews>,
        accesses: &'a Watches<PodKey, Access>,
        workloads: &'a Watches<ObjectName, Known>,
    ) -> Self {
        Self {
            sessions,
            streams,
            accesses,
            workloads,
            told: OnceCell::new(),
            sessions_of: OnceCell::new(),
        }
    }

    /// Of those that are told of one of the Services, those that are meant: by its port's number, and the namespace of the callers.
    pub(crate) fn count(
        &self,
        needs: &[Feature],
        of: &Of<'_>,
        meant: impl Fn(&ObjectName, u16, &str) -> bool,
    ) -> Count {
        let told = self.told.get_or_init(|| self.told());
        let services: Box<dyn Iterator<Item = (&ObjectName, &Vec<Told<'a>>)>> = match of {
            Of::All => Box::new(told.iter()),
            Of::Namespace(namespace) => {
                let services = told.range(ObjectName::new(namespace, "")..);
                Box::new(services.take_while(move |(service, _)| *service.namespace == **namespace))
            }
            Of::These(services) => Box::new(services.iter().filter_map(|service| told.get_key_value(*service))),
        };
        let mut lacks = HashMap::new();
        let mut streams = 0;
        for (service, told) in services {
            for told in told.iter().filter(|told| meant(service, told.port, told.callers)) {
                for inbox in told.to.sessions() {
                    let lacking = needs.iter().any(|feature| !inbox.understands(*feature));
                    lacks.insert(Arc::as_ptr(&inbox).addr(), lacking);
                }
                streams += told.to.streams();
            }
        }
        let old = if needs.is_empty() { 0 } else { streams };
        Count {
            all: lacks.len() + streams,
            lacking: lacks.values().filter(|lacking| **lacking).count() + old,
        }
    }

    /// Of these pods.
    pub(crate) fn enforcers<'p>(&self, pods: impl Iterator<Item = (&'p ObjectName, &'p Pod)>) -> Enforcers {
        let sessions_of = self.sessions_of.get_or_init(|| {
            let mut sessions = HashMap::new();
            for (key, topic) in self.accesses.iter() {
                *sessions.entry(&key.name).or_default() += topic.readers().len();
            }
            sessions
        });
        let mut count = Enforcers::default();
        for (name, pod) in pods {
            let key = PodKey {
                name: name.clone(),
                service_account: Arc::clone(&pod.service_account),
            };
            let access = self.accesses.get(&key);
            let sessions = access.map(Topic::readers).unwrap_or_default();
            // Each session asks for both.
            let asking = self.workloads.get(name).map_or(0, Topic::watchers);
            let streams = asking.saturating_sub(sessions_of.get(name).copied().unwrap_or_default());
            let understand = sessions.iter().filter(|inbox| inbox.understands(Feature::Access));
            let verify = understand.clone().filter(|inbox| inbox.understands(Feature::Tokens));
            count.all += sessions.len() + streams;
            count.without_tokens += understand.clone().count() - verify.count();
            count.lacking += sessions.len() + streams - understand.count();
            if access.is_some_and(|access| access.value().told() != Policies::All) {
                count.cut += sessions.len();
            }
        }
        count
    }

    fn told(&self) -> BTreeMap<ObjectName, Vec<Told<'a>>> {
        let (sessions, streams) = (self.sessions.iter(), self.streams.iter());
        let sessions = sessions.filter_map(|((_, callers), topic)| {
            let (service, port) = topic.value().service()?.clone();
            Some((service, port, callers, To::Sessions(topic)))
        });
        let streams = streams.filter_map(|((_, callers), topic)| {
            let (service, port) = topic.value().service()?.clone();
            Some((service, port, callers, To::Streams(topic)))
        });
        let mut told: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (service, port, callers, to) in sessions.chain(streams) {
            told.entry(service).or_default().push(Told { port, callers, to });
        }
        told
    }
}
