//! Writes the conditions of routes and policies where they differ from what they should be.
//!
//! Every replica does it: they come to the same words, and a write that is not needed is not made. A write says which
//! version of the object it was made for, so that one replica cannot undo what another controller wrote.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{ApiResource, Patch, PatchParams};
use kube::core::DynamicObject;
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;

use crate::index::Index;
use crate::metrics::Metrics;
use crate::objects::{Kind, ObjectName};
use crate::status::{Absent, Now, Write, wanted};
use outrigger_issuer::clock;

/// How long changes are gathered.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// After this time what still differs is written again, and what has ended by itself is said to have.
const RETRY: Duration = Duration::from_secs(10);
/// Writes of one object within [`WINDOW`]: two versions of the controller, which put things differently, must not write
/// over one another without end.
const MAX_WRITES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// Keeps the conditions right, for ever.
pub async fn run(client: Client, index: Arc<Index>, metrics: Arc<Metrics>) {
    let mut changes = index.status_changes();
    let mut synced = crate::discovery::Discover::synced(&*index);
    // Before that, everything would be missing something.
    if synced.wait_for(|&synced| synced).await.is_err() {
        return;
    }
    let (mut written, mut absent) = (Written::default(), Absent::default());
    loop {
        changes.borrow_and_update();
        let now = Now::new(clock::now().into());
        for write in written.due(wanted_now(&index, &mut absent, &now), Instant::now()) {
            // Whatever has a status to write has one.
            let Some(resource) = write.kind.resource() else {
                continue;
            };
            match patch(&client, &resource, &write).await {
                Ok(()) => metrics.status_written(),
                // A newer version is on its way through the watch, or the object is gone.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(e) => tracing::warn!(kind = ?write.kind, name = %write.name, error = %e, "cannot write a status"),
            }
        }
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(DEBOUNCE).await;
            }
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// What was written when.
#[derive(Default)]
struct Written(HashMap<(Kind, ObjectName), Recent>);

struct Recent {
    /// The version that it was written for.
    resource_version: String,
    at: Instant,
    writes: u32,
    window: Instant,
}

impl Written {
    /// Those of the writes that are to be made now.
    fn due(&mut self, writes: Vec<Write>, now: Instant) -> Vec<Write> {
        self.0
            .retain(|_, recent| now - recent.window < WINDOW || now - recent.at < WINDOW);
        let mut due = Vec::new();
        for write in writes {
            let recent = self
                .0
                .entry((write.kind, write.name.clone()))
                .or_insert_with(|| Recent {
                    resource_version: String::new(),
                    at: now,
                    writes: 0,
                    window: now,
                });
            // The watch has not brought the result of the last write yet.
            let in_flight = recent.resource_version == write.resource_version && now - recent.at < RETRY;
            if now - recent.window >= WINDOW {
                (recent.window, recent.writes) = (now, 0);
            }
            if in_flight || recent.writes >= MAX_WRITES {
                continue;
            }
            recent.resource_version.clone_from(&write.resource_version);
            recent.at = now;
            recent.writes += 1;
            due.push(write);
        }
        due
    }
}

fn wanted_now(index: &Index, absent: &mut Absent, now: &Now) -> Vec<Write> {
    let (store, callers) = (index.snapshot(), index.callers());
    absent.look(&store, &callers, Instant::now());
    wanted(&store, &callers, absent, now)
}

async fn patch(client: &Client, resource: &ApiResource, write: &Write) -> kube::Result<()> {
    let api: Api<DynamicObject> = match &*write.name.namespace {
        "" => Api::all_with(client.clone(), resource),
        namespace => Api::namespaced_with(client.clone(), namespace, resource),
    };
    let body = json!({"metadata": {"resourceVersion": write.resource_version}, "status": write.status});
    api.patch_status(&write.name.name, &PatchParams::default(), &Patch::Merge(&body))
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio::time::Instant;

    use super::{Kind, MAX_WRITES, RETRY, WINDOW, Write, Written};
    use crate::objects::ObjectName;
    use crate::objects::route::RouteKind;

    #[tokio::test(start_paused = true)]
    async fn a_write_is_not_repeated_while_its_result_is_on_its_way_nor_without_end() {
        let write = |version: u32| Write {
            kind: Kind::Route(RouteKind::Http),
            name: ObjectName::new("shop", "r"),
            resource_version: version.to_string(),
            status: json!({}),
        };
        let mut written = Written::default();
        assert_eq!(written.due(vec![write(1)], Instant::now()).len(), 1);
        assert_eq!(written.due(vec![write(1)], Instant::now()).len(), 0);
        tokio::time::advance(RETRY).await;
        assert_eq!(written.due(vec![write(1)], Instant::now()).len(), 1);
        // Somebody writes over it again and again.
        let made: usize = (2..100)
            .map(|v| written.due(vec![write(v)], Instant::now()).len())
            .sum();
        assert_eq!(made as u32 + 2, MAX_WRITES);
        tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
        assert_eq!(written.due(vec![write(200)], Instant::now()).len(), 1);
        assert_eq!(written.0.len(), 1);
    }
}
