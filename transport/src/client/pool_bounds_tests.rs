//! Pools whose connections are limited, together and each. On paused time, with connections in memory.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use super::Pool;
use super::tests::{MS, run};
use crate::body::RequestBody;
use crate::client::{Dialer, send};
use crate::error::{ProxyError, Reason};
use crate::executor::LocalExecutor;
use crate::net::count::{Bound, Count, Place};
use crate::net::{HttpVersion, Io, Stream};

const VERSIONS: [HttpVersion; 2] = [HttpVersion::Http1, HttpVersion::Http2];

fn bound(most: usize) -> Bound {
    Bound {
        count: Arc::<Count>::default(),
        most,
    }
}

/// Endpoints of one backend, whose connections are counted together.
#[derive(Clone)]
struct Backend {
    pools: Rc<Vec<Rc<Pool>>>,
    all: Bound,
    pending: Option<Bound>,
    /// How long an answer takes.
    answer: Duration,
    made: Rc<Cell<usize>>,
}

/// One of them.
struct Endpoint {
    backend: Backend,
    bounds: [Bound; 1],
}

impl Backend {
    fn new(endpoints: usize, most: usize, pending: Option<usize>, answer: Duration) -> Self {
        Self {
            pools: Rc::new((0..endpoints).map(|_| Rc::new(Pool::new(true))).collect()),
            all: bound(most),
            pending: pending.map(bound),
            answer,
            made: Rc::default(),
        }
    }

    /// A request to one of them: when it was answered, or why not.
    fn ask(&self, endpoint: usize, version: HttpVersion) -> JoinHandle<Result<Instant, Reason>> {
        let pool = Rc::clone(&self.pools[endpoint]);
        let peer = Endpoint {
            backend: self.clone(),
            bounds: [self.all.clone()],
        };
        spawn_local(async move {
            let checkout = pool.checkout(version, &peer).await.map_err(|error| error.reason)?;
            let request = Request::get("http://a/").header("host", "a").body(RequestBody::Empty);
            let (_, lease) = send(checkout, request.unwrap(), peer.address()).await.ok().unwrap();
            lease.release();
            Ok(Instant::now())
        })
    }

    fn open(&self) -> usize {
        self.all.count.taken()
    }

    fn sweep(&self) {
        self.pools.iter().for_each(|pool| pool.sweep(Instant::now()));
    }
}

impl Dialer for Endpoint {
    fn address(&self) -> SocketAddr {
        ([10, 0, 0, 1], 80).into()
    }

    fn generation(&self) -> u64 {
        0
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn connections(&self) -> &[Bound] {
        &self.bounds
    }

    fn wait(&self) -> Result<Option<Place>, ProxyError> {
        let Some(pending) = &self.backend.pending else {
            return Ok(None);
        };
        let too_many = || ProxyError::new(Reason::Overloaded, "too many wait");
        pending.take().map(Some).ok_or_else(too_many)
    }

    fn make_room(&self) {
        self.backend.pools.iter().any(|pool| pool.close_idle());
    }

    fn connect(&self, version: HttpVersion) -> impl Future<Output = Result<Stream, ProxyError>> + 'static {
        self.backend.made.set(self.backend.made.get() + 1);
        let (near, far) = tokio::io::duplex(64 * 1024);
        let answer = self.backend.answer;
        let answer = service_fn(move |_| async move {
            sleep(answer).await;
            Ok::<_, Infallible>(Response::new(String::new()))
        });
        let far = TokioIo::new(far);
        match version {
            HttpVersion::Http1 => drop(spawn_local(http1::Builder::new().serve_connection(far, answer))),
            HttpVersion::Http2 => {
                let mut server = http2::Builder::new(LocalExecutor);
                server.max_concurrent_streams(2);
                drop(spawn_local(server.serve_connection(far, answer)));
            }
        }
        std::future::ready(Ok(Io::Pipe(near).into()))
    }
}

#[test]
fn there_are_never_more_connections_and_everybody_is_answered() {
    for (version, endpoints) in [
        (HttpVersion::Http1, 1),
        (HttpVersion::Http1, 3),
        (HttpVersion::Http2, 1),
        (HttpVersion::Http2, 3),
    ] {
        run(async move {
            let backend = Backend::new(endpoints, 2, None, 10 * MS);
            let requests: Vec<_> = (0..60).map(|n| backend.ask(n % endpoints, version)).collect();
            let mut most = 0;
            while !requests.iter().all(JoinHandle::is_finished) {
                sleep(MS).await;
                most = most.max(backend.open());
                // As the worker's timer does, once a second.
                backend.sweep();
            }
            // Over HTTP/2 there is one to each endpoint in any case.
            let may_be = if version == HttpVersion::Http2 {
                endpoints.max(2)
            } else {
                2
            };
            assert_eq!(most, may_be, "{version:?}, {endpoints} endpoints");
            for request in requests {
                request.await.unwrap().unwrap();
            }
        });
    }
}

#[test]
fn one_connection_serves_all_who_wait_for_it() {
    run(async {
        let backend = Backend::new(1, 1, None, 10 * MS);
        let requests: Vec<_> = (0..50).map(|_| backend.ask(0, HttpVersion::Http1)).collect();
        for request in requests {
            request.await.unwrap().unwrap();
        }
        assert_eq!(backend.made.get(), 1);
    });
}

/// Whose connection always has something to do does not keep others out for ever.
#[test]
fn who_calls_another_endpoint_has_its_turn() {
    for version in VERSIONS {
        run(async move {
            let backend = Backend::new(2, 1, None, 10 * MS);
            for _ in 0..20 {
                let backend = backend.clone();
                spawn_local(async move {
                    loop {
                        backend.ask(0, version).await.unwrap().unwrap();
                        // A client hears of the answer before it asks again.
                        sleep(MS).await;
                    }
                });
            }
            sleep(100 * MS).await;
            let other = backend.ask(1, version);
            let mut sweeps = 0;
            while !other.is_finished() {
                sleep(Duration::from_secs(1)).await;
                backend.sweep();
                sweeps += 1;
                assert!(sweeps < 5, "{version:?}: it waits for ever");
            }
        });
    }
}

/// Streams may last for days, and hold up neither those to their own endpoint nor those to another.
#[test]
fn streams_that_do_not_end_keep_nobody_out() {
    run(async {
        let backend = Backend::new(3, 2, None, Duration::from_secs(86_400));
        let _streams: Vec<_> = (0..2).map(|n| backend.ask(n, HttpVersion::Http2)).collect();
        sleep(MS).await;
        let other = backend.ask(2, HttpVersion::Http2);
        let same = backend.ask(0, HttpVersion::Http2);
        for _ in 0..5 {
            sleep(Duration::from_secs(1)).await;
            backend.sweep();
        }
        assert_eq!((backend.made.get(), backend.all.count.wanted()), (3, 0), "all are sent");
        assert!(
            !other.is_finished() && !same.is_finished(),
            "and wait for their answers"
        );
    });
}

/// A policy has another limit, or was away for a while.
#[test]
fn what_is_counted_is_what_the_last_request_was_limited_by() {
    run(async {
        let backend = Backend::new(1, 1, None, MS);
        backend.ask(0, HttpVersion::Http1).await.unwrap().unwrap();
        let later = Backend {
            all: bound(1),
            ..backend.clone()
        };
        later.ask(0, HttpVersion::Http1).await.unwrap().unwrap();
        assert_eq!(later.made.get(), 1, "the connection is still the first");
        let counts = backend.pools[0].counts.borrow();
        assert!(counts.len() == 1 && Arc::ptr_eq(&counts[0], &later.all.count));
    });
}

#[test]
fn who_has_gone_is_not_kept() {
    run(async {
        let backend = Backend::new(1, 1, None, Duration::from_secs(86_400));
        let _held = backend.ask(0, HttpVersion::Http1);
        sleep(MS).await;
        for _ in 0..10_000 {
            let gone = backend.ask(0, HttpVersion::Http1);
            sleep(MS).await;
            gone.abort();
            assert!(gone.await.is_err());
        }
        assert!(backend.pools[0].dials.kept_out_in_all() < 100);
    });
}

#[test]
fn an_idle_connection_is_closed_for_who_needs_its_place() {
    for version in VERSIONS {
        run(async move {
            let backend = Backend::new(2, 1, None, MS);
            backend.ask(0, version).await.unwrap().unwrap();
            assert_eq!(backend.open(), 1, "{version:?}: it is kept");
            let began = Instant::now();
            let answered = timeout(100 * MS, backend.ask(1, version)).await.unwrap();
            assert!(answered.unwrap().unwrap() - began < 10 * MS, "{version:?}");
            assert_eq!((backend.open(), backend.made.get()), (1, 2), "{version:?}");
        });
    }
}

#[test]
fn of_those_who_wait_there_are_so_many() {
    for (version, pending, answered) in [
        // One is sent, and these wait.
        (HttpVersion::Http1, 3, 4),
        // Two streams of one connection.
        (HttpVersion::Http2, 3, 5),
    ] {
        run(async move {
            let backend = Backend::new(1, 1, Some(pending), 10 * MS);
            backend.ask(0, version).await.unwrap().unwrap();
            let requests: Vec<_> = (0..20).map(|_| backend.ask(0, version)).collect();
            let mut seen = (0, 0);
            for request in requests {
                match request.await.unwrap() {
                    Ok(_) => seen.0 += 1,
                    Err(reason) => {
                        assert_eq!(reason, Reason::Overloaded);
                        seen.1 += 1;
                    }
                }
            }
            assert_eq!(seen, (answered, 20 - answered), "{version:?}");
            assert_eq!(backend.pending.unwrap().count.taken(), 0);
        });
    }
}

#[test]
fn who_gives_up_leaves_its_place_to_others() {
    for version in VERSIONS {
        run(async move {
            let backend = Backend::new(1, 1, Some(100), 10 * MS);
            let requests: Vec<_> = (0..20).map(|_| backend.ask(0, version)).collect();
            sleep(MS).await;
            for request in requests.iter().step_by(2).skip(1) {
                request.abort();
            }
            for request in requests.into_iter().skip(1).step_by(2) {
                request.await.unwrap().unwrap();
            }
            assert_eq!(backend.open(), 1, "{version:?}");
            assert_eq!(backend.pending.unwrap().count.taken(), 0, "{version:?}");
        });
    }
}
