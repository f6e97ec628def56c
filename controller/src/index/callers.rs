//! Which sidecars are told of a Service, and what they understand.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_api::discovery::Feature;

use super::watches::Watches;
use crate::objects::ObjectName;
use crate::split::{Routes, service_of};
use crate::topic::{Inbox, Topic};
use crate::topology::TargetViews;

type Key = (SocketAddr, Arc<str>);

/// All sidecars that this controller tells of anything.
pub(crate) struct Callers<'a> {
    sessions: &'a Watches<Key, Routes>,
    /// Of the version before the session, which understand nothing beyond it.
    streams: &'a Watches<Key, TargetViews>,
    /// What they are told of each Service. Made once: there are as many policies to ask for as tenants like.
    told: OnceCell<BTreeMap<ObjectName, Vec<Told<'a>>>>,
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

impl<'a> Callers<'a> {
    pub(super) fn new(sessions: &'a Watches<Key, Routes>, streams: &'a Watches<Key, TargetViews>) -> Self {
        Self {
            sessions,
            streams,
            told: OnceCell::new(),
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

    fn told(&self) -> BTreeMap<ObjectName, Vec<Told<'a>>> {
        let (sessions, streams) = (self.sessions.iter(), self.streams.iter());
        let sessions = sessions.filter_map(|((_, callers), topic)| {
            let (service, port) = topic.value().service()?.clone();
            Some((service, port, callers, To::Sessions(topic)))
        });
        let streams = streams.filter_map(|((_, callers), topic)| {
            let (service, port) = service_of(topic.value().common())?;
            Some((service, port, callers, To::Streams(topic)))
        });
        let mut told: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (service, port, callers, to) in sessions.chain(streams) {
            told.entry(service).or_default().push(Told { port, callers, to });
        }
        told
    }
}
