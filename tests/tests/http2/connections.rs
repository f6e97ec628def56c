//! GOAWAY, limits of concurrent streams, and flow control.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use outrigger_tests::mesh::{Authority, Sidecar, id};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use super::raw::{self, GOAWAY, HEADERS, Raw};
use super::{
    Between, EACH, H2App, all, answer, at_length, call, client, client_with, code, grpc_status, mesh, message, piece,
    send, soon, trailers,
};

fn limited(streams: u32) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(streams);
    builder
}

#[tokio::test]
async fn a_burst_waits_for_an_app_that_takes_few_streams() {
    for limit in [1, 10] {
        let now = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let app = H2App::with(limited(limit), usize::MAX, {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            move |_, mut respond| {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                let now = Arc::clone(&now);
                async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    now.fetch_sub(1, SeqCst);
                    let mut head = answer();
                    head.headers_mut().extend(trailers("0"));
                    respond.send_response(head, true).unwrap();
                }
            }
        })
        .await;
        for between in EACH {
            let before = app.connections();
            let mesh = mesh(between, app.address, "{retry: {attempts: 0}}").await;
            let client = client(mesh.to).await;
            let calls = (0..50).map(|_| {
                let mut client = client.clone();
                async move {
                    let (response, _) = client.send_request(call("/"), true).unwrap();
                    soon(response).await.unwrap()
                }
            });
            for response in join_all(calls).await {
                assert_eq!(grpc_status(response.headers()), Some("0"), "{between:?} {limit}");
            }
            // h2 itself refuses what is beyond the limit; so none was.
            let connections = app.connections() - before;
            assert!((1..=8).contains(&connections), "{connections}");
            assert!(most.load(SeqCst) <= limit as usize * 8, "{most:?}");
        }
    }
}

#[tokio::test]
async fn streams_that_stay_open_do_not_lock_out_others() {
    // Two streams for each connection, and both are taken for good.
    let app = H2App::with(limited(2), usize::MAX, |request, mut respond| async move {
        let mut stream = respond.send_response(answer(), false).unwrap();
        stream.send_data("here".into(), false).unwrap();
        if request.uri().path() == "/watch" {
            let _ = all(request.into_body()).await;
        }
        stream.send_trailers(trailers("0")).unwrap();
    })
    .await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;
        let mut watches = Vec::new();
        for _ in 0..5 {
            let (response, out) = client.send_request(call("/watch"), false).unwrap();
            let mut body = soon(response).await.unwrap().into_body();
            assert_eq!(piece(&mut body).await.unwrap().unwrap(), "here", "{between:?}");
            watches.push((body, out));
            let (response, _) = client.send_request(call("/"), true).unwrap();
            assert_eq!(all(soon(response).await.unwrap().into_body()).await.unwrap().0, b"here");
        }
        for (body, mut out) in watches {
            out.send_data(Bytes::new(), true).unwrap();
            assert_eq!(grpc_status(&all(body).await.unwrap().1.unwrap()), Some("0"));
        }
    }
}

#[tokio::test]
async fn an_apps_goaway_moves_new_streams_and_leaves_old_ones() {
    // Each connection takes two requests, and says GOAWAY with the second.
    let app = H2App::with(h2::server::Builder::new(), 2, |request, mut respond| async move {
        let mut stream = respond.send_response(answer(), false).unwrap();
        stream.send_data("first".into(), false).unwrap();
        all(request.into_body()).await.unwrap();
        stream.send_data("last".into(), false).unwrap();
        stream.send_trailers(trailers("0")).unwrap();
    })
    .await;
    for between in EACH {
        let before = app.connections();
        let mesh = mesh(between, app.address, "{retry: {attempts: 0}}").await;
        let mut client = client(mesh.to).await;
        let mut open = Vec::new();
        for _ in 0..6 {
            let (response, out) = client.send_request(call("/"), false).unwrap();
            let response = soon(response).await.unwrap();
            assert_eq!(code(response.headers()), None, "{between:?} {response:?}");
            let mut body = response.into_body();
            assert_eq!(piece(&mut body).await.unwrap().unwrap(), "first", "{between:?}");
            open.push((body, out));
        }
        assert_eq!(app.connections() - before, 3, "{between:?}");
        for (body, mut out) in open {
            out.send_data(Bytes::new(), true).unwrap();
            let (bytes, end) = all(body).await.unwrap();
            assert_eq!((&bytes[..], grpc_status(&end.unwrap())), (&b"last"[..], Some("0")));
        }
    }
}

#[tokio::test]
async fn an_apps_goaway_loses_nothing_that_waits() {
    // One stream at a time, and GOAWAY with each third: calls wait, and their connection goes.
    let calls = Arc::new(AtomicUsize::new(0));
    let app = H2App::with(limited(1), 3, {
        let calls = Arc::clone(&calls);
        move |request, mut respond| {
            calls.fetch_add(1, SeqCst);
            async move {
                all(request.into_body()).await.unwrap();
                let mut head = answer();
                head.headers_mut().extend(trailers("0"));
                respond.send_response(head, true).unwrap();
            }
        }
    })
    .await;
    for between in [Between::Both, Between::CallersSidecar] {
        calls.store(0, SeqCst);
        let mesh = mesh(between, app.address, "{retry: {budget: {minPerSecond: 100}}}").await;
        let client = client(mesh.to).await;
        let posts = (0..60).map(|_| {
            let mut client = client.clone();
            async move {
                let (response, mut body) = client.send_request(call("/"), false).unwrap();
                body.send_data(message(b"pay"), true).unwrap();
                soon(response).await.unwrap()
            }
        });
        for response in join_all(posts).await {
            assert_eq!(grpc_status(response.headers()), Some("0"), "{between:?} {response:?}");
        }
        assert_eq!(calls.load(SeqCst), 60, "{between:?}: none twice");
    }
}

#[tokio::test]
async fn what_is_above_the_last_stream_of_a_goaway_is_sent_again() {
    for between in EACH {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = listener.local_addr().unwrap();
        let (took, taken) = oneshot::channel();
        let server = tokio::spawn(async move {
            let mut first = Raw::accept(&listener).await;
            let one = first.until(HEADERS).await.unwrap().stream;
            took.send(()).unwrap();
            let two = first.until(HEADERS).await.unwrap().stream;
            assert!(two > one);
            // The second was not processed (RFC 9113 section 6.8), and the first goes on.
            let goaway = [one.to_be_bytes(), 0_u32.to_be_bytes()].concat();
            first.send(&raw::frame(GOAWAY, 0, 0, &goaway)).await;
            let mut second = Raw::accept(&listener).await;
            let again = second.until(HEADERS).await.unwrap().stream;
            let flags = raw::END_HEADERS | raw::END_STREAM;
            second.send(&raw::frame(HEADERS, flags, again, raw::STATUS_200)).await;
            first.send(&raw::frame(HEADERS, flags, one, raw::STATUS_200)).await;
            // Until the sidecar closes them.
            while first.next().await.is_some() {}
            while second.next().await.is_some() {}
        });
        let mesh = mesh(between, app, "{}").await;
        let mut client = client(mesh.to).await;
        let post = || Request::post("http://orders.shop/").body(()).unwrap();
        let (one, _) = client.send_request(post(), true).unwrap();
        soon(taken).await.unwrap();
        let (two, _) = client.send_request(post(), true).unwrap();
        assert_eq!(soon(two).await.unwrap().status(), 200, "{between:?}");
        assert_eq!(soon(one).await.unwrap().status(), 200, "{between:?}");
        drop((client, mesh));
        server.abort();
    }
}

#[tokio::test]
async fn a_clients_goaway_lets_its_streams_finish() {
    let (go, goes) = tokio::sync::watch::channel(false);
    let app = H2App::start(move |_, mut respond| {
        let mut goes = goes.clone();
        async move {
            goes.wait_for(|go| *go).await.unwrap();
            respond.send_response(answer(), true).unwrap();
        }
    })
    .await;
    for between in EACH {
        go.send_replace(false);
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = Raw::connect(mesh.to, &[]).await;
        let flags = raw::END_HEADERS | raw::END_STREAM;
        client.send(&raw::frame(HEADERS, flags, 1, &raw::request(false))).await;
        client.send(&raw::frame(GOAWAY, 0, 0, &[0; 8])).await;
        // The sidecar has read it when it answers what comes after.
        client.send(&raw::frame(raw::PING, 0, 0, &[7; 8])).await;
        loop {
            let frame = client.next().await.unwrap();
            if frame.kind == raw::PING && frame.payload == [7; 8] {
                break;
            }
        }
        go.send_replace(true);
        let response = client.until(HEADERS).await.unwrap();
        assert_eq!(
            (response.stream, response.payload[0]),
            (1, raw::STATUS_200[0]),
            "{between:?}"
        );
        // Then the connection ends.
        while client.next().await.is_some() {}
    }
}

/// Bytes that got past the sender, once no more do.
async fn when_it_stops(bytes: &AtomicUsize) -> usize {
    let mut before = bytes.load(SeqCst);
    let mut same = 0;
    while same < 10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = bytes.load(SeqCst);
        same = if now == before && now > 0 { same + 1 } else { 0 };
        before = now;
    }
    before
}

/// What lies between two ends at most: a stream's windows at three places.
const ON_THE_WAY: usize = 1 << 20;

async fn pour(mut stream: h2::SendStream<Bytes>, sent: &AtomicUsize, length: usize) {
    let chunk = Bytes::from(vec![7; 1 << 14]);
    while sent.load(SeqCst) < length {
        send(&mut stream, chunk.clone(), false).await.unwrap();
        sent.fetch_add(chunk.len(), SeqCst);
    }
    stream.send_trailers(trailers("0")).unwrap();
}

#[tokio::test]
async fn who_does_not_read_makes_the_other_wait() {
    let sent = Arc::new(AtomicUsize::new(0));
    let (held, mut holds) = mpsc::unbounded_channel();
    let app = H2App::start({
        let sent = Arc::clone(&sent);
        move |request, mut respond| {
            let (sent, held) = (Arc::clone(&sent), held.clone());
            async move {
                if let Some(length) = request.uri().path().strip_prefix("/download/") {
                    let stream = respond.send_response(answer(), false).unwrap();
                    return pour(stream, &sent, length.parse().unwrap()).await;
                }
                // The upload is not read until the test says so.
                let (read, reads) = oneshot::channel::<()>();
                held.send(read).unwrap();
                reads.await.unwrap();
                let (bytes, _) = all(request.into_body()).await.unwrap();
                let mut head = answer();
                let length = bytes.len().to_string();
                head.headers_mut().insert("x-length", length.parse().unwrap());
                respond.send_response(head, true).unwrap();
            }
        }
    })
    .await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;
        let length = if between == Between::Both { 64 << 20 } else { 8 << 20 };
        sent.store(0, SeqCst);
        let (response, _) = client.send_request(call(&format!("/download/{length}")), true).unwrap();
        let body = soon(response).await.unwrap().into_body();
        let stopped = when_it_stops(&sent).await;
        assert!(stopped < ON_THE_WAY, "{between:?}: {stopped} bytes lie about");
        assert_eq!(all(body).await.unwrap().0.len(), length);

        sent.store(0, SeqCst);
        let (response, out) = client.send_request(call("/upload"), false).unwrap();
        let upload = tokio::spawn({
            let sent = Arc::clone(&sent);
            async move { pour(out, &sent, length).await }
        });
        let read = soon(holds.recv()).await.unwrap();
        let stopped = when_it_stops(&sent).await;
        assert!(stopped < ON_THE_WAY, "{between:?}: {stopped} bytes lie about");
        read.send(()).unwrap();
        assert_eq!(
            at_length(response).await.unwrap().headers()["x-length"],
            length.to_string()
        );
        upload.await.unwrap();
    }
}

#[tokio::test]
async fn responses_that_nobody_reads_stop_nobody_else() {
    let app = H2App::start(|request, mut respond| async move {
        let mut stream = respond.send_response(answer(), false).unwrap();
        if request.uri().path() == "/large" {
            let _ = send(&mut stream, Bytes::from(vec![7; 1 << 20]), true).await;
        } else {
            send(&mut stream, "here".into(), false).await.unwrap();
            stream.send_trailers(trailers("0")).unwrap();
        }
    })
    .await;
    let authority = Authority::start(&["web", "other", "orders"], Duration::from_secs(86_400)).await;
    let orders = Sidecar::new("orders").protects(app.address).start(&authority).await;
    let endpoint = [(orders.inbound[0], Some(id("orders")))];
    let web = Sidecar::new("web")
        .calls("orders", "http2", &endpoint, "{}")
        .start(&authority)
        .await;
    let other = Sidecar::new("other")
        .calls("orders", "http2", &endpoint, "{}")
        .start(&authority)
        .await;
    let mut windowless = h2::client::Builder::new();
    windowless.initial_window_size(0);
    let mut reader = client(other.outbound[0]).await;
    let mut neighbour = client(web.outbound[0]).await;
    let mut unread = Vec::new();
    for n in 0..100 {
        if n % 25 == 0 {
            unread.push((client_with(web.outbound[0], &windowless).await, Vec::new()));
        }
        let (of, bodies) = unread.last_mut().unwrap();
        let (response, _) = of.send_request(call("/large"), true).unwrap();
        bodies.push(response);
        // Those of another pod are served whatever happens; the same pod's, while there are few.
        let clients = [Some(&mut reader), Some(&mut neighbour).filter(|_| n < 20)];
        for client in clients.into_iter().flatten() {
            let (response, _) = client.send_request(call("/"), true).unwrap();
            let (_, end) = all(soon(response).await.unwrap().into_body()).await.unwrap();
            assert_eq!(grpc_status(&end.unwrap()), Some("0"), "after {n}");
        }
    }
}
