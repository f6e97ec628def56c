//! What is done to the mesh, and when: two lanes of faults, each drawn from a generator of its own.
//!
//! At any time at most one replica is disturbed by each lane, so that one at least is well: then nothing that may be
//! sent again has an excuse.

use std::time::Duration;

use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::relay::{Relay, Weather};
use super::world::{REPLICAS, Replica, World};

/// A replica may take this long to drain: longer than any stream lives.
const DRAIN: Duration = Duration::from_secs(35);
/// So soon after SIGTERM clients must know it, or requests may meet a connection that is being closed: a sidecar closes idle
/// ones after half a second.
const PROMPT: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The replica's sidecar and its app die at once; discovery hears of it later.
    Kill,
    /// The sidecar gets SIGTERM, and discovery hears of it at about the same time.
    Drain,
    /// The app dies and comes back at the same address.
    AppRestart,
    /// All connections to the replica are reset.
    Reset,
    /// Discovery takes the replica away and gives it back.
    Leave,
    /// What goes to the replica and comes from it is slow.
    Delay,
    /// Nothing goes to the replica or comes from it, for a while.
    Stall,
    /// The controller's connections are reset, and new ones refused.
    ControllerLost,
    /// The controller says nothing, for a while.
    ControllerSlow,
}

impl Fault {
    pub(super) const OF_REPLICAS: [Fault; 5] =
        [Fault::Kill, Fault::Drain, Fault::AppRestart, Fault::Reset, Fault::Leave];
    pub(super) const OF_THE_NETWORK: [Fault; 4] =
        [Fault::Delay, Fault::Stall, Fault::ControllerLost, Fault::ControllerSlow];

    pub(super) fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::Drain => "drain",
            Fault::AppRestart => "app restart",
            Fault::Reset => "reset",
            Fault::Leave => "endpoint leaves",
            Fault::Delay => "delay",
            Fault::Stall => "stall",
            Fault::ControllerLost => "controller lost",
            Fault::ControllerSlow => "controller slow",
        }
    }
}

/// One fault with all that is random about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// After the end of the fault before.
    gap: Duration,
    pub(super) fault: Fault,
    pub(super) replica: usize,
    /// How long it lasts; of a kill and a drain, how late discovery is.
    lasts: Duration,
    /// Discovery hears of a drain before the replica does.
    early: bool,
}

/// All faults of a lane: in turns of all kinds, each turn shuffled.
pub(super) struct Schedule {
    random: SmallRng,
    faults: Vec<Fault>,
    left: Vec<Fault>,
    longest_gap: Duration,
}

impl Schedule {
    pub(super) fn new(seed: u64, faults: &[Fault], longest_gap: Duration) -> Self {
        Self {
            random: SmallRng::seed_from_u64(seed),
            faults: faults.to_vec(),
            left: Vec::new(),
            longest_gap,
        }
    }

    fn draw(&mut self) -> Step {
        let random = &mut self.random;
        if self.left.is_empty() {
            self.left.clone_from(&self.faults);
            self.left.shuffle(random);
        }
        // There is at least one kind.
        let fault = self.left.pop().unwrap_or(self.faults[0]);
        let milliseconds = match fault {
            Fault::Kill => 0..=1_000,
            Fault::Drain => 0..=100,
            Fault::AppRestart => 100..=2_000,
            Fault::Reset => 0..=0,
            Fault::Leave => 200..=2_000,
            Fault::Delay => 500..=3_000,
            Fault::Stall => 300..=2_500,
            Fault::ControllerLost | Fault::ControllerSlow => 500..=4_000,
        };
        let replica = match fault {
            // The first lives as long as the soak, so that its memory can be watched.
            Fault::Kill | Fault::Drain => random.random_range(1..REPLICAS),
            _ => random.random_range(0..REPLICAS),
        };
        Step {
            gap: self.longest_gap.mul_f64(random.random_range(0.1..1.0)),
            fault,
            replica,
            lasts: Duration::from_millis(random.random_range(milliseconds)),
            early: random.random_bool(0.5),
        }
    }
}

/// Goes through a schedule until `stop`, and ends the fault that there is then. Every kind has its turn, also on a machine
/// that is slow.
pub(super) async fn run(world: &World, mut schedule: Schedule, stop: CancellationToken) {
    let kinds = schedule.faults.len();
    for done in 0.. {
        let step = schedule.draw();
        tokio::select! {
            () = sleep(step.gap) => {}
            () = stop.cancelled(), if done >= kinds => return,
        }
        if let Err(error) = carry_out(world, step).await {
            // Whatever it is, a mesh that works would not have stopped it.
            return world.wrong(format!("{}: {error:#}", step.fault.name()));
        }
    }
}

async fn carry_out(world: &World, step: Step) -> Result<()> {
    let Step { fault, lasts, .. } = step;
    if matches!(fault, Fault::ControllerLost | Fault::ControllerSlow) {
        let _taken_away = world.controller_answers.lock().await;
        world.write(fault.name(), format!("{}, for {lasts:?}", fault.name()));
        return disturb_controller(&world.controller.network, fault, lasts).await;
    }
    let replica = &mut *world.replicas[step.replica].lock().await;
    let write = || world.write(fault.name(), format!("{} of {}, {lasts:?}", fault.name(), replica.name));
    match fault {
        Fault::Drain => {
            let _answers = world.controller_answers.lock().await;
            write();
            drain(world, step, replica).await?;
        }
        _ => {
            write();
            disturb(world, step, replica).await?;
        }
    }
    match fault {
        Fault::Kill | Fault::Drain => world.replace(step.replica, replica).await,
        _ => Ok(()),
    }
}

async fn disturb(world: &World, step: Step, replica: &mut Replica) -> Result<()> {
    let (number, addresses) = (step.replica, replica.addresses());
    let weather = |weather| replica.network.iter().for_each(|relay| relay.set(weather));
    match step.fault {
        Fault::Kill => {
            let disruption = world.disrupted(replica);
            replica.sidecar.kill()?;
            replica.app.kill();
            replica.network.iter().for_each(Relay::refuse);
            replica.sidecar.ended(DRAIN).await?;
            world.recovered(disruption);
            sleep(step.lasts).await;
            world.publish(number, None);
        }
        Fault::AppRestart => {
            let disruption = world.disrupted(replica);
            replica.app.kill();
            sleep(step.lasts).await;
            replica.app.restart()?;
            world.recovered(disruption);
        }
        Fault::Reset => {
            let disruption = world.disrupted(replica);
            replica.network.iter().for_each(Relay::reset);
            world.recovered(disruption);
        }
        Fault::Leave => {
            world.publish(number, None);
            world.known(number, addresses).await?;
            sleep(step.lasts).await;
            world.publish(number, Some(addresses));
            world.known(number, addresses).await?;
        }
        Fault::Delay => {
            weather(Weather::Delay(step.lasts / 20)); // up to 150 ms for each chunk
            sleep(step.lasts).await;
            weather(Weather::Fine);
        }
        Fault::Stall => {
            weather(Weather::Stall);
            sleep(step.lasts).await;
            weather(Weather::Fine);
        }
        Fault::Drain | Fault::ControllerLost | Fault::ControllerSlow => {}
    }
    Ok(())
}

/// As Kubernetes does it: the pod is told to end, and endpoints are updated, in either order.
async fn drain(world: &World, step: Step, replica: &mut Replica) -> Result<()> {
    let addresses = replica.addresses();
    if step.early {
        world.publish(step.replica, None);
        world.known(step.replica, addresses).await?;
        sleep(step.lasts).await;
        replica.sidecar.terminate()?;
    } else {
        let prompt = Instant::now() + PROMPT;
        replica.sidecar.terminate()?;
        sleep(step.lasts).await;
        world.publish(step.replica, None);
        let known = world.known(step.replica, addresses);
        tokio::pin!(known);
        match timeout_at(prompt, &mut known).await {
            Ok(known) => known?,
            Err(_) => {
                world.write(
                    "drain, discovery late",
                    format!("discovery is late for the drain of {}", replica.name),
                );
                let disruption = world.disrupted(replica);
                world.recovered(disruption);
                known.await?;
            }
        }
    }
    let status = replica.sidecar.ended(DRAIN).await?;
    ensure!(status.success(), "{} drained, and ended with {status}", replica.name);
    replica.network.iter().for_each(Relay::refuse);
    Ok(())
}

async fn disturb_controller(network: &Relay, fault: Fault, lasts: Duration) -> Result<()> {
    if fault == Fault::ControllerLost {
        network.refuse();
        network.reset();
        sleep(lasts).await;
        network.accept()?;
    } else {
        network.set(Weather::Stall);
        sleep(lasts).await;
        network.set(Weather::Fine);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Fault, Schedule, Step};

    fn first(seed: u64, count: usize) -> Vec<Step> {
        let mut schedule = Schedule::new(seed, &Fault::OF_REPLICAS, Duration::from_secs(1));
        (0..count).map(|_| schedule.draw()).collect()
    }

    #[test]
    fn a_seed_is_a_schedule() {
        assert_eq!(first(1, 100), first(1, 100));
        assert_ne!(first(1, 100), first(2, 100));
    }

    #[test]
    fn every_turn_has_every_fault() {
        for turn in first(3, 50).chunks(Fault::OF_REPLICAS.len()) {
            assert!(
                Fault::OF_REPLICAS
                    .iter()
                    .all(|fault| turn.iter().any(|s| s.fault == *fault))
            );
        }
        let lasting = |s: &Step| matches!(s.fault, Fault::Kill | Fault::Drain) && s.replica == 0;
        assert!(!first(4, 500).iter().any(lasting), "the first replica lives on");
    }
}
