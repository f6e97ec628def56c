//! A policy, compiled.

use outrigger_api::access as proto;
use outrigger_api::access::condition;
use outrigger_api::pattern::Budget;

use crate::effect::{Effect, Faulty};
use crate::facts::Call;
use crate::http_match::HttpMatches;
use crate::jwt::ProvidersOf;
use crate::source::Sources;
use crate::view::{ALLOW, DENY, PolicyView, RuleView};

#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) name: Box<str>,
    /// Else it allows.
    pub(crate) deny: bool,
    /// Of one that allows.
    pub(crate) exclusive: bool,
    /// Its rules may ask for tokens.
    pub(crate) has_providers: bool,
    rules: Box<[Rule]>,
}

#[derive(Debug)]
struct Rule {
    name: Box<str>,
    /// All of them. None, as in a Deny rule that this version does not understand: it is met by whatever comes.
    conditions: Box<[Condition]>,
}

#[derive(Debug)]
pub(crate) enum Condition {
    Ports(Box<[u16]>),
    Sources(Sources),
    Http(HttpMatches),
}

impl Policy {
    pub(crate) fn new(message: &proto::Policy, providers: ProvidersOf<'_>, patterns: &mut Budget) -> Self {
        let rules = message
            .rules
            .iter()
            .filter_map(|rule| Rule::new(rule, message.deny, providers, patterns));
        Self {
            name: message.name.as_str().into(),
            deny: message.deny,
            exclusive: !message.deny && message.exclusive,
            has_providers: !message.providers.is_empty(),
            rules: rules.collect(),
        }
    }

    /// The name of the first rule that is met.
    pub(crate) fn matching(&self, call: &Call<'_>) -> Option<&str> {
        let effect = effect_of(self.deny);
        let is_met = |rule: &&Rule| rule.conditions.iter().all(|one| one.is_met(call, effect));
        self.rules.iter().find(is_met).map(|rule| &*rule.name)
    }

    /// The ports that its rules name.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        let conditions = self.rules.iter().flat_map(|rule| &rule.conditions);
        let named = conditions.filter_map(|condition| match condition {
            Condition::Ports(ports) => Some(ports),
            _ => None,
        });
        named.flatten().copied()
    }

    /// What it comes to at a port; `None`: at one that no rule names.
    pub(crate) fn view(&self, port: Option<u16>) -> PolicyView {
        let action = if self.deny { DENY } else { ALLOW };
        PolicyView {
            name: self.name.to_string(),
            action: action.to_owned(),
            exclusive: self.exclusive,
            rules: self.rules.iter().filter_map(|rule| rule.view(port)).collect(),
        }
    }
}

impl Rule {
    /// `None`: nobody meets it.
    fn new(message: &proto::Rule, deny: bool, providers: ProvidersOf<'_>, patterns: &mut Budget) -> Option<Self> {
        let effect = effect_of(deny);
        let condition = |one: &proto::Condition| Condition::new(one, effect, providers, patterns);
        let conditions = effect.all_of(&message.conditions, condition);
        let mut conditions = match (conditions, deny) {
            (Ok(conditions), _) => conditions,
            (Err(Faulty), false) => return None,
            (Err(Faulty), true) => Box::default(),
        };
        // What costs least is asked first.
        conditions.sort_by_key(|condition| match condition {
            Condition::Ports(_) => 0,
            Condition::Sources(_) => 1,
            Condition::Http(_) => 2,
        });
        Some(Self {
            name: message.name.as_str().into(),
            conditions,
        })
    }

    /// `None`: it is about other ports.
    fn view(&self, port: Option<u16>) -> Option<RuleView> {
        let mut view = RuleView {
            name: self.name.to_string(),
            sources: Vec::new(),
            http: Vec::new(),
        };
        for condition in &self.conditions {
            match condition {
                Condition::Ports(ports) if port.is_some_and(|port| ports.contains(&port)) => {}
                Condition::Ports(_) => return None,
                Condition::Sources(sources) => view.sources.push(sources.texts()),
                Condition::Http(http) => view.http = http.texts(),
            }
        }
        Some(view)
    }
}

impl Condition {
    pub(crate) fn new(
        message: &proto::Condition,
        effect: Effect,
        providers: ProvidersOf<'_>,
        patterns: &mut Budget,
    ) -> Result<Self, Faulty> {
        match message.kind.as_ref().ok_or(Faulty)? {
            condition::Kind::Ports(ports) => Ok(Self::Ports(ports.tcp().collect())),
            condition::Kind::Sources(sources) => Sources::new(sources, effect, providers).map(Self::Sources),
            condition::Kind::Http(http) => HttpMatches::new(http, effect, patterns).map(Self::Http),
        }
    }

    pub(crate) fn is_met(&self, call: &Call<'_>, effect: Effect) -> bool {
        match self {
            Self::Ports(ports) => ports.contains(&call.facts.port),
            Self::Sources(sources) => sources.are_met(call, effect),
            Self::Http(http) => http.are_met(call, effect),
        }
    }
}

fn effect_of(deny: bool) -> Effect {
    if deny { Effect::Deny } else { Effect::Allow }
}
