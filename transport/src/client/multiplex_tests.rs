//! On paused time, with connections in memory.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use super::{MAX_CONNECTIONS, Multiplex, Slot};
use crate::client::Dialer;
use crate::error::{ProxyError, Reason};
use crate::net::{HttpVersion, Io, Stream};

const LIMIT: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn run(test: impl Future<Output = ()> + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build_local(tokio::runtime::LocalOptions::default());
    runtime.unwrap().block_on(test);
}

/// A slot, and whether its connection was there before.
type Got = Result<(Slot, bool), ProxyError>;

/// A peer: what it does with connections, and how many it was asked for.
#[derive(Clone)]
struct Peer {
    multiplex: Rc<Multiplex>,
    dials: Rc<Cell<usize>>,
    does: Rc<Cell<Does>>,
}

#[derive(Clone, Copy)]
enum Does {
    /// Each connection fails after this time.
    Fail(Duration),
    /// Takes it, and says nothing.
    Hang,
    /// Takes it, and closes it at the first byte.
    Close,
    /// Speaks HTTP/2 after this time.
    Serve(Duration),
    /// Speaks HTTP/2, and takes two streams.
    ServeTwo,
}

impl Peer {
    fn new(does: Does) -> Self {
        Self {
            multiplex: Rc::default(),
            dials: Rc::default(),
            does: Rc::new(Cell::new(does)),
        }
    }

    /// A request: gives its slot, whether the connection was there before, and when.
    async fn slot(&self, generation: u64) -> (Got, Duration) {
        let began = Instant::now();
        let shown = Shown { peer: self, generation };
        let slot = self.multiplex.slot(&shown).await;
        (slot, began.elapsed())
    }

    fn spawn(&self, generation: u64) -> JoinHandle<(Got, Duration)> {
        let peer = self.clone();
        spawn_local(async move { peer.slot(generation).await })
    }
}

/// Shows the peer credentials of a generation.
struct Shown<'a> {
    peer: &'a Peer,
    generation: u64,
}

impl Dialer for Shown<'_> {
    fn address(&self) -> SocketAddr {
        ([10, 0, 0, 1], 80).into()
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn limit(&self) -> Duration {
        LIMIT
    }

    fn connect(&self, _: HttpVersion) -> impl Future<Output = Result<Stream, ProxyError>> + 'static {
        self.peer.dials.set(self.peer.dials.get() + 1);
        connect(self.peer.does.get())
    }
}

async fn connect(does: Does) -> Result<Stream, ProxyError> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    match does {
        Does::Fail(after) => {
            sleep(after).await;
            return Err(ProxyError::new(Reason::ConnectFailed, "nobody is there"));
        }
        Does::Hang => drop(spawn_local(async move {
            let _far = far;
            std::future::pending::<()>().await;
        })),
        Does::Close => drop(spawn_local(async move {
            let mut far = far;
            far.read_u8().await.unwrap();
        })),
        Does::Serve(after) => drop(spawn_local(serve(far, after, 100))),
        Does::ServeTwo => drop(spawn_local(serve(far, Duration::ZERO, 2))),
    }
    Ok(Io::Pipe(near).into())
}

async fn serve(far: DuplexStream, after: Duration, streams: u32) {
    sleep(after).await;
    let mut server = h2::server::Builder::new();
    let mut connection = server
        .max_concurrent_streams(streams)
        .handshake::<_, bytes::Bytes>(far)
        .await
        .unwrap();
    while let Some(Ok(_)) = connection.accept().await {}
}

#[test]
fn those_who_wait_share_a_failure() {
    for (does, reason, at) in [
        (Does::Fail(LIMIT), Reason::ConnectFailed, LIMIT),
        (Does::Hang, Reason::ConnectTimeout, LIMIT),
        (Does::Close, Reason::UpstreamRefused, Duration::ZERO),
    ] {
        run(async move {
            let peer = Peer::new(does);
            let waiting: Vec<_> = (0..50).map(|_| peer.spawn(1)).collect();
            for waiter in waiting {
                let (slot, after) = waiter.await.unwrap();
                assert_eq!(slot.err().unwrap().reason, reason);
                assert!((at..at + 2 * MS).contains(&after), "{reason:?} after {after:?}");
            }
            assert_eq!(peer.dials.get(), 1);
            // Who comes later tries again.
            assert!(peer.slot(1).await.0.is_err());
            assert_eq!(peer.dials.get(), 2);
        });
    }
}

#[test]
fn a_connection_outlives_the_request_that_asked_for_it() {
    run(async {
        let peer = Peer::new(Does::Serve(20 * MS));
        // None of these waits for as long as it takes.
        for _ in 0..5 {
            let waiter = peer.spawn(1);
            sleep(5 * MS).await;
            waiter.abort();
        }
        let (slot, _) = peer.slot(1).await;
        assert!(slot.is_ok());
        assert_eq!(peer.dials.get(), 1);
        // And a failure reaches those who still wait.
        let peer = Peer::new(Does::Hang);
        let first = peer.spawn(1);
        sleep(LIMIT / 2).await;
        let second = peer.spawn(1);
        sleep(MS).await;
        first.abort();
        let (slot, after) = second.await.unwrap();
        assert_eq!(slot.err().unwrap().reason, Reason::ConnectTimeout);
        assert!(after <= LIMIT / 2 + 2 * MS, "{after:?}");
        assert_eq!(peer.dials.get(), 1);
    });
}

#[test]
fn settings_are_waited_for_and_say_how_many() {
    run(async {
        let peer = Peer::new(Does::Serve(LIMIT / 2));
        let waiting: Vec<_> = (0..50).map(|_| peer.spawn(1)).collect();
        let mut slots = Vec::new();
        for waiter in waiting {
            let (slot, after) = waiter.await.unwrap();
            assert!(after >= LIMIT / 2, "{after:?}");
            slots.push(slot.unwrap());
        }
        assert_eq!(peer.dials.get(), 1, "one connection is enough");
        assert_eq!(slots.iter().filter(|(_, was_there)| !was_there).count(), 1);
    });
}

#[test]
fn all_who_wait_for_a_stream_hear_of_a_new_connection() {
    run(async {
        let peer = Peer::new(Does::ServeTwo);
        let mut slots = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            slots.push(peer.slot(1).await.0.unwrap().0);
        }
        peer.does.set(Does::Serve(Duration::ZERO));
        let waiting: Vec<_> = (0..3).map(|_| peer.spawn(1)).collect();
        sleep(MS).await;
        assert!(waiting.iter().all(|waiter| !waiter.is_finished()));
        // One of them takes no more requests, and has one yet; the one in its place takes many.
        let left = slots.pop().unwrap();
        left.leave();
        drop(left);
        for waiter in waiting {
            let (slot, _) = timeout(LIMIT, waiter).await.expect("it waits on").unwrap();
            slots.push(slot.unwrap().0);
        }
        assert_eq!(peer.dials.get(), MAX_CONNECTIONS + 1);
    });
}

#[test]
fn who_waits_for_a_stream_does_not_wait_for_connections_that_have_left() {
    run(async {
        let peer = Peer::new(Does::ServeTwo);
        let mut slots = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            slots.push(peer.slot(1).await.0.unwrap().0);
        }
        let waiting = peer.spawn(1);
        sleep(MS).await;
        assert!(!waiting.is_finished());
        // None of them takes requests any more, and no stream ends.
        slots.iter().for_each(Slot::leave);
        peer.multiplex.sweep(|_| false);
        let (slot, _) = timeout(LIMIT, waiting).await.expect("it waits on").unwrap();
        assert!(slot.is_ok());
        assert_eq!(peer.dials.get(), MAX_CONNECTIONS + 1);
    });
}

#[test]
fn newer_credentials_do_not_wait_for_a_connection_with_old_ones() {
    run(async {
        let peer = Peer::new(Does::Fail(LIMIT));
        let old = peer.spawn(1);
        sleep(LIMIT / 2).await;
        let new = peer.spawn(2);
        assert!(old.await.unwrap().1 <= LIMIT + 2 * MS);
        let (_, after) = new.await.unwrap();
        assert!((LIMIT..LIMIT + 2 * MS).contains(&after), "{after:?}");
        assert_eq!(peer.dials.get(), 2);
    });
}
