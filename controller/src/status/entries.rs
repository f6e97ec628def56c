//! Entries of a status that several controllers write: a route's `parents` and a policy's `ancestors` (Gateway API).

use outrigger_api::names;
use serde_json::{Value, json};

/// Entries of all controllers. Gateway API allows a policy 16, and a route 32 parents.
const MAX_ANCESTORS: usize = 16;
const MAX_PARENTS: usize = 32;

/// A condition without its time.
pub(super) struct Verdict {
    pub(super) type_: &'static str,
    pub(super) ok: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Verdict {
    /// It is true where its reason is its own name, as Gateway API has it. A type of our own has a domain before it, which no reason can have.
    pub(super) fn new(type_: &'static str, reason: &'static str, message: String) -> Self {
        let name = type_.rsplit_once('/').map_or(type_, |(_, name)| name);
        Self {
            type_,
            ok: reason == name,
            reason,
            message,
        }
    }
}

/// What we say of one object that a route or a policy refers to.
pub(super) struct Entry {
    /// As the route or the policy has it.
    pub(super) reference: Value,
    pub(super) verdicts: Vec<Verdict>,
}

/// By what an entry refers.
#[derive(Clone, Copy)]
pub(super) enum To {
    Parent,
    Ancestor,
}

impl To {
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Parent => "parentRef",
            Self::Ancestor => "ancestorRef",
        }
    }

    fn most(self) -> usize {
        match self {
            Self::Parent => MAX_PARENTS,
            Self::Ancestor => MAX_ANCESTORS,
        }
    }
}

/// The entries as they should be: what others wrote as it is, and our own, as far as there is room. None: they are so already.
pub(super) fn merged(to: To, wanted: &[Entry], now_there: &[Value], generation: i64, now: &str) -> Option<Vec<Value>> {
    let (ours, others): (Vec<_>, Vec<_>) = now_there.iter().partition(|entry| is_ours(entry));
    let field = to.field();
    let entry = |entry: &Entry| {
        let old = ours.iter().find(|old| old.get(field) == Some(&entry.reference));
        let old = old.and_then(|old| old.get("conditions")?.as_array());
        let old = old.map(Vec::as_slice).unwrap_or_default();
        let conditions = conditions(&entry.verdicts, old, generation, now);
        json!({field: entry.reference, "controllerName": names::CONTROLLER, "conditions": conditions})
    };
    let room = to.most().saturating_sub(others.len());
    let wanted: Vec<Value> = wanted.iter().take(room).map(entry).collect();
    let same = ours.len() == wanted.len() && ours.iter().zip(&wanted).all(|(old, new)| *old == new);
    (!same).then(|| others.into_iter().cloned().chain(wanted).collect())
}

/// The conditions with their times: of the last change from one status to another.
pub(super) fn conditions(verdicts: &[Verdict], old: &[Value], generation: i64, now: &str) -> Vec<Value> {
    let condition = |verdict: &Verdict| {
        let status = if verdict.ok { "True" } else { "False" };
        let text = |c: &Value, field: &str| c.get(field).and_then(Value::as_str).map(str::to_owned);
        let old = old.iter().find(|c| text(c, "type").as_deref() == Some(verdict.type_));
        let old = old.filter(|c| text(c, "status").as_deref() == Some(status));
        let time = old.and_then(|c| text(c, "lastTransitionTime"));
        json!({
            "type": verdict.type_,
            "status": status,
            "reason": verdict.reason,
            "message": clipped(&verdict.message),
            "observedGeneration": generation,
            "lastTransitionTime": time.unwrap_or_else(|| now.to_owned()),
        })
    };
    verdicts.iter().map(condition).collect()
}

pub(super) fn is_ours(entry: &Value) -> bool {
    entry.get("controllerName").and_then(Value::as_str) == Some(names::CONTROLLER)
}

/// The API allows 32,768 bytes; a person reads fewer.
fn clipped(message: &str) -> &str {
    &message[..message.floor_char_boundary(4096)]
}
