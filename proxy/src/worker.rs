//! One thread that carries connections, with everything that they need and no other thread has: no lock, no sharing.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_proxy_transport::drain::{App, Phase, Signal};
use outrigger_proxy_transport::net::listen::{self, Listener};
use outrigger_proxy_transport::net::{Io, sockets};
use outrigger_proxy_transport::room::{Arrivals, Room, Seat};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::config::{Destination, InboundDestination};
use crate::context::{Context, Process};
use crate::discovery::TargetKey;
use crate::outbound::self_call::SelfCall;
use crate::telemetry::metrics::Refused;
use crate::{inbound, outbound};

/// How often idle connections and targets are looked for. The only timer of a worker that nothing waits for.
const SWEEP: Duration = Duration::from_secs(1);

/// A worker's own sockets, bound before it starts.
pub struct Listeners {
    pub outbound: Vec<(std::net::TcpListener, Destination)>,
    pub inbound: Vec<(std::net::TcpListener, InboundDestination)>,
}

/// See the module.
struct Worker {
    context: Rc<Context>,
    /// The connections that it holds for clients.
    room: Rc<Room>,
    outbound: Rc<outbound::State>,
    inbound: Rc<inbound::State>,
}

/// Runs a worker on this thread until it was drained.
///
/// # Errors
/// When the system gives no event queue.
pub fn run(process: Arc<Process>, listeners: Listeners, mut signal: Signal) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(async move {
        let budget = process.config.budget.share(process.config.workers);
        let room = Room::new(budget, process.telemetry.metrics().clone());
        let context = Rc::new(Context::new(process));
        let (outbound, self_calls) = outbound::State::new(Rc::clone(&context));
        let worker = Rc::new(Worker {
            room,
            outbound,
            inbound: inbound::State::new(Rc::clone(&context)),
            context,
        });
        let context = &worker.context;
        context.metrics().runtime(Handle::current());
        worker.listen(listeners)?;
        tokio::task::spawn_local(take_self_calls(Rc::clone(&worker), self_calls));
        tokio::task::spawn_local(sweep(Rc::clone(&worker)));
        signal.reached(Phase::Draining).await;
        let config = context.config();
        let deadline = config.drain_timeout;
        // Only where connections are captured is the network namespace the app's and the sidecar's alone.
        let captured = config.captures();
        let app_lives = || captured && sockets::others_have_one();
        let app = if config.native { App::Ended } else { App::MayLive };
        tokio::select! {
            drained = tokio::time::timeout(deadline, context.activity.drain(app, app_lives)) => {
                if drained.is_err() {
                    tracing::warn!(?deadline, "requests were still in flight when the time to drain was up");
                }
            }
            () = signal.reached(Phase::Forced) => {}
        }
        Ok(())
    })
}

impl Worker {
    /// Where a captured connection wanted to go. `None`: it was made to the listener itself.
    fn captured(&self, stream: &TcpStream, client: SocketAddr) -> Option<SocketAddr> {
        let original =
            listen::original_destination(stream).filter(|original| !self.context.process.is_own_listener(*original));
        if original.is_none() {
            tracing::debug!(%client, "a connection to a listener itself is closed: it was not captured");
        }
        original
    }

    /// The same, of a connection to the app: it is never followed to another host, nor to what listens on loopback only. Anybody who
    /// can send the pod a frame, or has a route to it, chooses the destination.
    fn captured_for_app(&self, stream: &TcpStream, client: SocketAddr) -> Option<SocketAddr> {
        let original = self.captured(stream, client)?;
        if self.context.process.is_own_pod(original) {
            return Some(original);
        }
        self.context.metrics().connection_refused(Refused::NotThisPod);
        tracing::info!(%client, %original, "a connection is refused: it wants to go to an address that is not this pod's");
        // Best effort: the connection may be gone.
        let _ = stream.set_zero_linger();
        None
    }

    fn listen(self: &Rc<Self>, listeners: Listeners) -> std::io::Result<()> {
        for (socket, to) in listeners.outbound {
            let listener = Listener::new(socket)?;
            tokio::task::spawn_local(accept_outbound(Rc::clone(self), listener, to));
        }
        for (socket, to) in listeners.inbound {
            let listener = Listener::new(socket)?;
            tokio::task::spawn_local(accept_inbound(Rc::clone(self), listener, to));
        }
        Ok(())
    }
}

async fn accept_outbound(worker: Rc<Worker>, listener: Listener, to: Destination) {
    accept(&worker, listener, |stream, client, seat| {
        let key = match &to {
            Destination::Named(name) => TargetKey::Named(Arc::clone(name)),
            Destination::Fixed(address) => TargetKey::Address(*address),
            Destination::Original => TargetKey::Address(worker.captured(&stream, client)?),
        };
        outbound::spawn(Rc::clone(&worker.outbound), stream, key, seat);
        Some(())
    })
    .await;
}

async fn accept_inbound(worker: Rc<Worker>, listener: Listener, to: InboundDestination) {
    accept(&worker, listener, |stream, client, seat| {
        let app = match &to {
            InboundDestination::Fixed(app) => *app,
            InboundDestination::Original => worker.captured_for_app(&stream, client)?,
        };
        inbound::spawn(Rc::clone(&worker.inbound), Io::Tcp(stream), app, Some(client), seat);
        Some(())
    })
    .await;
}

/// Accepts until the end of the drain, and then what waits in the queue: those clients have a connection already.
async fn accept(worker: &Rc<Worker>, listener: Listener, spawn: impl Fn(TcpStream, SocketAddr, Seat) -> Option<()>) {
    let mut arrivals = Arrivals::new(Rc::clone(&worker.room), listener);
    let mut refusing = pin!(worker.context.activity.refusing());
    loop {
        tokio::select! {
            biased;
            (stream, client, seat) = arrivals.next() => {
                // A connection that was not captured is closed.
                let _ = spawn(stream, client, seat);
            }
            () = &mut refusing => return,
        }
    }
}

/// Takes the connections of this pod to itself. To the end: a request that is in flight may call its own pod also when no more
/// connections of others are taken.
async fn take_self_calls(worker: Rc<Worker>, mut calls: mpsc::Receiver<SelfCall>) {
    while let Some(SelfCall { io, app }) = calls.recv().await {
        let seat = worker.room.enter_own(app.ip());
        inbound::spawn(Rc::clone(&worker.inbound), Io::Pipe(io), app, None, seat);
    }
}

async fn sweep(worker: Rc<Worker>) {
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await;
        worker.outbound.sweep(now);
        worker.inbound.sweep(now);
    }
}
