//! Which sidecars are too old for all that an object says.
//!
//! Each controller knows the sidecars that are connected to itself. So that two do not write over one another without end, the first to say it
//! goes on until its sidecars know all of it, or it is gone.

use outrigger_api::discovery::Feature;
use serde_json::Value;

use super::entries::{To, is_ours};
use crate::index::{Callers, Of};
use crate::objects::ObjectName;
use crate::store::Store;

/// The reason of a condition that says it.
pub(super) const PARTIALLY: &str = "PartiallyProgrammed";

/// What is written of an object now.
#[derive(Clone, Copy)]
pub(super) struct Written<'a> {
    pub(super) to: To,
    /// `status.parents` or `status.ancestors`, of all controllers.
    pub(super) entries: &'a [Value],
    pub(super) generation: i64,
}

/// What callers have to know, and which of them.
pub(super) struct Asked<'a, Meant> {
    pub(super) needs: &'a [Feature],
    /// The Services on the way of which it stands.
    pub(super) of: Of<'a>,
    /// By the Service, the number of its port, and the namespace of the callers.
    pub(super) meant: Meant,
    /// By which they are told of it: "target".
    pub(super) called: &'static str,
    /// What becomes of it there.
    pub(super) effect: String,
}

impl<Meant: Fn(&ObjectName, u16, &str) -> bool> Asked<'_, Meant> {
    /// Says how many sidecars lack something, of those that are told of `reference`. `None`: none does.
    pub(super) fn lacking(
        &self,
        store: &Store,
        callers: &Callers<'_>,
        written: Written<'_>,
        reference: &Value,
    ) -> Option<String> {
        if self.needs.is_empty() {
            return None;
        }
        if let Some(message) = word_of_another(store, written, reference) {
            return Some(message.to_owned());
        }
        let count = callers.count(self.needs, &self.of, &self.meant);
        (count.lacking > 0).then(|| {
            format!(
                "{}: {} of {} sidecars that it tells of the {} are older, and {}: kubectl rollout restart brings the new one into their pods",
                store.own.name, count.lacking, count.all, self.called, self.effect
            )
        })
    }
}

/// The word of another controller's pod that is still there, on this generation.
pub(super) fn word_of_another<'a>(store: &Store, written: Written<'a>, reference: &Value) -> Option<&'a str> {
    let entries = written.entries.iter();
    let entry = entries
        .filter(|e| is_ours(e))
        .find(|e| e.get(written.to.field()) == Some(reference))?;
    let conditions = entry.get("conditions")?.as_array()?;
    let said = conditions.iter().find(|c| {
        c.get("reason").is_some_and(|reason| reason == PARTIALLY)
            && c.get("observedGeneration").and_then(Value::as_i64) == Some(written.generation)
    })?;
    let message = said.get("message")?.as_str()?;
    let (who, _) = message.split_once(": ")?;
    let pod = store.pods.get(&ObjectName::new(&store.own.namespace, who))?;
    (*who != *store.own.name && !pod.ended).then_some(message)
}
