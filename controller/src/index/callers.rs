//! Which sidecars are told of a Service, or who may call them, and what they understand.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use outrigger_api::discovery::Feature;

use super::Index;
use crate::access::{PodKey, Told as Policies};
use crate::objects::{ObjectName, Pod};
use crate::split::Routes;
use crate::topic::{Inbox, Topic};
use crate::topology::TargetViews;

/// All sidecars that this controller tells of anything. What is asked for is taken out of the index at once, and looked through while
/// others go on with it: there are as many policies to ask for as tenants like.
pub(crate) struct Callers<'a> {
    index: &'a Index,
    /// What they are told of each Service.
    told: OnceCell<BTreeMap<ObjectName, Vec<Told>>>,
    /// Those of each pod.
    sidecars: OnceCell<HashMap<PodKey, Sidecars>>,
}

/// What callers of one namespace are told of one address.
struct Told {
    port: u16,
    callers: Arc<str>,
    to: To,
}

enum To {
    Sessions(Topic<Routes>),
    /// Of the version before the session, which understand nothing beyond it.
    Streams(Topic<TargetViews>),
}

impl To {
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

/// Who says that he is a pod, and has an SVID of its ServiceAccount.
struct Sidecars {
    sessions: Vec<Arc<Inbox>>,
    /// How much they are told of the pod's policies.
    told: Policies,
    /// They are not told how much the pod takes.
    limits_cut: bool,
    /// Sessions and streams: each asks what is known of the pod.
    asking: usize,
}

impl Default for Sidecars {
    /// Of a pod of which nothing is asked.
    fn default() -> Self {
        Self {
            sessions: Vec::new(),
            told: Policies::All,
            limits_cut: false,
            asking: 0,
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
    /// Those that are told that nobody may call, because there is no room for all that is in force.
    pub(crate) closed: usize,
    /// Those that are told of what is in force, and not of what is only audited.
    pub(crate) without_audited: usize,
    /// Of limits: those that do not understand them, and those that are not told.
    pub(crate) without_limits: usize,
    /// Those that understand limits of requests, and none of connections.
    pub(crate) without_connections: usize,
    /// Those that understand limits, and none by tokens.
    pub(crate) without_claims: usize,
    /// Those that understand limits, and ask no store.
    pub(crate) without_global: usize,
    pub(crate) limits_cut: usize,
}

impl<'a> Callers<'a> {
    pub(super) fn new(index: &'a Index) -> Self {
        Self {
            index,
            told: OnceCell::new(),
            sidecars: OnceCell::new(),
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
        let services: Box<dyn Iterator<Item = (&ObjectName, &Vec<Told>)>> = match of {
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
            for told in told.iter().filter(|told| meant(service, told.port, &told.callers)) {
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
        let sidecars = self.sidecars.get_or_init(|| self.sidecars());
        let mut count = Enforcers::default();
        for (name, pod) in pods {
            let key = PodKey {
                name: name.clone(),
                service_account: Arc::clone(&pod.service_account),
            };
            let Some(of_pod) = sidecars.get(&key) else { continue };
            let sessions = of_pod.sessions.len();
            let streams = of_pod.asking.saturating_sub(sessions);
            let understand = of_pod
                .sessions
                .iter()
                .filter(|inbox| inbox.understands(Feature::Access));
            let verify = understand.clone().filter(|inbox| inbox.understands(Feature::Tokens));
            count.all += sessions + streams;
            count.without_tokens += understand.clone().count() - verify.count();
            count.lacking += sessions + streams - understand.count();
            let closed = match of_pod.told {
                Policies::TooLarge | Policies::NoRoom => sessions,
                Policies::All | Policies::Enforced => of_pod.sessions.iter().filter(|inbox| inbox.is_closed()).count(),
            };
            count.closed += closed;
            if of_pod.told == Policies::Enforced {
                count.without_audited += sessions - closed;
            }
            let limit = { of_pod.sessions.iter() }.filter(|inbox| inbox.understands(Feature::RateLimits));
            let connections = { limit.clone() }.filter(|inbox| inbox.understands(Feature::ConnectionLimits));
            let claims = { limit.clone() }.filter(|inbox| inbox.understands(Feature::LimitClaims));
            let global = { limit.clone() }.filter(|inbox| inbox.understands(Feature::GlobalLimits));
            count.without_global += limit.clone().count() - global.count();
            count.without_claims += limit.clone().count() - claims.count();
            count.without_connections += limit.clone().count() - connections.count();
            count.without_limits += sessions + streams - limit.count();
            count.limits_cut += if of_pod.limits_cut { sessions } else { 0 };
        }
        count
    }

    /// Whether the pod's sidecar is connected to this controller.
    pub(crate) fn hears(&self, name: &ObjectName, pod: &Pod) -> bool {
        let key = PodKey {
            name: name.clone(),
            service_account: Arc::clone(&pod.service_account),
        };
        let sidecars = self.sidecars.get_or_init(|| self.sidecars());
        sidecars
            .get(&key)
            .is_some_and(|of_pod| of_pod.asking > 0 || !of_pod.sessions.is_empty())
    }

    fn told(&self) -> BTreeMap<ObjectName, Vec<Told>> {
        let all: Vec<_> = {
            let inner = self.index.inner.lock();
            let sessions = inner.routes.iter().filter_map(|((_, callers), topic)| {
                let (service, port) = topic.value().service()?.clone();
                Some((service, port, callers.clone(), To::Sessions(topic.clone())))
            });
            let streams = inner.targets.iter().filter_map(|((_, callers), topic)| {
                let (service, port) = topic.value().service()?.clone();
                Some((service, port, callers.clone(), To::Streams(topic.clone())))
            });
            sessions.chain(streams).collect()
        };
        let mut told: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (service, port, callers, to) in all {
            told.entry(service).or_default().push(Told { port, callers, to });
        }
        told
    }

    fn sidecars(&self) -> HashMap<PodKey, Sidecars> {
        let inner = self.index.inner.lock();
        let sessions = inner.accesses.iter().map(|(key, topic)| {
            let sidecars = Sidecars {
                sessions: topic.readers(),
                told: topic.value().told(),
                ..Sidecars::default()
            };
            (key.clone(), sidecars)
        });
        let mut sidecars: HashMap<_, _> = sessions.collect();
        for (key, topic) in inner.limits.iter() {
            sidecars.entry(key.clone()).or_default().limits_cut = topic.value().is_cut();
        }
        for (key, topic) in inner.workloads.iter() {
            sidecars.entry(key.clone()).or_default().asking = topic.watchers();
        }
        sidecars
    }
}
