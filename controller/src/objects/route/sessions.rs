//! `sessionPersistence` of a rule (Gateway API's experimental channel, GEP-1619).

use outrigger_api::discovery as proto;
use outrigger_api::policy::{CookieConfigSpec, CookieLifetime, SessionPersistenceSpec, SessionPersistenceType};

use super::spec;

/// As sidecars are told of it, without the key. `None`: it is not understood, and the rule is without sessions; `problems` has why.
pub(super) fn sessions(
    at: &str,
    said: spec::SessionPersistenceSpec,
    problems: &mut Vec<String>,
) -> Option<proto::SessionPersistence> {
    let at = format!("{at}.sessionPersistence");
    if said.idle_timeout.is_some() {
        // GEP-1619 has it no more: a proxy that keeps no state cannot know it.
        problems.push(format!(
            "{at}.idleTimeout: a session ends by absoluteTimeout, or with its endpoint; the rule is without an idle timeout"
        ));
    }
    let before = problems.len();
    let mut one_of = |field: &str, value: String| {
        problems.push(format!(
            "{at}.{field}: {value:?} is not known; the rule keeps no sessions"
        ));
    };
    let kind = said.type_.and_then(|kind| match kind.as_str() {
        "Cookie" => Some(SessionPersistenceType::Cookie),
        "Header" => Some(SessionPersistenceType::Header),
        _ => {
            one_of("type", kind);
            None
        }
    });
    let cookie_config = said.cookie_config.map(|config| CookieConfigSpec {
        lifetime_type: config.lifetime_type.and_then(|lifetime| match lifetime.as_str() {
            "Session" => Some(CookieLifetime::Session),
            "Permanent" => Some(CookieLifetime::Permanent),
            _ => {
                one_of("cookieConfig.lifetimeType", lifetime);
                None
            }
        }),
    });
    let spec = SessionPersistenceSpec {
        kind,
        session_name: said.session_name,
        absolute_timeout: said.absolute_timeout,
        cookie_config,
    };
    let told = spec.to_proto(&at, problems);
    (problems.len() == before).then_some(told)
}
