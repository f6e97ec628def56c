//! What a sidecar that verifies no tokens is told: without the conditions on them. To it nobody has a token, and so a Deny rule that
//! asks for one would hold for nobody. A condition that it does not understand lets nobody in, and is left out where a rule denies.

use bytes::Bytes;
use outrigger_api::access as proto;
use outrigger_api::access::{condition, source};
use outrigger_api::discovery::to_sidecar;

use crate::split::encoded;

/// Whether any of the policies says something of tokens.
pub(super) fn has_tokens(access: &proto::Access) -> bool {
    let policies = access.enforced.iter().chain(&access.audited);
    { policies }.any(|policy| !policy.providers.is_empty() || sources(policy).any(is_token))
}

/// The message without what it says of them. It is made anew each time: such sidecars are few, and not for long.
pub(super) fn without_tokens(mut access: proto::Access) -> Bytes {
    for policy in access.enforced.iter_mut().chain(&mut access.audited) {
        policy.providers.clear();
        let conditions = policy.rules.iter_mut().flat_map(|rule| &mut rule.conditions);
        for condition in conditions {
            if let Some(condition::Kind::Sources(sources)) = &mut condition.kind {
                sources
                    .any
                    .iter_mut()
                    .filter(|source| is_token(source))
                    .for_each(|source| source.kind = None);
            }
        }
    }
    encoded(to_sidecar::Kind::Access(access))
}

fn sources(policy: &proto::Policy) -> impl Iterator<Item = &proto::Source> {
    let conditions = policy.rules.iter().flat_map(|rule| &rule.conditions);
    let sources = conditions.filter_map(|condition| match &condition.kind {
        Some(condition::Kind::Sources(sources)) => Some(&sources.any),
        _ => None,
    });
    sources.flatten()
}

fn is_token(source: &proto::Source) -> bool {
    matches!(source.kind, Some(source::Kind::Jwt(_)))
}
