//! What two servers could read in two ways is refused: 400, the end of the connection, and not a byte of it at the app.

use super::wire::{Scene, WAYS, Way, Wire, without_ours};

/// What an attacker would want the app to see.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
const GOOD: &str = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Heads, and what comes right behind them.
const MALFORMED: &[&str] = &[
    // CL.TE and TE.CL (RFC 9112 section 6.1).
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: Transfer-Encoding\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    // TE.TE: one of two servers does not know it.
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\u{b}chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\r\n : chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nX: x\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    // Lengths (RFC 9112 section 6.3).
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 0\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
    // Lines (RFC 9112 sections 2.2 and 5).
    "GET / HTTP/1.1\nHost: a\n\n",
    "GET / HTTP/1.1\r\nHost: a\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\u{7f}b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX\t: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n",
    "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n",
    // Hosts (RFC 9112 section 3.2).
    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nX: a\r\n\r\n",
    "GET http://a/ HTTP/1.1\r\nX: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    // Request lines (RFC 9112 section 3).
    "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /a\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET x HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    // What the library that holds a target does not take.
    "GET /<a> HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /`a` HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1x\r\nHost: a\r\n\r\n",
];

/// First lines that are HTTP only for who expects it.
const NOT_HTTP: &[&str] = &[
    "GET /\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / http/1.1\r\nHost: a\r\n\r\n",
    "GET /\r\nHost: a\r\n\r\n",
    "GET /\r\n",
];

async fn refused(client: &mut Wire, what: &str) {
    let answer = client.end().await;
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{what:?}: {answer:?}"
    );
    assert!(
        answer.contains("\r\noutrigger-error: bad-request\r\n"),
        "{what:?}: {answer}"
    );
    assert!(answer.contains("\r\nconnection: close\r\n"), "{what:?}: {answer}");
}

#[tokio::test]
async fn at_the_beginning_of_a_connection() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        // Before the inbound sidecar alone nobody says that it is HTTP.
        let not_http = if way == Way::Inbound { &[] } else { NOT_HTTP };
        for bad in MALFORMED.iter().chain(not_http) {
            let mut client = scene.client().await;
            client.send(format!("{bad}{SMUGGLED}")).await;
            refused(&mut client, bad).await;
            assert!(!scene.is_called().await, "{way:?}, at the app: {bad:?}");
        }
    }
}

#[tokio::test]
async fn behind_a_proper_request_and_in_pieces() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut app: Option<Wire> = None;
        for (n, bad) in MALFORMED.iter().chain(NOT_HTTP).enumerate() {
            let mut client = scene.client().await;
            // In one piece; or cut in the middle of the bad head, after the answer to the good request.
            let cut = bad.len() / 2;
            let (first, second) = match n % 2 {
                0 => (format!("{GOOD}{bad}{SMUGGLED}"), String::new()),
                _ => (format!("{GOOD}{}", &bad[..cut]), format!("{}{SMUGGLED}", &bad[cut..])),
            };
            client.send(first).await;
            // The sidecar keeps its connection to the app: what it did with the last bad one would be seen here.
            let app = match &mut app {
                Some(app) => app,
                none => none.insert(scene.app().await),
            };
            assert_eq!(without_ours(&app.head().await), GOOD, "{way:?} before {bad:?}");
            app.send(OK).await;
            assert_eq!(client.exactly(OK.len()).await, OK);
            client.send(second).await;
            refused(&mut client, bad).await;
            assert!(!scene.is_called().await, "{way:?}, at the app: {bad:?}");
        }
    }
}

#[tokio::test]
async fn bad_chunks_end_the_request() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        for bad in [
            "0x5\r\nhello\r\n",
            "-1\r\nhello\r\n",
            "+5\r\nhello\r\n",
            " 5\r\nhello\r\n",
            "g\r\nhello\r\n",
            "\r\nhello\r\n",
            "10000000000000000\r\nhello\r\n",
            "fffffffffffffffff\r\nhello\r\n",
            "5\nhello\r\n",
            "5 5\r\nhello\r\n",
            "5;x\ny\r\nhello\r\n",
            "5;x\ry\r\nhello\r\n",
            "5;x\0y\r\nhello\r\n",
            "5\r\nhello!\r\n",
            "5\r\nhelloX\r\n",
            "5\r\nhello\n",
            "0\r\nX: a\nY: b\r\n\r\n",
            "0\r\nX : a\r\n\r\n",
            "0\r\n X: a\r\n\r\n",
        ] {
            let mut client = scene.client().await;
            client
                .send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
                .await;
            let mut app = scene.app().await;
            app.head().await;
            assert_eq!(app.until(b"abc\r\n").await, "3\r\nabc\r\n");
            client.send(format!("{bad}0\r\n\r\n{SMUGGLED}")).await;
            // The body has no end, so the app knows that it is not whole.
            let rest = app.end().await;
            assert!(
                ["", "5\r\nhello\r\n"].contains(&rest.as_str()),
                "{way:?}, {bad:?}: {rest:?}"
            );
            refused(&mut client, bad).await;
        }
    }
}

#[tokio::test]
async fn a_bad_response_is_no_response() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        for bad in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
            "SSH-2.0-OpenSSH_9.6\r\n\r\n",
        ] {
            let mut client = scene.client().await;
            client.send(GOOD).await;
            let mut app = scene.app().await;
            app.head().await;
            app.send(bad).await;
            let answer = client.head().await;
            assert!(
                answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
                "{way:?}, {bad:?}: {answer}"
            );
            let code = "\r\noutrigger-error: upstream-protocol\r\n";
            assert!(answer.contains(code), "{way:?}, {bad:?}: {answer}");
            // Nothing more is asked on such a connection.
            assert_eq!(app.end().await, "", "{way:?}, {bad:?}");
        }
    }
}
