//! The decision.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;
use outrigger_api::access as proto;
use outrigger_api::pattern::Budget;

use crate::facts::{Call, Caller, Carries, Facts, Head};
use crate::jwt::{Cache, Failure, Providers, Tokens};
use crate::policy::Policy;
use crate::remembered::{Forgotten, Judgement, Memory, Remembered, Sent};
use crate::view::{PolicyView, PortView, View};

/// The policies that select a pod, joined. Without any, everybody may call.
#[derive(Debug, Default)]
pub struct Access {
    /// Of policies that select all ports.
    everywhere: Plan,
    /// Of those that select some.
    by_port: HashMap<u16, Plan>,
    providers: Arc<Providers>,
}

/// Policies in the order in which they are asked: by their names, so that of several that refuse it is always the same one.
#[derive(Debug, Default)]
struct Plan {
    deny: Vec<Arc<Policy>>,
    allow: Vec<Arc<Policy>>,
    audited: Vec<Arc<Policy>>,
}

/// What becomes of a request or a connection, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// What becomes of it.
    pub verdict: Verdict<'a>,
    /// It is refused, and a condition on its path was judged by more than one reading of it, or by none.
    pub ambiguous_path: bool,
    /// What policies that are only audited would refuse, each by itself beside those in force, where those let it in.
    pub audit: Vec<Audited<'a>>,
}

/// What becomes of a request or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It comes in: by a rule, or because no exclusive policy selects the port.
    Allowed(Option<By<'a>>),
    /// It brings a token of an enforced policy's provider that is not good, and that comes before all else.
    InvalidToken {
        /// The policy's name.
        policy: &'a str,
        /// The provider's.
        provider: &'a str,
        /// What is wrong with it.
        why: Failure,
    },
    /// A Deny rule refuses it.
    Denied(By<'a>),
    /// An exclusive policy selects the port, and no Allow rule is met.
    Refused {
        /// Its name. Of several, the first by name.
        exclusive: &'a str,
        /// It has no token of a provider whose token could change that.
        wants_token: bool,
    },
}

/// Which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct By<'a> {
    /// "namespace/name".
    pub policy: &'a str,
    /// As the policy names it, or its position.
    pub rule: &'a str,
}

/// What a policy that is only audited would refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audited<'a> {
    /// "namespace/name".
    pub policy: &'a str,
    /// The Deny rule. `None`: the policy is exclusive, and none of its rules is met.
    pub rule: Option<&'a str>,
}

impl Verdict<'_> {
    /// Whether it comes in.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }
}

impl Access {
    /// Compiles what the controller says. Nothing in it is an error: what is faulty is unknown.
    pub fn new(message: &proto::Access) -> Self {
        Self::after(message, &Self::default())
    }

    /// The same of what it says after what it has said before: keys of tokens that it does not know yet, as after a restart, are those
    /// of before where they are fetched from the same place.
    pub fn after(message: &proto::Access, before: &Self) -> Self {
        let mut access = Self {
            providers: Providers::after(message, &before.providers),
            ..Self::default()
        };
        let providers = Arc::clone(&access.providers);
        // Patterns have a budget, for those in force first, and always for the same ones.
        let mut patterns = Budget::default();
        for (policies, audited) in [(&message.enforced, false), (&message.audited, true)] {
            let mut policies: Vec<&proto::Policy> = policies.iter().collect();
            policies.sort_by(|a, b| a.name.cmp(&b.name));
            for message in policies {
                let providers = providers.of(&message.name, !audited);
                let policy = Arc::new(Policy::new(message, providers, &mut patterns));
                match &message.ports {
                    None => access.everywhere.add(policy, audited),
                    Some(ports) => {
                        for port in ports.tcp() {
                            let plan = access.by_port.entry(port).or_default();
                            plan.add(Arc::clone(&policy), audited);
                        }
                    }
                }
            }
        }
        access
    }

    /// Whether there is no policy, for no port.
    pub fn is_empty(&self) -> bool {
        self.everywhere.is_empty() && self.by_port.is_empty()
    }

    /// Whether a policy selects the port, enforced or audited. If not, everybody is let in.
    pub fn selects(&self, port: u16) -> bool {
        !self.everywhere.is_empty() || self.by_port.contains_key(&port)
    }

    /// Whether tokens are looked at in requests to the port.
    pub fn wants_tokens(&self, port: u16) -> bool {
        self.providers.are_for(port)
    }

    /// Verifies the tokens of a request to the port, whose headers are those that the app is to get. Takes away those that claims are
    /// for, sets them from verified claims, and takes away tokens that go no further. Nothing is done where
    /// [`Self::wants_tokens`] says no.
    pub fn authenticate(&self, port: u16, headers: &mut HeaderMap, now: SystemTime, cache: &mut Cache) -> Tokens {
        self.providers.authenticate(port, headers, now, cache)
    }

    /// The policy and the provider whose keys do not have the one that a token names.
    pub fn unknown_key(&self, tokens: &Tokens) -> Option<(&str, &str)> {
        self.providers.unknown_key(tokens)
    }

    /// Whether there is a policy of this name, enforced or audited.
    pub fn has_policy(&self, name: &str) -> bool {
        let plans = self.by_port.values().chain([&self.everywhere]);
        plans.flat_map(Plan::policies).any(|policy| *policy.name == *name)
    }

    /// Decides. Nothing is allocated where an audited policy has nothing to say and the path is plain, and no pattern runs whose rule
    /// is not about the caller.
    pub fn decide<'a>(&'a self, facts: &Facts<'_>) -> Decision<'a> {
        let call = Call::new(facts, &self.providers);
        let verdict = self.verdict(&call);
        let ambiguous_path = !verdict.is_allowed() && call.met_ambiguity();
        Decision {
            verdict,
            ambiguous_path,
            audit: self.audit(&call, &verdict),
        }
    }

    /// What the policies come to, for people.
    pub fn view(&self) -> View {
        let plans = self.by_port.values().chain([&self.everywhere]);
        let named = plans.flat_map(Plan::policies).flat_map(|policy| policy.ports());
        let ports: BTreeSet<u16> = self.by_port.keys().copied().chain(named).collect();
        View {
            ports: ports.into_iter().map(|port| self.view_of(Some(port))).collect(),
            others: self.view_of(None),
            providers: self.providers.views(),
        }
    }

    fn view_of(&self, port: Option<u16>) -> PortView {
        let by_port = port.and_then(|port| self.by_port.get(&port));
        let plans = || std::iter::once(&self.everywhere).chain(by_port);
        let views = |policies: &mut dyn Iterator<Item = &Arc<Policy>>| -> Vec<PolicyView> {
            policies.map(|policy| policy.view(port)).collect()
        };
        let deny = plans().flat_map(|plan| &plan.deny);
        let allow = plans().flat_map(|plan| &plan.allow);
        PortView {
            port,
            enforced: views(&mut deny.chain(allow)),
            audited: views(&mut plans().flat_map(|plan| &plan.audited)),
        }
    }

    /// What would become of calls of which not everything is known any more, whatever policies were in force then.
    pub fn judge(&self, calls: &Remembered<'_>) -> Judgement<'_> {
        let (headers, tokens) = (HeaderMap::new(), Tokens::NONE);
        let (carries, knows_method) = match calls.sent {
            Sent::Bytes => (Carries::Bytes, false),
            Sent::Http(method) => {
                let head = Head {
                    method: method.unwrap_or_default(),
                    path: "",
                    host: "",
                    headers: &headers,
                    tokens: &tokens,
                };
                (Carries::Http(head), method.is_some())
            }
        };
        let facts = Facts {
            port: calls.port,
            caller: Caller {
                identity: calls.identity,
                address: None,
            },
            carries,
        };
        let at_worst = Call::remembered(&facts, &self.providers, Memory::new(knows_method, false));
        if self.verdict(&at_worst).is_allowed() {
            // A token that is not good is refused also where no rule asks for one.
            return match matches!(calls.sent, Sent::Http(_)) && self.providers.may_refuse(calls.port) {
                true => Judgement::Unknown(Forgotten::TOKEN),
                false => Judgement::LetIn,
            };
        }
        let at_best = Call::remembered(&facts, &self.providers, Memory::new(knows_method, true));
        match self.verdict(&at_best) {
            Verdict::Allowed(_) => Judgement::Unknown(at_worst.forgotten().and(at_best.forgotten())),
            Verdict::Denied(By { policy, rule }) => Judgement::Refused {
                policy,
                rule: Some(rule),
            },
            Verdict::Refused { exclusive: policy, .. } | Verdict::InvalidToken { policy, .. } => {
                Judgement::Refused { policy, rule: None }
            }
        }
    }

    fn verdict<'a>(&'a self, call: &Call<'_>) -> Verdict<'a> {
        let matching = |policy: &'a Arc<Policy>| {
            let rule = policy.matching(call)?;
            Some(By {
                policy: &policy.name,
                rule,
            })
        };
        let refused = call.head().and_then(|head| self.providers.refusing(head.tokens));
        if let Some((policy, provider, why)) = refused {
            return Verdict::InvalidToken { policy, provider, why };
        }
        if let Some(by) = self.plans(call).flat_map(|plan| &plan.deny).find_map(matching) {
            return Verdict::Denied(by);
        }
        let allowing = || self.plans(call).flat_map(|plan| &plan.allow);
        if let Some(by) = allowing().find_map(matching) {
            return Verdict::Allowed(Some(by));
        }
        match allowing().find(|policy| policy.exclusive) {
            Some(policy) => Verdict::Refused {
                exclusive: &policy.name,
                wants_token: call.head().is_some() && {
                    let with_tokens = call.with_tokens();
                    // A rule asks for tokens of its own policy's providers, and few policies have any.
                    let mut asking = allowing().filter(|policy| policy.has_providers);
                    asking.any(|policy| policy.matching(&with_tokens).is_some())
                },
            },
            None => Verdict::Allowed(None),
        }
    }

    fn audit<'a>(&'a self, call: &Call<'_>, verdict: &Verdict<'a>) -> Vec<Audited<'a>> {
        let Verdict::Allowed(by) = verdict else {
            return Vec::new();
        };
        let audited = self.plans(call).flat_map(|plan| &plan.audited);
        let refusals = audited.filter_map(|policy| {
            let rule = policy.matching(call);
            let refuses = match policy.deny {
                true => rule.is_some(),
                false => policy.exclusive && rule.is_none() && by.is_none(),
            };
            refuses.then_some(Audited {
                policy: &policy.name,
                rule,
            })
        });
        refusals.collect()
    }

    fn plans(&self, call: &Call<'_>) -> impl Iterator<Item = &Plan> {
        std::iter::once(&self.everywhere).chain(self.by_port.get(&call.facts.port))
    }
}

impl Plan {
    fn add(&mut self, policy: Arc<Policy>, audited: bool) {
        let list = match (audited, policy.deny) {
            (true, _) => &mut self.audited,
            (false, true) => &mut self.deny,
            (false, false) => &mut self.allow,
        };
        // A port may be written twice.
        if !list.last().is_some_and(|last| Arc::ptr_eq(last, &policy)) {
            list.push(policy);
        }
    }

    fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.deny.iter().chain(&self.allow).chain(&self.audited)
    }

    fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty() && self.audited.is_empty()
    }
}
