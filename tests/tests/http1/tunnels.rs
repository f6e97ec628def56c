//! Other protocols behind a request: WebSocket, CONNECT.

use super::wire::{Scene, WAYS, without_ours};

const WEBSOCKET: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\nConnection: Upgrade\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: y\r\nConnection: Upgrade\r\n\r\n";
const NO: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// The lines of a head, in whatever order: a header that was removed leaves its place to the last one.
fn lines(head: &str) -> Vec<String> {
    let mut lines: Vec<String> = head.lines().map(str::to_owned).collect();
    lines[1..].sort();
    lines
}

#[tokio::test]
async fn websocket_both_ways() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        client.send(WEBSOCKET).await;
        let mut app = scene.app().await;
        let seen = without_ours(&app.head().await).replace("Connection: upgrade", "Connection: Upgrade");
        assert_eq!(lines(&seen), lines(WEBSOCKET), "{way:?}");
        // The first frame comes right behind the head.
        app.send([SWITCHED.as_bytes(), b"\0hello\r\n\n"].concat()).await;
        let got = client
            .head()
            .await
            .replace("Connection: upgrade", "Connection: Upgrade");
        assert_eq!(lines(&got), lines(SWITCHED), "{way:?}");
        assert_eq!(client.exactly(9).await, "\0hello\r\n\n");
        // What would be a malformed request, were it HTTP.
        client.send(b"\x81\x85\0\n\xff GET / HTTP/9\n\n").await;
        assert_eq!(app.exactly(20).await, "\u{81}\u{85}\0\n\u{ff} GET / HTTP/9\n\n");
        // One end of it at a time.
        tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.unwrap();
        assert_eq!(app.end().await, "");
        app.send(b"bye").await;
        drop(app);
        assert_eq!(client.end().await, "bye", "{way:?}");
    }
}

/// While a drain tells everybody else that the connection ends, this one becomes another.
#[tokio::test]
async fn a_websocket_that_opens_while_its_sidecar_drains() {
    for way in WAYS {
        let mut scene = Scene::new(way).await;
        let (mut client, mut other) = (scene.client().await, scene.client().await);
        client.send(WEBSOCKET).await;
        let mut app = scene.app().await;
        app.head().await;
        let ending = tokio::spawn(scene.sidecars.pop().unwrap().shutdown());
        // The worker hears of it in a moment.
        other.send(GET).await;
        let mut next = scene.app().await;
        loop {
            next.head().await;
            next.send("HTTP/1.1 204 No Content\r\n\r\n").await;
            if other.head().await.contains("connection: close\r\n") {
                break;
            }
            other.send(GET).await;
        }
        app.send(SWITCHED).await;
        let got = client
            .head()
            .await
            .replace("Connection: upgrade", "Connection: Upgrade");
        assert_eq!(lines(&got), lines(SWITCHED), "{way:?}");
        client.send("hello").await;
        assert_eq!(app.exactly(5).await, "hello", "{way:?}");
        assert!(!ending.is_finished(), "{way:?}");
        ending.abort();
    }
}

#[tokio::test]
async fn bytes_that_do_not_wait_for_the_answer() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        client.send([WEBSOCKET.as_bytes(), b"\0early\n"].concat()).await;
        let mut app = scene.app().await;
        app.head().await;
        app.send(SWITCHED).await;
        assert_eq!(app.exactly(7).await, "\0early\n", "{way:?}");
        client.head().await;
        app.send(b"late").await;
        assert_eq!(client.exactly(4).await, "late", "{way:?}");
    }
}

#[tokio::test]
async fn an_upgrade_that_the_app_refuses() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        client.send(WEBSOCKET).await;
        let mut app = scene.app().await;
        app.head().await;
        app.send(NO).await;
        assert_eq!(client.exactly(NO.len()).await, NO, "{way:?}");
        // HTTP goes on, and is looked at again.
        client.send(GET).await;
        assert_eq!(without_ours(&app.head().await), GET, "{way:?}");
        app.send(NO).await;
        assert_eq!(client.exactly(NO.len()).await, NO, "{way:?}");
        client.send("GET / HTTP/1.1\nHost: a\n\n").await;
        let answer = client.end().await;
        assert!(answer.contains("outrigger-error: bad-request"), "{way:?}: {answer}");
    }
}

#[tokio::test]
async fn bytes_for_a_protocol_that_the_app_refuses_are_no_request() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        client
            .send(format!("{WEBSOCKET}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"))
            .await;
        let mut app = scene.app().await;
        app.head().await;
        app.send(NO).await;
        let answer = client.end().await;
        assert!(
            answer.starts_with("HTTP/1.1 403 ") && answer.ends_with("no"),
            "{way:?}: {answer}"
        );
        assert!(answer.contains("connection: close\r\n"), "{way:?}: {answer}");
        // Another request comes next on the app's connection, or none at all.
        let mut client = scene.client().await;
        client.send(GET).await;
        assert_eq!(without_ours(&app.head().await), GET, "{way:?}");
    }
}

#[tokio::test]
async fn connect_to_an_app_that_is_a_proxy() {
    let connect = "CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\n";
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        client.send(connect).await;
        let mut app = scene.app().await;
        assert_eq!(without_ours(&app.head().await), connect, "{way:?}");
        app.send(b"HTTP/1.1 200 Connection established\r\n\r\n\0first").await;
        assert_eq!(
            client.head().await,
            "HTTP/1.1 200 Connection established\r\n\r\n",
            "{way:?}"
        );
        assert_eq!(client.exactly(6).await, "\0first");
        client.send(b"\0second\n").await;
        assert_eq!(app.exactly(8).await, "\0second\n");
        drop(client);
        assert_eq!(app.end().await, "");

        let mut client = scene.client().await;
        client.send(connect).await;
        let mut app = scene.app().await;
        app.head().await;
        app.send(NO).await;
        assert_eq!(client.exactly(NO.len()).await, NO, "{way:?}");
    }
}

/// RFC 9110 section 9.3.6: what frames a body says nothing in the answer that opens a tunnel.
#[tokio::test]
async fn a_tunnel_has_no_length() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        for framing in [
            "Content-Length: 5",
            "Content-Length: 0",
            "Transfer-Encoding: chunked",
            "Content-Length: 5\r\nTransfer-Encoding: gzip",
        ] {
            let mut client = scene.client().await;
            client.send("CONNECT db:1 HTTP/1.1\r\nHost: db:1\r\n\r\n").await;
            let mut app = scene.app().await;
            app.head().await;
            app.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n\0first")).await;
            assert_eq!(client.head().await, "HTTP/1.1 200 OK\r\n\r\n", "{way:?}, {framing}");
            assert_eq!(client.exactly(6).await, "\0first", "{way:?}, {framing}");
        }
    }
}

/// RFC 9110 section 7.8: in HTTP/1.0 `Upgrade` says nothing, and what follows is a request.
#[tokio::test]
async fn http_1_0_asks_for_no_other_protocol() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        let old = WEBSOCKET
            .replace("HTTP/1.1", "HTTP/1.0")
            .replace("Connection: Upgrade", "Connection: Upgrade, keep-alive");
        client.send(format!("{old}GET / HTTP/9\r\n\r\n")).await;
        let mut app = scene.app().await;
        let seen = app.head().await;
        assert!(!seen.to_ascii_lowercase().contains("upgrade"), "{way:?}: {seen}");
        app.send(NO).await;
        let answer = client.end().await;
        assert!(
            answer.contains(" 403 ") && answer.contains("outrigger-error: bad-request"),
            "{way:?}: {answer}"
        );
    }
}

/// RFC 9112 section 3.2.2: the target's word replaces `Host`.
#[tokio::test]
async fn a_connect_is_for_its_target() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        client.send("CONNECT [::1]:443 HTTP/1.1\r\nHost: other\r\n\r\n").await;
        let mut app = scene.app().await;
        let seen = without_ours(&app.head().await);
        assert_eq!(seen, "CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n", "{way:?}");
    }
}
