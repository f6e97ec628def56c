//! The end of a process, gracefully: one place for every connection and worker.
//!
//! On SIGTERM the sidecar turns unready and goes on: it accepts connections, answers HTTP/1 requests with
//! `Connection: close`, and sends GOAWAY on HTTP/2 connections.
//!
//! **While the app lives**, that is all. An ordinary sidecar gets the signal in the same moment as its app, which may have
//! calls to make before it ends, on connections that it holds or on new ones. It gives a sign of life by a socket that the
//! kernel knows of ([`crate::net::sockets`]), or by a new connection; without one for [`QUIET`], it has ended. A native
//! sidecar gets the signal when the app has ended: where no connection is open either, it ends at once ([`App::Ended`]), so
//! that a pod that ran once is not kept. Where connections are not captured (a standalone sidecar), nothing is known of the
//! app but its connections.
//!
//! **Then** idle HTTP/1 connections are closed: not within [`GRACE`] of the signal, because to close one races with the
//! request that is on its way. When nothing is in flight and the outbound listener's connections have ended, a worker takes
//! no more connections, which is safe for every request: it goes elsewhere. It has ended when those that it took are done,
//! or at the deadline. A second signal ends it at once.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::room::Seat;

/// How long an idle HTTP/1 connection outlives the signal, and how long a worker does at least.
pub const GRACE: Duration = Duration::from_millis(500);

/// How often the kernel is asked whether the app lives.
const LOOK: Duration = Duration::from_millis(250);

/// How long an app that has given a sign of life is waited for without another: answers end their connections now, so an app
/// that only calls others has no socket between two calls.
const QUIET: Duration = Duration::from_secs(1);

/// How long a connection that was taken last may wait for its request.
const LAST: Duration = Duration::from_millis(500);

/// What is known of the app when the signal comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum App {
    /// It has ended: kubelet ends native sidecars last (Kubernetes, "Sidecar Containers", termination).
    Ended,
    /// It may have got the signal in the same moment.
    MayLive,
}

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// From the start.
    Serving,
    /// From the first signal.
    Draining,
    /// Ends at once.
    Forced,
}

/// Tells every worker.
#[derive(Clone, Debug)]
pub struct Trigger(watch::Sender<Phase>);

/// Hears of it.
#[derive(Clone, Debug)]
pub struct Signal(watch::Receiver<Phase>);

/// A trigger and what hears it.
pub fn channel() -> (Trigger, Signal) {
    let (sender, receiver) = watch::channel(Phase::Serving);
    (Trigger(sender), Signal(receiver))
}

impl Trigger {
    /// Where the process is now.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Goes on to `phase`; never back.
    pub fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = *now < phase;
            *now = (*now).max(phase);
            later
        });
    }
}

impl Signal {
    /// Waits for `phase` or a later one. A trigger that is gone means the end.
    pub async fn reached(&mut self, phase: Phase) {
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}

/// What is open and in flight on one worker.
#[derive(Default)]
pub struct Activity {
    stage: Cell<Stage>,
    /// One place for each open connection.
    wakers: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
    /// Requests and tunnels.
    in_flight: Cell<usize>,
    connections: Cell<usize>,
    app_connections: Cell<usize>,
    /// Connections of the app that were ever taken.
    app_calls: Cell<u64>,
    less: Notify,
}

/// How far the worker's drain is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    #[default]
    /// There was no signal.
    Serving,
    /// Answers say that the connection ends; HTTP/2 connections say GOAWAY.
    Draining,
    /// Idle connections are closed too.
    Closing,
    /// No more connections are taken.
    Refusing,
}

/// An open connection.
pub struct OpenConnection {
    registered: Registered,
    seat: Seat,
}

/// An open connection, or a listener.
struct Registered {
    activity: Rc<Activity>,
    slot: usize,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing waits for it.
    Listener,
    FromApp,
    ToApp,
}

/// A request or a tunnel; the worker does not end while there is one.
pub struct InFlight(Rc<Activity>);

impl Activity {
    /// A connection that was accepted; `from_app`: by the outbound listener.
    pub fn open(self: &Rc<Self>, from_app: bool, seat: Seat) -> OpenConnection {
        if from_app {
            self.app_calls.set(self.app_calls.get() + 1);
        }
        OpenConnection {
            registered: self.register(if from_app { Kind::FromApp } else { Kind::ToApp }),
            seat,
        }
    }

    /// Waits until no more connections are to be taken.
    pub async fn refusing(self: &Rc<Self>) {
        self.register(Kind::Listener).reached(Stage::Refusing).await;
    }

    /// A request or a tunnel that began.
    pub fn begin(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        InFlight(Rc::clone(self))
    }

    /// How far the drain is.
    pub fn stage(&self) -> Stage {
        self.stage.get()
    }

    /// Drains until nothing is left. The caller sets the deadline.
    pub async fn drain(&self, app: App, app_lives: impl Fn() -> bool) {
        if app == App::Ended && self.connections.get() == 0 && !app_lives() {
            return self.enter(Stage::Refusing);
        }
        self.enter(Stage::Draining);
        let mut calls = self.app_calls.get();
        tokio::time::sleep(GRACE).await;
        let mut last_sign: Option<Instant> = None;
        loop {
            let before = std::mem::replace(&mut calls, self.app_calls.get());
            if calls != before || app_lives() {
                last_sign = Some(Instant::now());
            }
            if last_sign.is_none_or(|sign| sign.elapsed() >= QUIET) {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.enter(Stage::Closing);
        self.until(|| self.in_flight.get() == 0 && self.app_connections.get() == 0)
            .await;
        self.enter(Stage::Refusing);
        // A connection that stays silent is not waited for; what began on one of them meanwhile is.
        let _ = tokio::time::timeout(LAST, self.until(|| self.connections.get() == 0)).await;
        self.until(|| self.in_flight.get() == 0).await;
    }

    async fn until(&self, done: impl Fn() -> bool) {
        loop {
            let less = self.less.notified();
            if done() {
                return;
            }
            less.await;
        }
    }

    fn register(self: &Rc<Self>, kind: Kind) -> Registered {
        let mut wakers = self.wakers.borrow_mut();
        let slot = self.free.borrow_mut().pop().unwrap_or_else(|| {
            wakers.push(None);
            wakers.len() - 1
        });
        self.count(kind, 1);
        Registered {
            activity: Rc::clone(self),
            slot,
            kind,
        }
    }

    fn count(&self, kind: Kind, change: isize) {
        let add = |to: &Cell<usize>| to.set(to.get().saturating_add_signed(change));
        if kind != Kind::Listener {
            add(&self.connections);
        }
        if kind == Kind::FromApp {
            add(&self.app_connections);
        }
    }

    fn enter(&self, stage: Stage) {
        self.stage.set(stage);
        // Taken out first: a waker may run code that comes back here.
        let wakers: Vec<Waker> = self.wakers.borrow_mut().iter_mut().filter_map(Option::take).collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl OpenConnection {
    /// Of the worker that it is open on.
    pub fn activity(&self) -> Rc<Activity> {
        Rc::clone(&self.registered.activity)
    }

    /// Its place among the worker's connections.
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// How far the drain is; the task is woken when that changes.
    pub fn poll_stage(&self, cx: &mut Context<'_>) -> Stage {
        self.registered.poll_stage(cx)
    }
}

impl Registered {
    /// How far the drain is; the task is woken when that changes.
    fn poll_stage(&self, cx: &mut Context<'_>) -> Stage {
        let stage = self.activity.stage.get();
        if stage < Stage::Refusing {
            let mut wakers = self.activity.wakers.borrow_mut();
            let waker = &mut wakers[self.slot];
            if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        stage
    }

    async fn reached(&self, stage: Stage) {
        poll_fn(|cx| {
            if self.poll_stage(cx) >= stage {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let activity = &self.activity;
        activity.wakers.borrow_mut()[self.slot] = None;
        activity.free.borrow_mut().push(self.slot);
        activity.count(self.kind, -1);
        if activity.stage.get() > Stage::Serving {
            activity.less.notify_waiters();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        if self.0.in_flight.get() == 0 && self.0.stage.get() > Stage::Serving {
            self.0.less.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Activity, App, GRACE, LAST, LOOK, OpenConnection, Phase, QUIET, Stage, channel};
    use crate::room::Room;
    use std::cell::Cell;
    use std::net::Ipv4Addr;
    use std::rc::Rc;
    use std::time::Duration;
    use tokio::time::{Instant, timeout};

    fn open(activity: &Rc<Activity>, from_app: bool) -> OpenConnection {
        activity.open(from_app, Room::for_test().enter_own(Ipv4Addr::LOCALHOST.into()))
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn waits_for_requests_and_for_connections_of_the_app() {
        let activity = Rc::new(Activity::default());
        let connection = open(&activity, true);
        let request = activity.begin();
        let drain = activity.drain(App::MayLive, || false);
        tokio::pin!(drain);
        let began = Instant::now();
        assert!(timeout(GRACE * 4, &mut drain).await.is_err());
        assert_eq!(activity.stage(), Stage::Closing);
        drop(request);
        assert!(timeout(GRACE, &mut drain).await.is_err());
        drop(connection);
        assert!(timeout(GRACE, &mut drain).await.is_ok());
        assert!(began.elapsed() < GRACE * 6);
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_that_lives_has_its_sidecar() {
        let activity = Rc::new(Activity::default());
        // It holds an idle connection, and nothing is in flight.
        let connection = open(&activity, true);
        let lives = Cell::new(true);
        let drain = activity.drain(App::MayLive, || lives.get());
        tokio::pin!(drain);
        assert!(timeout(LONG, &mut drain).await.is_err());
        assert_eq!(activity.stage(), Stage::Draining, "its idle connections stay open");
        // The app ends, and its connections with it.
        lives.set(false);
        drop(connection);
        let gone = Instant::now();
        drain.await;
        assert_eq!(activity.stage(), Stage::Refusing);
        assert!(gone.elapsed() <= QUIET + LOOK, "{:?}", gone.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_without_a_socket_between_its_calls_lives() {
        let activity = Rc::new(Activity::default());
        let drain = activity.drain(App::MayLive, || false);
        tokio::pin!(drain);
        for _ in 0..100 {
            drop(open(&activity, true));
            assert!(timeout(GRACE / 2, &mut drain).await.is_err());
        }
        assert_eq!(activity.stage(), Stage::Draining);
        let gone = Instant::now();
        drain.await;
        assert!(gone.elapsed() <= QUIET + LOOK + LAST, "{:?}", gone.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn with_nothing_to_wait_for_it_takes_the_time_of_grace() {
        let began = Instant::now();
        Activity::default().drain(App::MayLive, || false).await;
        assert_eq!(began.elapsed(), GRACE);
        // A peer that holds a connection and sends nothing is not waited for.
        let activity = Rc::new(Activity::default());
        let _idle = open(&activity, false);
        let began = Instant::now();
        activity.drain(App::MayLive, || false).await;
        assert_eq!(began.elapsed(), GRACE + LAST);
    }

    #[tokio::test(start_paused = true)]
    async fn who_ends_behind_the_app_with_nothing_to_wait_for_ends_at_once() {
        let began = Instant::now();
        let activity = Rc::new(Activity::default());
        activity.drain(App::Ended, || false).await;
        assert_eq!((activity.stage(), began.elapsed()), (Stage::Refusing, Duration::ZERO));
        // A connection that is open, of whomever, or another that lives, has the time of grace.
        for from_app in [true, false] {
            let activity = Rc::new(Activity::default());
            let open = open(&activity, from_app);
            assert!(timeout(GRACE / 2, activity.drain(App::Ended, || false)).await.is_err());
            assert_eq!(activity.stage(), Stage::Draining);
            drop(open);
        }
        let activity = Activity::default();
        assert!(timeout(LONG, activity.drain(App::Ended, || true)).await.is_err());
        assert_eq!(activity.stage(), Stage::Draining);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_comes_last_is_waited_for() {
        let activity = Rc::new(Activity::default());
        let connection = open(&activity, false);
        let drain = activity.drain(App::MayLive, || false);
        tokio::pin!(drain);
        assert!(timeout(GRACE + LAST / 2, &mut drain).await.is_err());
        assert_eq!(activity.stage(), Stage::Refusing);
        let request = activity.begin();
        assert!(timeout(LONG, &mut drain).await.is_err());
        drop((request, connection));
        assert!(timeout(LAST, &mut drain).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn phases_only_go_forward() {
        let (trigger, mut signal) = channel();
        trigger.enter(Phase::Forced);
        trigger.enter(Phase::Draining);
        timeout(Duration::from_secs(1), signal.reached(Phase::Forced))
            .await
            .expect("the signal was lost");
    }
}
