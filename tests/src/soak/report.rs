//! What the soak tells at its end.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::leaks::Held;
use super::verdict::{Kind, Outcome, Verdict};
use super::world::World;

/// How the requests of one kind went.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    pub requests: u64,
    pub succeeded: u64,
    /// By code: failures that a fault explains.
    pub excused: BTreeMap<String, u64>,
    /// By code: failures, or successes, that must not be.
    pub forbidden: BTreeMap<String, u64>,
    pub slowest_ms: u64,
}

impl Tally {
    pub(super) fn add(&mut self, outcome: &Outcome, verdict: &Verdict) {
        self.requests += 1;
        let took = outcome.ended.saturating_duration_since(outcome.began);
        self.slowest_ms = self.slowest_ms.max(took.as_millis() as u64);
        let code = || {
            outcome
                .failure
                .as_ref()
                .map_or("executions", |failure| &failure.code)
                .to_owned()
        };
        match verdict {
            Verdict::Well => self.succeeded += 1,
            Verdict::Excused => *self.excused.entry(code()).or_default() += 1,
            Verdict::Forbidden(_) => *self.forbidden.entry(code()).or_default() += 1,
        }
    }
}

/// See the module.
#[derive(Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub seconds: f64,
    pub requests: BTreeMap<&'static str, Tally>,
    pub faults: BTreeMap<&'static str, u64>,
    pub sidecars: Vec<Held>,
    /// The first forbidden failures in detail.
    pub cases: Vec<String>,
    /// What else must not be.
    pub wrongs: Vec<String>,
    /// Whether nothing forbidden happened.
    pub well: bool,
    /// Where the sidecars' logs are, unless all is well.
    pub logs: PathBuf,
}

impl Report {
    pub(super) fn new(
        seed: u64,
        length: Duration,
        world: &World,
        tallies: BTreeMap<Kind, Tally>,
        cases: Vec<String>,
        sidecars: Vec<Held>,
    ) -> Self {
        let mut wrongs = world.wrongs();
        wrongs.extend(world.ledger.twice());
        let forbidden = tallies.values().any(|tally| !tally.forbidden.is_empty());
        let leaks = sidecars.iter().any(|sidecar| !sidecar.leaks.is_empty());
        Self {
            seed,
            seconds: length.as_secs_f64(),
            requests: tallies.into_iter().map(|(kind, tally)| (kind.name(), tally)).collect(),
            faults: world.faults(),
            well: !forbidden && !leaks && wrongs.is_empty(),
            sidecars,
            cases,
            wrongs,
            logs: world.controller.files().to_owned(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let codes = |codes: &BTreeMap<String, u64>| {
            let codes: Vec<_> = codes.iter().map(|(code, count)| format!("{count} {code}")).collect();
            codes.join(", ")
        };
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(f, "seed {}, {:.0} s", self.seed, self.seconds)?;
        writeln!(
            f,
            "\n{:<26}{:>9}{:>10}{:>12}  excused; FORBIDDEN",
            "requests", "sent", "well", "slowest ms"
        )?;
        for (kind, tally) in &self.requests {
            write!(
                f,
                "{kind:<26}{:>9}{:>10}{:>12}",
                tally.requests, tally.succeeded, tally.slowest_ms
            )?;
            write!(f, "  {}", codes(&tally.excused))?;
            match tally.forbidden.is_empty() {
                true => writeln!(f)?,
                false => writeln!(f, "; FORBIDDEN: {}", codes(&tally.forbidden))?,
            }
        }
        let faults: Vec<_> = self
            .faults
            .iter()
            .map(|(fault, count)| format!("{count} {fault}"))
            .collect();
        writeln!(f, "\nfaults: {}", faults.join(", "))?;
        writeln!(
            f,
            "\n{:<14}{:>22}{:>26}{:>26}{:>13}{:>9}",
            "sidecar", "RSS MiB warm → end", "fds before/peak/after", "tasks before/peak/after", "connections", "CPU s"
        )?;
        for held in &self.sidecars {
            let rss = format!("{:.1} → {:.1}", mib(held.rss_warm), mib(held.rss_end));
            let fds = format!("{}/{}/{}", held.fds_baseline, held.fds_peak, held.fds_end);
            let tasks = format!("{}/{}/{}", held.tasks_baseline, held.tasks_peak, held.tasks_end);
            writeln!(
                f,
                "{:<14}{rss:>22}{fds:>26}{tasks:>26}{:>13}{:>9.1}",
                held.name, held.connections_end, held.cpu_seconds
            )?;
            for leak in &held.leaks {
                writeln!(f, "  LEAK: {leak}")?;
            }
        }
        for wrong in self.cases.iter().chain(&self.wrongs) {
            writeln!(f, "\nFORBIDDEN: {wrong}")?;
        }
        match self.well {
            true => writeln!(f, "\nnothing forbidden happened"),
            false => writeln!(f, "\nsomething forbidden happened; logs: {}", self.logs.display()),
        }
    }
}
