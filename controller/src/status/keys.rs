//! What is said of the keys of a policy's providers: those that are not there, or that are those of before.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::objects::keys::KeySource;
use crate::objects::policy::Policy;
use crate::store::{KeyProblem, Keys, Store};

/// A controller that has begun does not know what another one has told.
const EARLIER: &str = "; sidecars that were told keys of this place before go on with those";

/// Each provider whose keys cannot be fetched now, and why.
pub(super) fn problems(store: &Store, policy: &Policy) -> Vec<String> {
    let providers = policy.access().into_iter().flat_map(|access| access.providers());
    let problems = providers.filter_map(|(name, spec)| {
        let source = KeySource::new(&policy.name.namespace, spec)?;
        let place = &source.place;
        match store.keys_at(&source)? {
            Keys {
                problem: None,
                fetched: Some(_),
            } => None,
            Keys {
                problem: None,
                fetched: None,
            } => Some(format!(
                "no token of the provider {name} is valid before its keys have been fetched ({place}){EARLIER}"
            )),
            Keys {
                problem: Some(problem),
                fetched: None,
            } => Some(format!(
                "no token of the provider {name} is valid, because its keys cannot be fetched ({place}): {}{EARLIER}",
                problem.why
            )),
            Keys {
                problem: Some(problem),
                fetched: Some(_),
            } => Some(format!(
                "the keys of the provider {name} are the last that could be fetched ({place}): since {} {}",
                since(problem),
                problem.why
            )),
        }
    });
    problems.collect()
}

fn since(problem: &KeyProblem) -> String {
    let since = OffsetDateTime::from(problem.since);
    let since = since.replace_nanosecond(0).unwrap_or(since);
    since.format(&Rfc3339).unwrap_or_default()
}
