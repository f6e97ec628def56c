//! Which faults of a TrafficPolicy have ended. Sidecars see it themselves; this is for who reads the policy.

use outrigger_api::discovery as proto;

/// In words, at `now` in seconds since 1970. `None`: none has.
pub(super) fn ended(policy: &proto::Policy, now: u64) -> Option<String> {
    let faults = policy.faults.as_ref()?;
    // As sidecars have it: at that time it is over.
    let ended = faults.in_order.iter().enumerate();
    let ended = ended.filter(|(_, fault)| fault.until_unix_seconds.is_some_and(|until| until <= now));
    let ended: Vec<_> = ended.map(|(n, _)| format!("faults[{n}]")).collect();
    match (ended.len(), faults.in_order.len()) {
        (0, _) => None,
        (1, 1) => Some("its fault has ended".to_owned()),
        (count, all) if count == all => Some("all its faults have ended".to_owned()),
        _ => Some(format!("of its faults these have ended: {}", ended.join(", "))),
    }
}
