//! The mesh that is soaked: replicas, those that call them, and what was done to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep, timeout};

use super::app::App;
use super::control::{CLIENTS, Controller, SERVER, SERVICES};
use super::ledger::Ledger;
use super::relay::Relay;
use super::sidecar::{Listeners, Sidecar};
use super::verdict::Disruption;

pub(super) const REPLICAS: usize = 3;
/// How soon sidecars know what the controller says, after it may have been lost.
const KNOWN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
/// Where the soak is not run for so long, sidecars cannot keep their time limits either; the shortest is a second, for a
/// connection.
const PAUSE: Duration = Duration::from_millis(500);

/// An app with its sidecar, and the network before it.
pub(super) struct Replica {
    /// `server-NUMBER.INCARNATION`.
    pub(super) name: String,
    pub(super) app: App,
    pub(super) sidecar: Sidecar,
    /// Before HTTP, and before the echo.
    pub(super) network: [Relay; 2],
    incarnation: u32,
}

impl Replica {
    /// Where sidecars connect.
    pub(super) fn addresses(&self) -> [SocketAddr; 2] {
        self.network.each_ref().map(Relay::address)
    }

    /// Everything that an error may name.
    fn all_addresses(&self) -> Vec<SocketAddr> {
        [self.addresses(), self.app.addresses()].concat()
    }
}

/// See the module.
pub(super) struct World {
    pub(super) controller: Controller,
    pub(super) clients: Vec<Sidecar>,
    /// Whoever does something to a replica holds it.
    pub(super) replicas: Vec<tokio::sync::Mutex<Replica>>,
    /// Held by who needs a controller that answers, and by who takes it away.
    pub(super) controller_answers: tokio::sync::Mutex<()>,
    pub(super) ledger: Arc<Ledger>,
    /// Of each replica, while it is published.
    published: Mutex<[Option<[SocketAddr; 2]>; REPLICAS]>,
    diary: Mutex<Diary>,
    began: Instant,
    /// When the soak itself was last seen to run.
    beat: Mutex<Instant>,
}

/// What was done, in its order.
#[derive(Default)]
struct Diary {
    faults: BTreeMap<&'static str, u64>,
    lines: Vec<(Instant, String)>,
    disruptions: Vec<Disruption>,
    /// Times in which the machine stood still.
    pauses: Vec<(Instant, Instant)>,
    /// What must not be, besides requests.
    wrongs: Vec<String>,
}

impl World {
    /// Starts everything; when it returns, all are ready and know each other.
    pub(super) async fn start() -> Result<Arc<Self>> {
        let controller = Controller::start().await?;
        let ledger = Arc::new(Ledger::default());
        let mut replicas = Vec::new();
        for number in 0..REPLICAS {
            let replica = start_replica(&controller, &ledger, number, 1).await?;
            replicas.push(tokio::sync::Mutex::new(replica));
        }
        let mut clients = Vec::new();
        for (account, workers) in CLIENTS.into_iter().zip(["1", "2"]) {
            let mut environment = controller.environment(account, account);
            environment.push(("OUTRIGGER_WORKERS", workers.to_owned()));
            let listeners = Listeners {
                outbound: SERVICES.to_vec(),
                inbound: Vec::new(),
            };
            clients.push(Sidecar::start(account, &listeners, &environment, controller.files()).await?);
        }
        let world = Self {
            controller,
            clients,
            replicas,
            controller_answers: tokio::sync::Mutex::default(),
            ledger,
            published: Mutex::default(),
            diary: Mutex::default(),
            began: Instant::now(),
            beat: Mutex::new(Instant::now()),
        };
        for (number, replica) in world.replicas.iter().enumerate() {
            world.publish(number, Some(replica.lock().await.addresses()));
        }
        Ok(Arc::new(world))
    }

    /// A new incarnation takes the place of a replica that is no more, and the clients know it.
    pub(super) async fn replace(&self, number: usize, replica: &mut Replica) -> Result<()> {
        *replica = start_replica(&self.controller, &self.ledger, number, replica.incarnation + 1).await?;
        self.publish(number, Some(replica.addresses()));
        self.known(number, replica.addresses()).await
    }

    /// Changes what discovery says of a replica: its addresses, or that it is not there.
    pub(super) fn publish(&self, number: usize, addresses: Option<[SocketAddr; 2]>) {
        let mut published = lock(&self.published);
        published[number] = addresses;
        let all: Vec<_> = published.iter().flatten().copied().collect();
        self.controller.publish(&all);
    }

    /// Waits until all clients believe what was published of the replica with these addresses.
    pub(super) async fn known(&self, number: usize, addresses: [SocketAddr; 2]) -> Result<()> {
        let there = lock(&self.published)[number] == Some(addresses);
        let known = async {
            for client in &self.clients {
                loop {
                    let believes = client.ask("/config").await?;
                    let knows = |address: &SocketAddr| believes.contains(&format!("\"{address}\""));
                    if addresses.iter().all(|address| knows(address) == there) {
                        break;
                    }
                    sleep(LOOK).await;
                }
            }
            anyhow::Ok(())
        };
        let limit = timeout(KNOWN, known).await;
        limit.with_context(|| format!("discovery of replica {number} did not arrive"))?
    }

    /// Writes a fault into the diary. It must be called before the fault.
    pub(super) fn write(&self, fault: &'static str, line: String) {
        let mut diary = lock(&self.diary);
        *diary.faults.entry(fault).or_default() += 1;
        diary.lines.push((Instant::now(), line));
    }

    /// From now on a replica's connections break. The number is for [`World::recovered`].
    pub(super) fn disrupted(&self, replica: &Replica) -> usize {
        let mut diary = lock(&self.diary);
        diary.disruptions.push(Disruption {
            replica: replica.name.clone(),
            addresses: replica.all_addresses(),
            at: Instant::now(),
            until: None,
        });
        diary.disruptions.len() - 1
    }

    /// A disruption is over.
    pub(super) fn recovered(&self, disruption: usize) {
        lock(&self.diary).disruptions[disruption].until = Some(Instant::now());
    }

    /// Disruptions that may explain something that began at this time.
    pub(super) fn disruptions_since(&self, time: Instant) -> Vec<Disruption> {
        let over = |disruption: &Disruption| {
            disruption
                .until
                .is_some_and(|until| until + super::verdict::MARGIN < time)
        };
        let diary = lock(&self.diary);
        diary.disruptions.iter().filter(|d| !over(d)).cloned().collect()
    }

    /// Notes when the machine stands still: the soak itself does not run then.
    pub(super) async fn watch_the_machine(self: Arc<Self>) {
        loop {
            let before = Instant::now();
            *lock(&self.beat) = before;
            sleep(LOOK).await;
            if before.elapsed() >= PAUSE {
                let line = format!("the machine stood still for {:?}", before.elapsed());
                self.write("machine stood still", line);
                lock(&self.diary).pauses.push((before, Instant::now()));
            }
        }
    }

    /// Whether the machine stood still between the two times.
    pub(super) fn stood_still(&self, from: Instant, to: Instant) -> bool {
        // The pause that has just ended is not in the diary yet.
        let beat = *lock(&self.beat);
        let now = to.saturating_duration_since(beat) >= PAUSE;
        now || lock(&self.diary)
            .pauses
            .iter()
            .any(|pause| pause.0 <= to && from <= pause.1)
    }

    /// Something that must not be.
    pub(super) fn wrong(&self, what: String) {
        lock(&self.diary)
            .wrongs
            .push(format!("{:.3} s: {what}", self.elapsed(Instant::now())));
    }

    pub(super) fn wrongs(&self) -> Vec<String> {
        lock(&self.diary).wrongs.clone()
    }

    pub(super) fn faults(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.diary).faults.clone()
    }

    /// What was done around a time: the faults of the two seconds before and the one after.
    pub(super) fn around(&self, from: Instant, to: Instant) -> String {
        let diary = lock(&self.diary);
        let near = diary
            .lines
            .iter()
            .filter(|(at, _)| *at + Duration::from_secs(2) >= from && *at <= to + Duration::from_secs(1));
        let near: Vec<_> = near
            .map(|(at, line)| format!("{:.3} s {line}", self.elapsed(*at)))
            .collect();
        match near.as_slice() {
            [] => "no fault is near".to_owned(),
            near => near.join("; "),
        }
    }

    /// Seconds since the world began.
    pub(super) fn elapsed(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.began).as_secs_f64()
    }
}

async fn start_replica(
    controller: &Controller,
    ledger: &Arc<Ledger>,
    number: usize,
    incarnation: u32,
) -> Result<Replica> {
    let name = format!("{SERVER}-{number}.{incarnation}");
    let app = App::start(&name, Arc::clone(ledger))?;
    let listeners = Listeners {
        outbound: Vec::new(),
        inbound: app.addresses().to_vec(),
    };
    let environment = controller.environment(SERVER, &name);
    let sidecar = Sidecar::start(&name, &listeners, &environment, controller.files()).await?;
    let network = [Relay::start(sidecar.inbound[0])?, Relay::start(sidecar.inbound[1])?];
    Ok(Replica {
        name,
        app,
        sidecar,
        network,
        incarnation,
    })
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().expect("nobody panics with it in hand")
}
