//! On paused time, with connections in memory.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::Pool;
use crate::body::RequestBody;
use crate::client::Dialer;
use crate::client::send;
use crate::error::ProxyError;
use crate::net::{HttpVersion, Io, Stream};

pub(super) const MS: Duration = Duration::from_millis(1);

/// Connects to a server that answers each request after `answer`.
fn connect(answer: Duration) -> Stream {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let answer = service_fn(move |_| async move {
        sleep(answer).await;
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let served = http1::Builder::new().serve_connection(TokioIo::new(far), answer);
    spawn_local(served);
    Io::Pipe(near).into()
}

/// A peer whose handshakes and answers take some time.
#[derive(Clone)]
struct Peer {
    handshake: Duration,
    answer: Duration,
    made: Rc<Cell<usize>>,
    under_way: Rc<Cell<usize>>,
}

/// A handshake, until it is over or given up.
struct UnderWay(Rc<Cell<usize>>);

impl UnderWay {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Dialer for Peer {
    fn address(&self) -> SocketAddr {
        ([10, 0, 0, 1], 80).into()
    }

    fn generation(&self) -> u64 {
        0
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn connect(&self, _: HttpVersion) -> impl Future<Output = Result<Stream, ProxyError>> + 'static {
        let peer = self.clone();
        async move {
            let _under_way = UnderWay::new(&peer.under_way);
            sleep(peer.handshake).await;
            peer.made.set(peer.made.get() + 1);
            Ok(connect(peer.answer))
        }
    }
}

impl Peer {
    fn new(handshake: Duration, answer: Duration) -> Self {
        Self {
            handshake,
            answer,
            made: Rc::default(),
            under_way: Rc::default(),
        }
    }
}

/// On paused time, with tasks of one thread.
pub(super) fn run<T: 'static>(test: impl Future<Output = T> + 'static) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build_local(tokio::runtime::LocalOptions::default());
    runtime.unwrap().block_on(test)
}

/// Sends `n` requests at once to a peer in the mesh, or outside of it; gives how many connections they took.
fn burst(mesh: bool, n: usize, handshake: Duration, answer: Duration) -> usize {
    run(async move {
        let pool = Rc::new(Pool::new(mesh));
        let peer = Peer::new(handshake, answer);
        let made = Rc::clone(&peer.made);
        let requests = (0..n).map(|_| {
            let (pool, peer) = (Rc::clone(&pool), peer.clone());
            spawn_local(async move {
                let checkout = pool.checkout(HttpVersion::Http1, &peer).await.ok().unwrap();
                let request = Request::get("/").header("host", "a").body(RequestBody::Empty).unwrap();
                let (_, lease) = send(checkout, request, peer.address()).await.ok().unwrap();
                lease.release();
            })
        });
        for request in requests.collect::<Vec<_>>() {
            request.await.unwrap();
        }
        made.get()
    })
}

#[test]
fn a_burst_waits_for_the_connections_that_there_are() {
    // Each connection answers as many requests as the next ones take to be made.
    let made = burst(true, 400, 10 * MS, MS);
    assert!((8..=40).contains(&made), "{made}");
    // Outside of the mesh there are no handshakes that cost anything, and nobody waits.
    assert_eq!(burst(false, 400, 10 * MS, MS), 400);
}

#[test]
fn requests_that_take_long_have_all_the_connections_that_they_need() {
    assert_eq!(burst(true, 400, 10 * MS, Duration::from_secs(3)), 400);
}

#[test]
fn clients_that_wait_for_less_than_a_handshake_takes_get_a_connection_in_the_end() {
    for mesh in [true, false] {
        run(async move {
            let pool = Rc::new(Pool::new(mesh));
            let peer = Peer::new(100 * MS, MS);
            let mut tries = 1;
            while timeout(30 * MS, pool.checkout(HttpVersion::Http1, &peer))
                .await
                .is_err()
            {
                tries += 1;
                assert!(tries < 10, "nobody gets one");
            }
            // The fourth is there when the first connection is, and waits for its own.
            assert_eq!(tries, 5, "it takes the first that is made");
        });
    }
}

#[test]
fn of_connections_whose_requests_have_gone_few_are_made_on() {
    for mesh in [true, false] {
        run(async move {
            let pool = Rc::new(Pool::new(mesh));
            let peer = Peer::new(Duration::from_secs(1), MS);
            let impatient = |_| {
                let (pool, peer) = (Rc::clone(&pool), peer.clone());
                spawn_local(async move {
                    let got = timeout(300 * MS, pool.checkout(HttpVersion::Http1, &peer)).await;
                    assert!(got.is_err());
                })
            };
            let requests: Vec<_> = (0..100).map(impatient).collect();
            sleep(200 * MS).await;
            assert_eq!(peer.under_way.get(), 100, "each waits for one");
            for request in requests {
                request.await.unwrap();
            }
            sleep(MS).await;
            assert_eq!(peer.under_way.get(), 8, "{mesh}");
            sleep(Duration::from_secs(1)).await;
            assert_eq!((peer.under_way.get(), peer.made.get()), (0, 8), "{mesh}");
            // They are kept.
            let got = timeout(MS, pool.checkout(HttpVersion::Http1, &peer)).await.unwrap();
            assert!(got.ok().unwrap().reused);
        });
    }
}
