//! What stores have to be asked about a request, and what they have to be given back.

use outrigger_access::Facts;

use crate::bucket::Rate;
use crate::key;
use crate::plan::{Limit, Plan, Policy};
use crate::store::{Answer, Ask, Entry, State};
use crate::table::{Taken, Wish};

/// A limit that a request matches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Match {
    pub(crate) limit: usize,
    pub(crate) wish: Wish,
    /// Where it is in what stores are asked: which of them, and which entry. `None`: the pod counts it itself.
    pub(crate) asked: Option<(usize, usize)>,
    /// What has given, if something has.
    pub(crate) taken: Option<Taken>,
}

/// What a request waits for.
#[derive(Debug)]
pub(crate) struct Open {
    /// Those that are enforced, and then each policy that only counts.
    pub(crate) groups: Vec<Vec<Match>>,
    pub(crate) asks: Vec<Ask>,
    /// Of each group, the limit that a bucket of the pod refuses already, and for how long.
    pub(crate) refused: Vec<Option<(usize, u64)>>,
}

impl Entry {
    fn new(policy: &Policy, limit: &Limit, rates: &[Rate], wish: &Wish, group: usize, facts: &Facts<'_>) -> Self {
        let rate = rates[wish.rate];
        let hash = u128::from_be_bytes(key::of_all_pods(&limit.per, wish.rate, facts));
        Self {
            // No name has a colon in it.
            key: format!("outrigger:limit:{}:{}:{hash:032x}", policy.name, limit.name),
            group,
            // At most the capacity, which is below 10^17.
            units: rate.units(wish.tokens) as i64,
            token: rate.token,
            gives: rate.per_micro,
            holds: rate.capacity,
        }
    }

    /// The opposite, whatever else there is.
    fn given_back(&self) -> Self {
        Self {
            group: 0,
            units: -self.units,
            ..self.clone()
        }
    }
}

impl Open {
    /// What stores have to be asked about these groups. `None`: nothing.
    pub(crate) fn new(plan: &Plan, mut groups: Vec<Vec<Match>>, facts: &Facts<'_>) -> Option<Self> {
        let mut asks: Vec<Ask> = Vec::new();
        for (group, matches) in groups.iter_mut().enumerate() {
            for m in matches {
                let limit = &plan.limits[m.limit];
                let policy = plan.policy_of(limit);
                let (Some(rates), Some(store)) = (&limit.global, &policy.store) else {
                    continue;
                };
                let entry = Entry::new(policy, limit, rates, &m.wish, group, facts);
                let same = asks.iter().position(|ask| ask.store.address == store.address);
                let n = same.unwrap_or(asks.len());
                if same.is_none() {
                    let (store, entries) = (store.clone(), Vec::new());
                    asks.push(Ask { store, entries });
                }
                let ask = &mut asks[n];
                ask.store.timeout = ask.store.timeout.min(store.timeout);
                m.asked = Some((n, ask.entries.len()));
                ask.entries.push(entry);
            }
        }
        let refused = vec![None; groups.len()];
        (!asks.is_empty()).then_some(Self { groups, asks, refused })
    }

    /// What is known of a limit that is counted in a store. `None`: the store has not answered.
    pub(crate) fn answer(answers: &[Answer], at: (usize, usize)) -> Option<State> {
        answers.get(at.0)?.as_ref()?.get(at.1).copied()
    }
}

/// What has to be given back of what stores have taken: of enforced limits, or of policies that only count, or both.
pub(crate) fn given_back(asks: &[Ask], answers: &[Answer], groups: impl Fn(usize) -> bool) -> Vec<Ask> {
    let of_ask = |(ask, answer): (&Ask, &Answer)| {
        let states = answer.as_ref()?;
        let refuses = |group: usize| {
            let mut all = ask.entries.iter().zip(states);
            all.any(|(entry, state)| entry.group == group && state.wait > 0)
        };
        let has_taken = |entry: &&Entry| groups(entry.group) && !refuses(0) && !refuses(entry.group);
        let entries: Vec<Entry> = ask.entries.iter().filter(has_taken).map(Entry::given_back).collect();
        let store = ask.store.clone();
        (!entries.is_empty()).then_some(Ask { store, entries })
    };
    asks.iter().zip(answers).filter_map(of_ask).collect()
}
