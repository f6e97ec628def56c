//! Ports that pods take out of capture (`outrigger.dev/skip-inbound-ports`): no policy is enforced there.

use std::collections::BTreeSet;

use outrigger_api::labels;
use outrigger_api::policy::access::Unresolved;

use crate::answers::ports_at;
use crate::objects::Pod;
use crate::objects::policy::Attachment;
use crate::store::Store;

/// Ports and ranges of them that are named.
const NAMED_PORTS: usize = 8;

/// Pods, and their ports that reach the app without its sidecar, of those that a policy is about.
#[derive(Default)]
pub(super) struct Uncaptured {
    pods: usize,
    /// The first of them by their numbers.
    ports: BTreeSet<(u16, u16)>,
    /// There are more.
    more: bool,
}

impl Uncaptured {
    /// `access` is the policy, if it may name ports itself.
    pub(super) fn add(&mut self, store: &Store, access: Option<&Unresolved>, attachment: &Attachment, pod: &Pod) {
        if !pod.in_mesh || pod.skip_inbound.0.is_empty() {
            return;
        }
        let Some(selected) = ports_at(store, attachment, pod) else {
            return;
        };
        let number = |name: &str| {
            pod.ports
                .iter()
                .find(|(known, _)| **known == *name)
                .map(|(_, port)| *port)
        };
        let ports = match (selected, access.and_then(|access| access.ports(number))) {
            (Some(selected), Some(named)) => Some(&selected & &named),
            (selected, named) => selected.or(named),
        };
        let mut any = false;
        let mut skips = |first: u16, last: u16| {
            any = true;
            self.ports.insert((first, last));
            if self.ports.len() > NAMED_PORTS {
                self.ports.pop_last();
                self.more = true;
            }
        };
        match ports {
            None => {
                let ranges = pod.skip_inbound.0.iter();
                ranges.for_each(|range| skips(*range.start(), *range.end()));
            }
            Some(ports) => {
                let ports = ports.into_iter().filter(|&port| pod.skip_inbound.contains(port));
                ports.for_each(|port| skips(port, port));
            }
        }
        self.pods += usize::from(any);
    }

    /// `what` they do there.
    pub(super) fn text(&self, all: usize, what: &str) -> Option<String> {
        let port = |(first, last): &(u16, u16)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        let ports: Vec<_> = self.ports.iter().map(port).collect();
        (self.pods > 0).then(|| {
            format!(
                "{} of {all} pods {what} at ports that they take from their sidecars ({}): {}{}",
                self.pods,
                labels::SKIP_INBOUND_PORTS,
                ports.join(", "),
                if self.more { " and more" } else { "" }
            )
        })
    }
}
