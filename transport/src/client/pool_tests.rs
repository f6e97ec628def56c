//! On paused time, with connections in memory.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::Pool;
use crate::body::RequestBody;
use crate::client::send;
use crate::net::{Io, Prefixed, Stream};

const MS: Duration = Duration::from_millis(1);

/// Connects to a server that answers each request after `answer`.
fn connect(answer: Duration) -> Stream {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let answer = service_fn(move |_| async move {
        sleep(answer).await;
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let served = http1::Builder::new().serve_connection(TokioIo::new(far), answer);
    spawn_local(served);
    Stream::Plain(Prefixed::new(bytes::Bytes::new(), Io::Pipe(near)))
}

/// Sends `n` requests at once to a peer in the mesh, or outside of it; gives how many connections they took.
fn burst(mesh: bool, n: usize, handshake: Duration, answer: Duration) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build_local(tokio::runtime::LocalOptions::default());
    runtime.unwrap().block_on(async move {
        let pool = Rc::new(Pool::new(mesh));
        let made = Rc::new(Cell::new(0));
        let requests = (0..n).map(|_| {
            let (pool, made) = (Rc::clone(&pool), Rc::clone(&made));
            spawn_local(async move {
                let connect = async || {
                    sleep(handshake).await;
                    made.set(made.get() + 1);
                    Ok(connect(answer))
                };
                let checkout = pool.http1(0, connect).await.ok().unwrap();
                let request = Request::get("/").header("host", "a").body(RequestBody::Empty).unwrap();
                let (_, lease) = send(checkout, request, ([10, 0, 0, 1], 80).into()).await.ok().unwrap();
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
