//! What the policies of the file come to: pure functions of what was gathered.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::ResourceExt;
use kube::core::DynamicObject;
use outrigger_access::Access;
use outrigger_access::remembered::{Forgotten, Judgement, Remembered, Sent};
use outrigger_api::spiffe::SpiffeId;
use outrigger_controller::access::PodKey;
use outrigger_controller::index::Index;
use outrigger_controller::metrics::Metrics;
use outrigger_controller::objects::policy::{Policy, PolicyKind};
use outrigger_controller::objects::{Object, ObjectName, from_k8s};
use serde::Deserialize;

use super::file::Proposed;
use crate::check::{Finding, Level, good, has_sidecar, sidecar_is_unready, some, warning, wrong};

/// What the controller knows of, as far as policies depend on it.
#[derive(Debug)]
pub(super) struct Cluster {
    /// Policies on it are the whole mesh's.
    pub(super) own_namespace: String,
    pub(super) trust_domain: String,
    pub(super) namespaces: Vec<Namespace>,
    /// Of the labelled namespaces.
    pub(super) pods: Vec<Pod>,
    pub(super) services: Vec<Service>,
    pub(super) policies: Vec<DynamicObject>,
}

/// A pod whose sidecar would be told something else.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) namespace: String,
    pub(super) pod: String,
    /// What the pod is one of, for people: "shop/orders".
    workload: String,
    /// Its sidecar can be asked.
    pub(super) is_ready: bool,
    now: Access,
    then: Access,
}

/// Whom a sidecar has let in: its page `/callers`.
#[derive(Debug, Deserialize)]
pub(super) struct Seen {
    /// Since when: so long ago.
    seconds: u64,
    callers: Vec<Calls>,
    /// Calls that were not told apart any more.
    others: u64,
}

#[derive(Debug, Deserialize)]
struct Calls {
    identity: Option<String>,
    port: u16,
    /// `None`: bytes. `_OTHER`: none that is told apart.
    method: Option<String>,
    count: u64,
}

/// The pods whose sidecars would be told something else.
///
/// # Errors
/// When what a sidecar is told cannot be read: it never is.
pub(super) fn changes(cluster: &Cluster, proposed: &[Proposed]) -> anyhow::Result<Vec<Change>> {
    let now = index(cluster, &[]);
    let then = index(cluster, proposed);
    let mut changes = Vec::new();
    for pod in cluster.pods.iter().filter(|pod| has_sidecar(pod)) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        let key = PodKey {
            name: ObjectName::new(&namespace, &name),
            service_account: account.unwrap_or("default").into(),
        };
        let told = |index: &Index| index.who_may_call(&key).context("what a sidecar is told");
        let (before, after) = (told(&now)?, told(&then)?);
        if before != after {
            changes.push(Change {
                workload: workload(pod, &namespace),
                is_ready: !sidecar_is_unready(pod),
                now: Access::new(&before),
                then: Access::new(&after),
                pod: name,
                namespace,
            });
        }
    }
    Ok(changes)
}

/// The controller's index of these objects, in which policies of the file stand in the place of those of the same name.
fn index(cluster: &Cluster, proposed: &[Proposed]) -> Arc<Index> {
    let index = Index::new(&cluster.trust_domain, Arc::new(Metrics::default()));
    index.set_own(&cluster.own_namespace, "");
    let namespaces = cluster.namespaces.iter().filter_map(from_k8s::namespace);
    let services = cluster.services.iter().filter_map(from_k8s::service);
    let pods = cluster.pods.iter().filter_map(from_k8s::pod);
    let policies = cluster.policies.iter().chain(proposed.iter().map(|of| &of.policy));
    let policies = policies.map(|policy| {
        let read = Policy::read(PolicyKind::Access, policy);
        (from_k8s::object_name(&policy.metadata), Object::Policy(Box::new(read)))
    });
    for (name, object) in namespaces.chain(services).chain(pods).chain(policies) {
        index.apply(name, object);
    }
    index
}

/// Pods of one Deployment are one to a person, whatever their ReplicaSets are called.
fn workload(pod: &Pod, namespace: &str) -> String {
    let owner = pod.metadata.owner_references.iter().flatten().next();
    let hash = pod.labels().get("pod-template-hash");
    let name = owner.map_or_else(|| pod.name_any(), |owner| owner.name.clone());
    let without_hash = hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'));
    format!("{namespace}/{}", without_hash.unwrap_or(&name))
}

/// Calls of one kind, of all pods of a workload together.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    workload: String,
    fate: Fate,
    caller: String,
    port: u16,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// By what.
    Refused(String),
    Unknown(Forgotten),
    LetIn,
}

/// All that is to be said.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
    /// All calls that were counted could be judged.
    pub(super) is_complete: bool,
}

/// What the command comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    NobodyShutOut,
    SomebodyShutOut,
    /// Nobody, of those who could be judged.
    NotAllJudged,
}

impl Report {
    pub(super) fn outcome(&self) -> Outcome {
        if self.findings.iter().any(|finding| finding.level == Level::Wrong) {
            return Outcome::SomebodyShutOut;
        }
        match self.is_complete {
            true => Outcome::NobodyShutOut,
            false => Outcome::NotAllJudged,
        }
    }
}

impl Outcome {
    pub(super) fn exit_code(self) -> u8 {
        match self {
            Self::NobodyShutOut => 0,
            Self::SomebodyShutOut => 1,
            // 2 is a mistake on the command line.
            Self::NotAllJudged => 3,
        }
    }

    /// For people.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::NobodyShutOut => "Nobody would be shut out of whom that is known.",
            Self::SomebodyShutOut => "Somebody would be shut out who calls now.",
            Self::NotAllJudged => "Not all who call could be judged; nobody of the others would be shut out.",
        }
    }
}

/// What is to be said of it.
pub(super) fn report(proposed: &[Proposed], changes: &[Change], seen: &[Result<Seen, String>]) -> Report {
    let mut findings = of_the_file(proposed, changes);
    let mut groups: BTreeMap<Group, BTreeMap<String, u64>> = BTreeMap::new();
    let (mut unread, mut why_unread) = (Vec::new(), "");
    let (mut others, mut shortest) = (0_u64, u64::MAX);
    for (change, seen) in changes.iter().zip(seen) {
        let seen = match seen {
            Ok(seen) => seen,
            Err(why) => {
                unread.push(format!("{}/{}", change.namespace, change.pod));
                if why_unread.is_empty() {
                    why_unread = why;
                }
                continue;
            }
        };
        others = others.saturating_add(seen.others);
        shortest = shortest.min(seen.seconds);
        for calls in &seen.callers {
            let Some(fate) = fate(change, calls) else { continue };
            let group = Group {
                workload: change.workload.clone(),
                fate,
                caller: calls
                    .identity
                    .clone()
                    .unwrap_or_else(|| "whoever has no identity".to_owned()),
                port: calls.port,
            };
            let method = calls.method.as_deref().unwrap_or("bytes");
            let count = groups.entry(group).or_default().entry(method.to_owned()).or_default();
            *count = count.saturating_add(calls.count);
        }
    }
    findings.extend(groups.iter().map(|(group, counts)| finding(group, counts)));
    let unknown = groups.keys().any(|group| matches!(group.fate, Fate::Unknown(_)));
    let is_complete = others == 0 && unread.is_empty() && !unknown;
    if others > 0 {
        findings.push(warning(
            format!("{others} calls cannot be judged: their callers are more than a sidecar tells apart"),
            "mode: Audit counts and logs each of them",
        ));
    }
    if !unread.is_empty() {
        findings.push(warning(
            format!("the sidecars of these pods could not be asked: {}", some(&unread)),
            why_unread,
        ));
    }
    if !changes.is_empty() && unread.len() < changes.len() {
        findings.push(good(format!(
            "{} pods would be told of it; counted is who has called since their sidecars began, the youngest {} ago, and nobody else",
            changes.len(),
            ago(shortest)
        )));
    }
    Report { findings, is_complete }
}

/// What is to be known of the policies themselves.
fn of_the_file(proposed: &[Proposed], changes: &[Change]) -> Vec<Finding> {
    let audited = proposed.iter().filter(|of| of.audit).map(|of| {
        warning(
            format!(
                "{} is in Audit mode, and judged as if it were enforced",
                name(&of.policy)
            ),
            "in Audit mode it refuses nobody",
        )
    });
    let nothing = changes.is_empty().then(|| {
        warning(
            "no sidecar would be told anything else",
            "the policies are there already, or select no pod that has a sidecar",
        )
    });
    audited.chain(nothing).collect()
}

fn name(policy: &DynamicObject) -> String {
    format!("{}/{}", policy.namespace().unwrap_or_default(), policy.name_any())
}

/// `None`: they are refused already, or by now nobody could say who it was.
fn fate(change: &Change, calls: &Calls) -> Option<Fate> {
    let identity = match &calls.identity {
        Some(id) => Some(id.parse::<SpiffeId>().ok()?),
        None => None,
    };
    let remembered = Remembered {
        port: calls.port,
        identity: identity.as_ref(),
        sent: match calls.method.as_deref() {
            None => Sent::Bytes,
            Some("_OTHER") => Sent::Http(None),
            Some(method) => Sent::Http(Some(method)),
        },
    };
    if matches!(change.now.judge(&remembered), Judgement::Refused { .. }) {
        return None;
    }
    Some(match change.then.judge(&remembered) {
        Judgement::LetIn => Fate::LetIn,
        Judgement::Unknown(forgotten) => Fate::Unknown(forgotten),
        Judgement::Refused {
            policy,
            rule: Some(rule),
        } => Fate::Refused(format!("{policy} denies it by its rule {rule}")),
        Judgement::Refused { policy, rule: None } => {
            Fate::Refused(format!("{policy} closes the port to what no policy allows"))
        }
    })
}

fn finding(group: &Group, counts: &BTreeMap<String, u64>) -> Finding {
    let Group {
        workload,
        fate,
        caller,
        port,
    } = group;
    let counts: Vec<String> = counts
        .iter()
        .map(|(method, count)| format!("{method} {count}"))
        .collect();
    let calls = format!("{caller} at port {port}: {}", counts.join(", "));
    match fate {
        Fate::Refused(why) => wrong(format!("{workload} would refuse {calls}"), why.clone()),
        Fate::Unknown(forgotten) => warning(
            format!("{workload}: cannot be judged: {calls}"),
            format!("it depends on what is not counted ({forgotten}): mode: Audit tells"),
        ),
        Fate::LetIn => good(format!("{workload} would let in {calls}")),
    }
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} minutes", seconds / 60),
        7200..=172_799 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
