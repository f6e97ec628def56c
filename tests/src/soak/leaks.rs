//! Whether a sidecar holds more in the end than in the beginning: memory, descriptors, connections, tasks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::sidecar::{Figures, Sidecar};
use super::traffic::Client;
use super::world::World;

/// The share of the run after which memory should grow no more, and the longest time that takes.
const WARM: (u32, Duration) = (4, Duration::from_secs(180));
/// What resident memory may grow by after that. A leak of 40 bytes for each request is more in half an hour.
const GROWTH: u64 = 8 << 20;
/// Idle connections between sidecars live for 60 s, targets for 60 s after; the sweep takes a second.
const IDLE: Duration = Duration::from_secs(150);
/// Connections to an app are closed after 4 s.
const SOON: Duration = Duration::from_secs(20);
/// Descriptors and tasks may differ by so many: a connection to the controller that is being replaced, an admin request.
const SLACK: u64 = 3;
const LOOK: Duration = Duration::from_millis(250);

/// A sidecar's figures over the run.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    pub name: String,
    pub rss_warm: u64,
    pub rss_end: u64,
    pub fds_baseline: u64,
    pub fds_peak: u64,
    pub fds_end: u64,
    pub tasks_baseline: u64,
    pub tasks_peak: u64,
    pub tasks_end: u64,
    pub connections_end: u64,
    pub cpu_seconds: f64,
    /// What it holds too much of.
    pub leaks: Vec<String>,
}

/// Of one sidecar, while there is traffic.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    warm: Option<u64>,
    last: Figures,
    peak: Figures,
}

impl Seen {
    fn add(&mut self, now: Figures, warm: bool) {
        self.last = now;
        self.peak.fds = self.peak.fds.max(now.fds);
        self.peak.tasks = self.peak.tasks.max(now.tasks);
        if warm {
            self.warm.get_or_insert(now.rss);
        }
    }
}

/// Looks at the sidecars that live as long as the soak: those of the clients, and of the first replica.
pub(super) async fn watch(world: Arc<World>, length: Duration, stop: CancellationToken) -> Vec<Seen> {
    let began = Instant::now();
    let mut seen = vec![Seen::default(); world.clients.len() + 1];
    let mut ticks = interval(length.div_f64(100.0).max(LOOK));
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return seen,
        }
        let warm = began.elapsed() >= (length / WARM.0).min(WARM.1);
        let first = world.replicas[0].lock().await;
        for (seen, sidecar) in seen.iter_mut().zip(world.clients.iter().chain([&first.sidecar])) {
            match sidecar.figures().await {
                Ok(now) => seen.add(now, warm),
                Err(error) => world.wrong(format!("{} shows no metrics: {error:#}", sidecar.name)),
            }
        }
    }
}

/// Ends the clients, and waits until each sidecar holds as little as before the traffic. In a long run the idle connections
/// are left to be closed by themselves; in a short one the endpoints leave, and their connections with them.
pub(super) async fn after(world: &World, watched: Vec<Seen>, clients: Vec<Arc<Client>>, long: bool) -> Vec<Held> {
    drop(clients);
    let limit = Instant::now() + if long { IDLE } else { SOON };
    if !long && let Err(error) = leave(world, limit).await {
        world.wrong(format!("the endpoints do not leave: {error:#}"));
    }
    let mut held = Vec::new();
    for (sidecar, seen) in world.clients.iter().zip(&watched) {
        held.push(settle(sidecar, Some(seen), limit).await);
    }
    for (number, replica) in world.replicas.iter().enumerate() {
        let seen = (number == 0).then(|| watched[world.clients.len()]);
        held.push(settle(&replica.lock().await.sidecar, seen.as_ref(), limit).await);
    }
    held
}

/// Discovery takes all endpoints away.
async fn leave(world: &World, limit: Instant) -> Result<()> {
    for (number, replica) in world.replicas.iter().enumerate() {
        world.publish(number, None);
        world.known(number, replica.lock().await.addresses()).await?;
    }
    loop {
        // A worker takes over what discovery says when it is asked for something, and which worker is asked is chance.
        for sidecar in &world.clients {
            Client::new(sidecar.listeners()).touch().await;
        }
        let mut connections = 0;
        for replica in &world.replicas {
            connections += replica.lock().await.sidecar.figures().await?.connections;
        }
        if connections == 0 || Instant::now() >= limit {
            return Ok(());
        }
        sleep(LOOK).await;
    }
}

async fn settle(sidecar: &Sidecar, seen: Option<&Seen>, limit: Instant) -> Held {
    let base = sidecar.baseline;
    let (now, mut leaks) = loop {
        let (now, leaks) = match sidecar.figures().await {
            Ok(now) => (now, too_much(&now, &base)),
            Err(error) => (Figures::default(), vec![format!("it shows no metrics: {error:#}")]),
        };
        if leaks.is_empty() || Instant::now() >= limit {
            break (now, leaks);
        }
        sleep(LOOK).await;
    };
    let peak = seen.map_or(now, |seen| seen.peak);
    let rss_end = seen.map_or(now.rss, |seen| seen.last.rss);
    let rss_warm = seen.and_then(|seen| seen.warm).unwrap_or(rss_end);
    if rss_end > rss_warm + GROWTH {
        leaks.push(format!("memory grew from {rss_warm} to {rss_end} bytes"));
    }
    Held {
        name: sidecar.name.clone(),
        rss_warm,
        rss_end,
        fds_baseline: base.fds,
        fds_peak: peak.fds,
        fds_end: now.fds,
        tasks_baseline: base.tasks,
        tasks_peak: peak.tasks,
        tasks_end: now.tasks,
        connections_end: now.connections,
        cpu_seconds: now.seconds,
        leaks,
    }
}

/// What is more than it was at the beginning.
fn too_much(now: &Figures, base: &Figures) -> Vec<String> {
    let allowed = [
        ("open connections", now.connections, 0),
        ("descriptors", now.fds, base.fds + SLACK),
        ("tasks", now.tasks, base.tasks + SLACK),
    ];
    let beyond = allowed.iter().filter(|(_, now, allowed)| now > allowed);
    beyond
        .map(|(what, now, allowed)| format!("{now} {what}, at most {allowed} were expected"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Figures, SLACK, too_much};

    #[test]
    fn what_stays_is_told() {
        let base = Figures {
            fds: 20,
            tasks: 10,
            ..Figures::default()
        };
        let now = |connections, fds, tasks| Figures {
            connections,
            fds,
            tasks,
            ..base
        };
        assert!(too_much(&now(0, 20 + SLACK, 10 + SLACK), &base).is_empty());
        assert!(too_much(&now(0, 5, 5), &base).is_empty());
        for leaks in [now(1, 20, 10), now(0, 21 + SLACK, 10), now(0, 20, 11 + SLACK)] {
            assert_eq!(too_much(&leaks, &base).len(), 1);
        }
    }
}
