//! The end of a decision for which stores were asked.

use std::time::Duration;

use crate::asking::{Match, Open, given_back};
use crate::decide::{Limiter, Outcome, Shown, Tables, micros};
use crate::plan::Plan;
use crate::store::{Answer, Ask, OnFailure};

/// Of a decision, with the buckets as they are now: policies may have changed since it began.
struct Settling<'a> {
    plan: &'a Plan,
    newest: &'a Plan,
    tables: &'a mut Tables,
    answers: &'a [Answer],
    now: u64,
}

/// What a group comes to.
#[derive(Default)]
struct Judged {
    /// The limit that has to be waited for longest.
    refused: Option<(usize, u64)>,
    /// One that refuses because its store has not answered.
    unavailable: Option<usize>,
    /// Those whose store has not.
    unanswered: Vec<usize>,
}

impl Limiter {
    /// Decides, by what stores have said to [`Outcome::asks`], of each in their order. Gives what has to be given back to them: nobody waits
    /// for the answer.
    pub fn settle(&self, outcome: &mut Outcome, answers: &[Answer], now: Duration) -> Vec<Ask> {
        let Some(mut open) = outcome.open.take() else {
            return Vec::new();
        };
        let mut tables = self.tables.lock();
        // Under the lock: the two belong together.
        let newest = self.plan.load();
        let mut settling = Settling {
            plan: &outcome.plan,
            newest: &newest,
            tables: &mut tables,
            answers,
            now: micros(now),
        };
        let mut groups = open.groups.iter_mut();
        // There is one, whatever it has.
        let enforced = groups.next().map(|group| {
            let judged = settling.judge(group);
            settling.end(group, judged.is_refused());
            let shown = settling.shown(group);
            (judged, shown)
        });
        let (enforced, shown) = enforced.unwrap_or_default();
        let is_refused = enforced.is_refused();
        // Of what stores have taken for policies that only count, what they would have refused has taken nothing.
        let mut refused = Vec::new();
        for (n, group) in groups.enumerate() {
            let judged = match open.refused[n + 1] {
                Some(already) => {
                    refused.push(n + 1);
                    Judged {
                        refused: Some(already),
                        ..Judged::default()
                    }
                }
                None => settling.judge(group),
            };
            settling.end(group, is_refused || judged.is_refused());
            if !is_refused {
                outcome.shadows.extend(judged.by());
            }
        }
        drop(tables);
        outcome.refused = enforced.refused;
        outcome.unavailable = enforced.unavailable.filter(|_| enforced.refused.is_none());
        outcome.unanswered = enforced.unanswered;
        outcome.shown = shown;
        given_back(&open.asks, answers, |group| is_refused || refused.contains(&group))
    }
}

impl Judged {
    fn is_refused(&self) -> bool {
        self.refused.is_some() || self.unavailable.is_some()
    }

    fn by(&self) -> Option<usize> {
        self.refused.map(|(limit, _)| limit).or(self.unavailable)
    }
}

impl Settling<'_> {
    /// Of what the pod counts itself, all has been taken.
    fn judge(&mut self, group: &[Match]) -> Judged {
        let mut judged = Judged::default();
        for m in group {
            let Some(asked) = m.asked else { continue };
            let wait = match Open::answer(self.answers, asked) {
                Some(state) => state.wait,
                None => {
                    judged.unanswered.push(m.limit);
                    match self.on_failure(m) {
                        OnFailure::Allow => 0,
                        OnFailure::Deny => {
                            judged.unavailable.get_or_insert(m.limit);
                            0
                        }
                        OnFailure::Local => self
                            .table(m)
                            .map_or(0, |n| self.tables.all[n].state(&m.wish, self.now).wait),
                    }
                }
            };
            if wait > judged.refused.map_or(0, |(_, longest)| longest) {
                judged.refused = Some((m.limit, wait));
            }
        }
        judged
    }

    /// Takes what is counted here in the place of a store, or gives back what was taken.
    fn end(&mut self, group: &mut [Match], is_refused: bool) {
        for m in group {
            let Some(n) = self.table(m) else { continue };
            let table = &mut self.tables.all[n];
            match (is_refused, m.taken) {
                (true, Some(taken)) => table.give_back(&m.wish, taken, self.now),
                (false, None) if self.is_local(m) => drop(self.tables.all[n].take(&m.wish, self.now)),
                _ => {}
            }
        }
    }

    fn shown(&mut self, group: &[Match]) -> Option<Shown> {
        let mut shown = Vec::new();
        for m in group {
            if self.plan.policy_of(&self.plan.limits[m.limit]).headers.is_none() {
                continue;
            }
            let answer = m.asked.and_then(|asked| Open::answer(self.answers, asked));
            let own = match answer {
                None if m.asked.is_none() || self.is_local(m) => self.table(m),
                _ => None,
            };
            let own = own.map(|n| self.tables.all[n].state(&m.wish, self.now));
            shown.extend(answer.or(own).map(|state| Shown {
                limit: m.limit,
                rate: m.wish.rate,
                whole: answer.is_some(),
                state,
            }));
        }
        shown.into_iter().min_by_key(Shown::order)
    }

    /// Whether it is counted here in the place of its store.
    fn is_local(&self, m: &Match) -> bool {
        let unanswered = m.asked.is_some_and(|asked| Open::answer(self.answers, asked).is_none());
        unanswered && self.on_failure(m) == OnFailure::Local
    }

    fn on_failure(&self, m: &Match) -> OnFailure {
        self.plan.policy_of(&self.plan.limits[m.limit]).on_failure
    }

    /// Where its buckets are by now.
    fn table(&self, m: &Match) -> Option<usize> {
        let n = match self.newest.version == self.plan.version {
            true => m.limit,
            false => self.newest.find(self.plan, &self.plan.limits[m.limit])?,
        };
        self.tables.all.get(n)?.knows(&m.wish).then_some(n)
    }
}
