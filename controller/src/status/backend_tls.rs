//! What the status of a BackendTLSPolicy should say, for each Service that it names (Gateway API, GEP-1897).

use outrigger_api::discovery::Feature;
use serde_json::Value;

use super::entries::{Entry, To, Verdict, merged};
use super::older::{Asked, PARTIALLY, Written};
use crate::answers::backend_tls::{Trusted, trusted};
use crate::index::{Callers, Of};
use crate::objects::ObjectName;
use crate::objects::backend_tls::{BackendTls, Target, Trust};
use crate::store::Store;

const ACCEPTED: &str = "Accepted";
const RESOLVED: &str = "ResolvedRefs";
const PROGRAMMED: &str = "Programmed";

/// `status.ancestors` as it should be. None: it is so already, or cannot be said yet. `now` is RFC 3339.
pub(super) fn ancestors(store: &Store, callers: &Callers<'_>, policy: &BackendTls, now: &str) -> Option<Vec<Value>> {
    let trusted = match &policy.spec {
        Ok(spec) => match &spec.trust {
            Trust::Certificates(references) => Some(trusted(store, references)),
            Trust::System => None,
        },
        Err(_) => None,
    };
    // A moment later it is known whether they are good.
    if trusted.as_ref().is_some_and(|trusted| trusted.unread) {
        return None;
    }
    let entry = |target: &Target| {
        let accepted = accepted(store, policy, target, trusted.as_ref());
        let resolved = trusted.as_ref().map_or_else(none_to_resolve, resolved);
        let programmed = accepted.ok.then(|| programmed(store, callers, policy, target));
        Entry {
            reference: target.reference.clone(),
            verdicts: [accepted, resolved].into_iter().chain(programmed).collect(),
        }
    };
    let entries: Vec<_> = policy.targets.iter().map(entry).collect();
    merged(To::Ancestor, &entries, &policy.ancestors, policy.generation, now)
}

/// A policy without its target is attached to nothing (GEP-1897), and so protects nothing.
const UNTIL_THEN: &str = "until then calls of it go as without the policy, in plaintext where the app speaks it";

fn accepted(store: &Store, policy: &BackendTls, target: &Target, trusted: Option<&Trusted>) -> Verdict {
    let Some(service) = store.services.get(&target.service) else {
        let message = format!("there is no Service {}; {UNTIL_THEN}", target.service.name);
        return Verdict::new(ACCEPTED, "TargetNotFound", message);
    };
    if let Some(section) = target.section.as_deref()
        && !service.ports.iter().any(|port| *port.name == *section)
    {
        let message = format!(
            "the Service {} has no TCP port of the name {section:?}; {UNTIL_THEN}",
            target.service.name
        );
        return Verdict::new(ACCEPTED, "TargetNotFound", message);
    }
    let holder = store.backend_tls.at(&target.service, target.section.as_deref());
    if let Some(holder) = holder.filter(|holder| holder.name != policy.name) {
        let message = format!(
            "the older policy {} is in force there: put both into one, delete one, or name another port in sectionName",
            holder.name.name
        );
        return Verdict::new(ACCEPTED, "Conflicted", message);
    }
    if let Err(mistakes) = &policy.spec {
        let message = format!("Calls of the Service fail until it is mended. {}", mistakes.join("; "));
        return Verdict::new(ACCEPTED, "Invalid", message);
    }
    if let Some(trusted) = trusted.filter(|trusted| trusted.certificates.is_empty()) {
        let message = format!("Calls of the Service fail until there is one. {}", problems(trusted));
        return Verdict::new(ACCEPTED, "NoValidCACertificate", message);
    }
    Verdict::new(
        ACCEPTED,
        ACCEPTED,
        "In force for endpoints that are not in the mesh; those that are have mutual TLS".to_owned(),
    )
}

fn none_to_resolve() -> Verdict {
    Verdict::new(RESOLVED, RESOLVED, "It refers to no certificates".to_owned())
}

fn resolved(trusted: &Trusted) -> Verdict {
    match trusted.bad.first() {
        None => Verdict::new(RESOLVED, RESOLVED, "All references lead to CA certificates".to_owned()),
        Some(first) => Verdict::new(RESOLVED, first.reason, problems(trusted)),
    }
}

fn problems(trusted: &Trusted) -> String {
    let messages: Vec<_> = trusted.bad.iter().map(|bad| bad.message.as_str()).collect();
    messages.join("; ")
}

fn programmed(store: &Store, callers: &Callers<'_>, policy: &BackendTls, target: &Target) -> Verdict {
    let asked = Asked {
        needs: &[Feature::BackendTls],
        of: Of::These([&target.service].into()),
        meant: |service: &ObjectName, port, _: &str| {
            let ports = store.services.get(service).into_iter().flat_map(|s| &s.ports);
            let mut named = ports.filter(|p| p.port == port);
            target.section.is_none() || named.any(|p| target.section.as_ref() == Some(&p.name))
        },
        called: "Service",
        effect: "are told of no endpoint that is not in the mesh".to_owned(),
    };
    let written = Written {
        to: To::Ancestor,
        entries: &policy.ancestors,
        generation: policy.generation,
    };
    match asked.lacking(store, callers, written, &target.reference) {
        Some(message) => Verdict::new(PROGRAMMED, PARTIALLY, message),
        None => Verdict::new(PROGRAMMED, PROGRAMMED, "All that it says is in force".to_owned()),
    }
}
