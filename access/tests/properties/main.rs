//! What holds of every decision, whatever the policies: each property over thousands of policies and requests from seeds.

#![allow(clippy::unwrap_used)]

mod generator;

use std::collections::HashMap;

use outrigger_access::remembered::{Judgement, Remembered, Sent};
use outrigger_access::{Access, Carries, Verdict};
use outrigger_api::access as proto;
use outrigger_api::access::{condition, http_condition};
use rand::rngs::SmallRng;
use rand::seq::{IndexedMutRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use self::generator::{Generator, PLAIN, PORTS, Request};

const SEEDS: u64 = 5_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    AllowedBy,
    AllowedByNone,
    Denied,
    Refused,
}

impl Kind {
    fn is_allowed(self) -> bool {
        matches!(self, Self::AllowedBy | Self::AllowedByNone)
    }
}

fn decide(message: &proto::Access, request: &Request) -> Kind {
    match Access::new(message).decide(&request.facts()).verdict {
        Verdict::Allowed(Some(_)) => Kind::AllowedBy,
        Verdict::Allowed(None) => Kind::AllowedByNone,
        Verdict::Denied(_) => Kind::Denied,
        Verdict::Refused { .. } => Kind::Refused,
        Verdict::InvalidToken { .. } => panic!("no request has a token"),
    }
}

/// How often what happened.
#[derive(Default)]
struct Seen(HashMap<String, u32>);

impl Seen {
    fn note(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    /// A property that is never put to the test says nothing.
    fn at_least(&self, least: u32, what: &[&str]) {
        for what in what {
            let seen = self.0.get(*what).copied().unwrap_or_default();
            assert!(seen >= least, "{what}: {seen} of {:?}", self.0);
        }
    }
}

/// A property of policies, a request, and what is made of them.
fn for_all(mut property: impl FnMut(&mut Generator<'_>, &proto::Access, &Request, Kind, &mut Seen)) -> Seen {
    let mut seen = Seen::default();
    for seed in 0..SEEDS {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut generator = Generator(&mut rng);
        let access = generator.access();
        let request = generator.request();
        let kind = decide(&access, &request);
        seen.note(format!("{kind:?}"));
        property(&mut generator, &access, &request, kind, &mut seen);
    }
    seen.at_least(400, &["AllowedBy", "AllowedByNone", "Denied", "Refused"]);
    seen
}

#[test]
fn a_deny_policy_more_lets_nobody_in() {
    let seen = for_all(|generator, access, request, before, seen| {
        let mut more = access.clone();
        more.enforced.push(proto::Policy {
            name: format!("shop/{}", generator.pick(&["", "z"])),
            deny: true,
            ..generator.policy()
        });
        let after = decide(&more, request);
        assert!(before.is_allowed() || !after.is_allowed(), "{request:#?} {more:#?}");
        if before.is_allowed() && !after.is_allowed() {
            seen.note("refused now");
        }
    });
    seen.at_least(100, &["refused now"]);
}

#[test]
fn an_allow_policy_more_changes_nothing_that_is_denied() {
    let seen = for_all(|generator, access, request, before, seen| {
        let mut more = access.clone();
        more.enforced.push(proto::Policy {
            name: format!("shop/{}", generator.pick(&["", "z"])),
            deny: false,
            ..generator.policy()
        });
        let after = decide(&more, request);
        assert!(
            before != Kind::Denied || after == Kind::Denied,
            "{request:#?} {more:#?}"
        );
        // One that is not exclusive closes nothing.
        more.enforced.last_mut().unwrap().exclusive = false;
        let after = decide(&more, request);
        assert!(!before.is_allowed() || after.is_allowed(), "{request:#?} {more:#?}");
        if before == Kind::Refused && after == Kind::AllowedBy {
            seen.note("allowed now");
        }
    });
    seen.at_least(40, &["allowed now"]);
}

#[test]
fn the_order_changes_nothing() {
    for_all(|generator, access, request, before, _| {
        let mut other = access.clone();
        shuffle(&mut other, generator.0);
        assert_eq!(decide(&other, request), before, "{request:#?} {access:#?} {other:#?}");
    });
}

/// Of policies, rules, conditions and alternatives.
fn shuffle(access: &mut proto::Access, rng: &mut SmallRng) {
    access.enforced.shuffle(rng);
    for policy in &mut access.enforced {
        policy.rules.shuffle(rng);
        for rule in &mut policy.rules {
            rule.conditions.shuffle(rng);
            for condition in &mut rule.conditions {
                match &mut condition.kind {
                    Some(condition::Kind::Sources(sources)) => sources.any.shuffle(rng),
                    Some(condition::Kind::Ports(ports)) => ports.numbers.shuffle(rng),
                    Some(condition::Kind::Http(http)) => {
                        http.any.shuffle(rng);
                        http.any.iter_mut().for_each(|one| one.all.shuffle(rng));
                    }
                    None => {}
                }
            }
        }
    }
}

#[test]
fn what_is_audited_takes_no_part() {
    let seen = for_all(|generator, access, request, before, seen| {
        let mut other = access.clone();
        other.audited.clear();
        assert_eq!(decide(&other, request), before, "{request:#?} {access:#?}");
        // And what it says is what it would do.
        let audited = proto::Policy {
            name: "shop/audited".to_owned(),
            ..generator.policy()
        };
        other.audited.push(audited.clone());
        let compiled = Access::new(&other);
        let would_refuse = !compiled.decide(&request.facts()).audit.is_empty();
        other.audited.clear();
        other.enforced.push(audited);
        let enforced = decide(&other, request);
        assert_eq!(
            would_refuse,
            before.is_allowed() && !enforced.is_allowed(),
            "{request:#?} {other:#?}"
        );
        if would_refuse {
            seen.note("would refuse");
        }
    });
    seen.at_least(400, &["would refuse"]);
}

/// In which part of a policy something becomes unknown.
fn forget(policy: &mut proto::Policy, rng: &mut SmallRng) -> Option<()> {
    let rule = policy.rules.choose_mut(rng)?;
    let condition = rule.conditions.choose_mut(rng)?;
    let depth = rng.random_range(0..3);
    match &mut condition.kind {
        Some(condition::Kind::Sources(sources)) if depth > 0 => sources.any.choose_mut(rng)?.kind = None,
        Some(condition::Kind::Http(http)) if depth > 0 => {
            let one = http.any.choose_mut(rng)?.all.choose_mut(rng)?;
            match &mut one.kind {
                Some(http_condition::Kind::Paths(paths)) if depth > 1 => paths.any.choose_mut(rng)?.kind = None,
                Some(http_condition::Kind::Header(header)) if depth > 1 => header.value = None,
                kind => *kind = None,
            }
        }
        kind => *kind = None,
    }
    Some(())
}

#[test]
fn what_is_not_known_makes_allow_narrower_and_deny_wider() {
    let seen = for_all(|generator, access, request, before, seen| {
        for deny in [false, true] {
            let mut other = access.clone();
            let of_action = other.enforced.iter_mut().filter(|policy| policy.deny == deny);
            for policy in of_action {
                forget(policy, generator.0);
            }
            let after = decide(&other, request);
            assert!(before.is_allowed() || !after.is_allowed(), "{request:#?} {other:#?}");
            if deny {
                assert!(
                    before != Kind::Denied || after == Kind::Denied,
                    "{request:#?} {other:#?}"
                );
            }
            if before != after {
                seen.note(format!("{before:?} {after:?}"));
            }
        }
    });
    seen.at_least(20, &["AllowedBy Refused", "AllowedBy Denied", "AllowedByNone Denied"]);
    assert!(!seen.0.contains_key("Refused AllowedBy"), "{:?}", seen.0);
}

#[test]
fn without_a_condition_a_rule_is_wider() {
    let seen = for_all(|generator, access, request, before, seen| {
        let mut other = access.clone();
        let Some(policy) = other.enforced.choose_mut(generator.0) else {
            return;
        };
        let deny = policy.deny;
        let Some(rule) = policy.rules.iter_mut().find(|rule| rule.conditions.len() > 1) else {
            return;
        };
        let at = generator.0.random_range(0..rule.conditions.len());
        rule.conditions.remove(at);
        let after = decide(&other, request);
        match deny {
            true => assert!(
                before != Kind::Denied || after == Kind::Denied,
                "{request:#?} {access:#?}"
            ),
            false => assert!(!before.is_allowed() || after.is_allowed(), "{request:#?} {access:#?}"),
        }
        if before != after {
            seen.note(format!("{deny}"));
        }
    });
    seen.at_least(20, &["true", "false"]);
}

/// Whoever may send bytes may send whatever request: so nobody gets round a rule about HTTP by not speaking it.
#[test]
fn bytes_come_in_only_where_every_request_does() {
    let seen = for_all(|generator, access, request, _, seen| {
        if !decide(access, &request.as_bytes()).is_allowed() {
            return;
        }
        let compiled = Access::new(access);
        for _ in 0..10 {
            let head = request.at(&generator.request().path);
            assert!(
                compiled.decide(&head.facts()).verdict.is_allowed(),
                "{head:#?} {access:#?}"
            );
        }
        if compiled.selects(request.port) {
            seen.note("bytes");
        }
    });
    seen.at_least(200, &["bytes"]);
}

/// However a path is written, it comes in only where what an app may take it for does.
#[test]
fn no_spelling_of_a_path_comes_in_where_the_path_does_not() {
    let seen = for_all(|generator, access, request, _, seen| {
        let about_paths = generator.about_paths();
        let access = if generator.one_in(4) { access } else { &about_paths };
        let plain = generator.pick(&PLAIN);
        let spelled = spell(plain, generator);
        let of = |path: &str| decide(access, &request.at(path));
        let (of_plain, of_spelled) = (of(plain), of(&spelled));
        assert!(
            of_plain.is_allowed() || !of_spelled.is_allowed(),
            "{spelled} for {plain}: {request:#?} {access:#?}"
        );
        seen.note(match (of_plain.is_allowed(), of_spelled.is_allowed()) {
            (true, true) => "both",
            (false, _) => "neither",
            (true, false) => "only the path itself",
        });
    });
    seen.at_least(1000, &["both", "neither"]);
    seen.at_least(300, &["only the path itself"]);
}

/// What one server or another takes for the path.
fn spell(path: &str, generator: &mut Generator<'_>) -> String {
    let mut spelled = path.to_owned();
    for _ in 0..generator.0.random_range(1..4) {
        let at = generator.0.random_range(0..spelled.len());
        let slash = spelled.rfind('/').unwrap_or(0);
        let next = spelled.as_bytes()[at];
        spelled = match generator.0.random_range(0..9) {
            // An encoded slash at the beginning would leave no path.
            0..3 if at > 0 => format!("{}%{next:02x}{}", &spelled[..at], &spelled[at + 1..]),
            3 => format!("{}/.{}", &spelled[..slash], &spelled[slash..]),
            4 => format!("{}/b/..{}", &spelled[..slash], &spelled[slash..]),
            5 => format!("{}/{}", &spelled[..slash], &spelled[slash..]),
            6 => format!("{};x=1{}", &spelled[..slash], &spelled[slash..]),
            7 => format!("{spelled};x"),
            8 => format!("{}/%2e{}", &spelled[..slash], &spelled[slash..]),
            _ => spelled,
        };
    }
    spelled
}

#[test]
fn where_no_policy_is_everybody_comes_in() {
    for_all(|_, access, request, kind, _| {
        let compiled = Access::new(access);
        if !compiled.selects(request.port) {
            assert_eq!(kind, Kind::AllowedByNone, "{request:#?} {access:#?}");
        }
        let some = PORTS.iter().any(|&port| compiled.selects(port));
        assert!(!(some && compiled.is_empty()), "{access:#?}");
    });
    let none = Access::default();
    assert!(none.is_empty() && !none.selects(80));
}

/// Whatever it was that nobody remembers: what is judged has become of the call, or could not be told.
#[test]
fn what_is_judged_of_a_call_that_is_gone_is_what_has_become_of_it() {
    let seen = for_all(|_, access, request, kind, seen| {
        let access = Access::new(access);
        let facts = request.facts();
        for knows_method in [true, false] {
            let calls = Remembered {
                port: facts.port,
                identity: facts.caller.identity,
                sent: match &facts.carries {
                    Carries::Bytes => Sent::Bytes,
                    Carries::Http(head) => Sent::Http(knows_method.then_some(head.method)),
                },
            };
            let judged = access.judge(&calls);
            let is_so = match &judged {
                Judgement::LetIn => kind.is_allowed(),
                Judgement::Refused { .. } => !kind.is_allowed(),
                Judgement::Unknown(forgotten) => !forgotten.to_string().is_empty(),
            };
            assert!(is_so, "{kind:?}, and {judged:?}: {request:#?} {access:#?}");
            seen.note(match judged {
                Judgement::LetIn => "let in",
                Judgement::Refused { .. } => "refused",
                Judgement::Unknown(_) => "unknown",
            });
        }
    });
    seen.at_least(1000, &["let in", "refused", "unknown"]);
}
