//! The soak: traffic of every kind through real sidecars, while replicas, network and controller fail at random.
//!
//! Everything is on loopback and needs no root: the sidecars are processes of their own, configured as the injector does
//! it; apps, clients, the controller and the failing network live in the process of the soak. A [`verdict`] says of each
//! request whether it may have failed, and at the end each sidecar must hold no more than at its beginning.
//!
//! The seed makes the schedules of faults and the requests; when something happens also depends on how long processes
//! take.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod app;
mod control;
mod faults;
mod leaks;
mod ledger;
mod port;
mod relay;
mod report;
mod sidecar;
mod traffic;
mod verdict;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use report::Report;
pub use sidecar::{Listeners, be_sidecar};

use faults::{Fault, Schedule};
use report::Tally;
use traffic::{Call, Client};
use verdict::{Kind, Outcome, Verdict, WRONG, judge};
use world::World;

/// Requests at one time; beyond it the next waits, and the soak's own memory is bounded.
const AT_ONCE: usize = 500;
/// Forbidden failures that are told in detail.
const CASES: usize = 10;
/// A run that is shorter has its faults one soon after the other, and does not wait until idle connections are closed.
const LONG: Duration = Duration::from_secs(300);

/// Soaks a mesh for `length` with `rate` requests a second, 1 to 1000. It must be called on the main thread, on a current-thread runtime.
///
/// # Errors
/// When the mesh does not start: then there is no report.
pub async fn soak(length: Duration, rate: u32, seed: u64) -> Result<Report> {
    let long = length >= LONG;
    let world = World::start().await?;
    let mut clients = Vec::new();
    for sidecar in &world.clients {
        clients.push(Arc::new(Client::new(sidecar.listeners())));
    }
    let mut run = Run {
        random: SmallRng::seed_from_u64(seed),
        next_id: 1,
        clients,
        tallies: BTreeMap::new(),
        cases: Vec::new(),
        performing: JoinSet::new(),
        world,
    };
    run.first_calls().await?;

    let stop = CancellationToken::new();
    let mut lanes = JoinSet::new();
    let gap = Duration::from_millis(if long { 4_000 } else { 1_000 });
    for (lane, faults) in [&Fault::OF_REPLICAS[..], &Fault::OF_THE_NETWORK]
        .into_iter()
        .enumerate()
    {
        let schedule = Schedule::new(seed + 1 + lane as u64, faults, gap);
        let (world, stop) = (Arc::clone(&run.world), stop.clone());
        lanes.spawn(async move { faults::run(&world, schedule, stop).await });
    }
    let watch = tokio::spawn(leaks::watch(Arc::clone(&run.world), length, stop.clone()));
    let _machine = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&run.world).watch_the_machine()));
    let end = Instant::now() + length;
    run.traffic(rate, || Instant::now() >= end).await;
    stop.cancel();
    // The last faults end under traffic, too.
    run.traffic(rate, || {
        while lanes.try_join_next().is_some() {}
        lanes.is_empty()
    })
    .await;
    run.performed_all().await;

    let growth = watch.await?;
    let Run {
        world,
        clients,
        tallies,
        cases,
        ..
    } = run;
    let sidecars = leaks::after(&world, growth, clients, long).await;
    let report = Report::new(seed, length, &world, tallies, cases, sidecars);
    if report.well {
        world.controller.discard_files();
    }
    Ok(report)
}

/// The load while it runs.
struct Run {
    random: SmallRng,
    next_id: u64,
    clients: Vec<Arc<Client>>,
    tallies: BTreeMap<Kind, Tally>,
    cases: Vec<String>,
    performing: JoinSet<Outcome>,
    world: Arc<World>,
}

impl Run {
    /// One call of each kind by each client, before there are faults: a mesh that does not work at all is told at once.
    async fn first_calls(&mut self) -> Result<()> {
        for client in self.clients.clone() {
            for kind in Kind::ALL {
                let call = Call::of(kind, self.id(), &mut self.random);
                let outcome = client.perform(&call).await;
                ensure!(outcome.failure.is_none(), "without any fault: {outcome:?}");
                self.judge(&outcome);
            }
        }
        Ok(())
    }

    /// Calls at a constant rate, until it is enough.
    async fn traffic(&mut self, rate: u32, mut enough: impl FnMut() -> bool) {
        let mut ticks = interval(Duration::from_secs(1) / rate);
        // After a pause of the machine there is no flood.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !enough() {
            tokio::select! {
                _ = ticks.tick(), if self.performing.len() < AT_ONCE => {
                    let call = Call::draw(self.id(), &mut self.random);
                    let client = Arc::clone(&self.clients[self.random.random_range(0..self.clients.len())]);
                    self.performing.spawn(async move { client.perform(&call).await });
                }
                Some(outcome) = self.performing.join_next() => self.judge(&outcome.unwrap()),
            }
        }
    }

    async fn performed_all(&mut self) {
        while let Some(outcome) = self.performing.join_next().await {
            self.judge(&outcome.unwrap());
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn judge(&mut self, outcome: &Outcome) {
        let executions = self.world.ledger.executions(outcome.id);
        let still = self.world.stood_still(outcome.began, outcome.ended);
        let verdict = match judge(outcome, executions, &self.world.disruptions_since(outcome.began)) {
            Verdict::Forbidden(_) if still && outcome.failure.as_ref().is_some_and(|f| f.code != WRONG) => {
                Verdict::Excused
            }
            verdict => verdict,
        };
        self.tallies.entry(outcome.kind).or_default().add(outcome, &verdict);
        if let Verdict::Forbidden(why) = verdict
            && self.cases.len() < CASES
        {
            let (world, failure) = (&self.world, outcome.failure.as_ref());
            self.cases.push(format!(
                "{} {} from {:.3} s to {:.3} s, answered by {}, executed {executions} times: {why}\n    {}\n    {}",
                outcome.kind.name(),
                outcome.id,
                world.elapsed(outcome.began),
                world.elapsed(outcome.ended),
                outcome.replica.as_deref().unwrap_or("nobody"),
                failure.map_or_else(String::new, |f| format!("{}: {}", f.code, f.detail)),
                world.around(outcome.began, outcome.ended),
            ));
        }
    }
}
