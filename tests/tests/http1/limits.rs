//! Clients that send too much or too slowly, or do not read: bounded, and no harm to others.

use std::time::Duration;

use outrigger_tests::mesh::metric;
use tokio::io::AsyncWriteExt;

use super::wire::{Scene, WAYS, Way, without_ours};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn a_head_over_the_limit() {
    let cookie = |size: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n", "a".repeat(size));
    let many = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(count));
    for way in WAYS {
        let scene = Scene::new(way).await;
        for head in [
            cookie(65_500),
            cookie(64 * 1024),
            cookie(140_000),
            // It does not even have an end.
            cookie(2 * MIB),
            many(120),
            many(20_000),
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(66_000)),
        ] {
            let mut client = scene.client().await;
            // The sidecar may have had enough before it has read all.
            let _ = client.stream.write_all(head.as_bytes()).await;
            let answer = client.head().await;
            let size = head.len();
            assert!(
                answer.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"),
                "{way:?}, {size}: {answer}"
            );
            assert!(
                answer.contains("outrigger-error: headers-too-large\r\n"),
                "{way:?}, {size}: {answer}"
            );
            let goes_on = !answer.contains("connection: close\r\n");
            if goes_on {
                // A whole head that is only a little too large: the connection can go on.
                client.body(&answer).await;
                client.send("GET / HTTP/1.1\nHost: a\n\n").await;
            }
            client.end().await;
            assert!(!scene.is_called().await, "{way:?}, {size}: it came to the app");
        }
    }
}

#[tokio::test]
async fn slow_heads_end_and_idle_connections_do_not() {
    let scenes = [Scene::new(Way::Both).await, Scene::new(Way::Inbound).await];
    let (mut idle, mut slow) = (Vec::new(), Vec::new());
    for scene in &scenes {
        let mut client = scene.client().await;
        client.send(GET).await;
        let mut app = scene.app().await;
        app.head().await;
        app.send(OK).await;
        client.exactly(OK.len()).await;
        idle.push((scene, client, app));
        let (_, _, app) = idle.last_mut().unwrap();
        // From the beginning of a connection, and behind a request; a byte at a time does not help.
        let mut client = scene.client().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n").await;
        slow.push((scene, client));
        let mut client = scene.client().await;
        client.send(format!("{GET}GET / HT")).await;
        app.head().await;
        app.send(OK).await;
        client.exactly(OK.len()).await;
        slow.push((scene, client));
    }
    for byte in b"X: aaaaa" {
        for (_, client) in &mut slow {
            client.send([*byte]).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (scene, client) in &mut slow {
        let answer = client.end().await;
        assert!(
            answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
            "{:?}: {answer}",
            scene.way
        );
        assert!(
            answer.contains("outrigger-error: head-timeout\r\n"),
            "{:?}: {answer}",
            scene.way
        );
    }
    // These were idle for longer than that.
    for (scene, client, _) in &mut idle {
        client.send(GET).await;
        let mut app = scene.app().await;
        assert_eq!(without_ours(&app.head().await), GET, "{:?}", scene.way);
        app.send(OK).await;
        assert_eq!(client.exactly(OK.len()).await, OK, "{:?}", scene.way);
    }
}

#[tokio::test]
async fn an_http2_client_that_stops_in_its_preface() {
    let scene = Scene::with(Way::Both, "http2", "{}").await;
    let mut client = scene.client().await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    // The sidecar's own settings, and after 10 s the end.
    client.end().await;
}

#[tokio::test]
async fn a_slow_body_streams_and_harms_nobody() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut slow = scene.client().await;
        slow.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n")
            .await;
        let mut app = scene.app().await;
        app.head().await;
        let mut other = scene.client().await;
        other.send(GET).await;
        let mut other_app = scene.app().await;
        for n in 0..20 {
            // Each byte is there at once, and others are served between them.
            slow.send([b'a' + n]).await;
            assert_eq!(app.exactly(1).await, char::from(b'a' + n).to_string(), "{way:?}");
            assert_eq!(without_ours(&other_app.head().await), GET);
            other_app.send(OK).await;
            assert_eq!(other.exactly(OK.len()).await, OK);
            other.send(GET).await;
        }
        app.send(OK).await;
        assert_eq!(slow.exactly(OK.len()).await, OK, "{way:?}");
    }
}

#[tokio::test]
async fn what_nobody_reads_is_not_kept() {
    const ALL: usize = 192 * MIB;
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut lazy = scene.client().await;
        lazy.send(GET).await;
        let mut app = scene.app().await;
        app.head().await;
        app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {ALL}\r\n\r\n"))
            .await;
        let sent = until_blocked(&mut app.stream, ALL).await;
        // Sockets hold some on their own; the rest waits in the app.
        assert!(sent < ALL / 2, "{way:?}: {sent} bytes were taken off the app");
        let mut other = scene.client().await;
        other.send(GET).await;
        let mut other_app = scene.app().await;
        other_app.head().await;
        other_app.send(OK).await;
        assert_eq!(other.exactly(OK.len()).await, OK, "{way:?}");
        // An upload that the app does not read.
        let mut eager = scene.client().await;
        eager
            .send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {ALL}\r\n\r\n"))
            .await;
        other_app.head().await;
        let sent = until_blocked(&mut eager.stream, ALL).await;
        assert!(sent < ALL / 2, "{way:?}: {sent} bytes were taken off the client");
        let errors: u64 = scene
            .sidecars
            .iter()
            .map(|s| metric(s, "outrigger_errors_total", &[]))
            .sum();
        assert_eq!(errors, 0, "{way:?}");
        drop((lazy, app, other_app));
    }
}

/// Writes until nothing is taken for a while, or `all` is.
async fn until_blocked(stream: &mut tokio::net::TcpStream, all: usize) -> usize {
    let chunk = vec![0; 64 * 1024];
    let mut sent = 0;
    while sent < all {
        match tokio::time::timeout(Duration::from_secs(1), stream.write(&chunk)).await {
            Ok(n) => sent += n.unwrap(),
            Err(_) => break,
        }
    }
    sent
}
