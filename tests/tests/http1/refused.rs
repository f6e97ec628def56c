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
    "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a:80:90\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: :80\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: [a]:80\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a%zz\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: caf\u{e9}\r\n\r\n",
    "GET / HTTP/1.0\r\nHost: a b\r\n\r\n",
    "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n",
    "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET https://u:p@a:80/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET http://a:b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET http://[a]/ HTTP/1.0\r\nHost: a\r\n\r\n",
    "GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n",
    // The form of the target fits the method (RFC 9112 section 3.2).
    "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET urn:a HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT * HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT a: HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT a:0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT u@a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT a%41:80 HTTP/1.1\r\nHost: a\r\n\r\n",
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

/// Responses that are not passed on, and what the error says of them.
const NO_ANSWERS: &[(&str, &str)] = &[
    // Two ways to read it (RFC 9112 section 6.3).
    (
        "200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "both Transfer-Encoding",
    ),
    (
        "200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "both Transfer-Encoding",
    ),
    (
        "200 OK\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "both Transfer-Encoding",
    ),
    (
        "200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "other than chunked",
    ),
    ("200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx", "other than chunked"),
    (
        "200 OK\r\nTransfer-Encoding: x\r\n chunked\r\n\r\n0\r\n\r\n",
        "other than chunked",
    ),
    (
        "200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "other than chunked",
    ),
    (
        "200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "other than chunked",
    ),
    (
        "200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "lengths that differ",
    ),
    ("200 OK\r\nContent-Length: 5, 6\r\n\r\nhello", "lengths that differ"),
    ("200 OK\r\nContent-Length: +5\r\n\r\nhello", "not a number"),
    ("200 OK\r\nContent-Length: 5\r\n 6\r\n\r\nhello", "not a number"),
    (
        "304 Not Modified\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "lengths that differ",
    ),
    // Lines (RFC 9112 section 5).
    ("200 OK\r\nX\r\nContent-Length: 0\r\n\r\n", "a line of its head"),
    ("200 OK\r\n: a\r\nContent-Length: 0\r\n\r\n", "a line of its head"),
    ("200 OK\r\nX(: a\r\nContent-Length: 0\r\n\r\n", "a line of its head"),
    ("200 OK\r\n X: a\r\nContent-Length: 0\r\n\r\n", "a line of its head"),
    ("200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n", "a line of its head"),
    ("200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n", "a line of its head"),
    (
        "200 OK\r\nX: a\u{7f}b\r\nContent-Length: 0\r\n\r\n",
        "a line of its head",
    ),
    ("20 OK\r\nContent-Length: 0\r\n\r\n", "its status"),
    ("020 OK\r\nContent-Length: 0\r\n\r\n", "its status"),
    // Nobody asked for it (RFC 9110 section 7.8).
    (
        "101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        "another protocol (101)",
    ),
    ("101 Switching Protocols\r\n\r\n", "another protocol (101)"),
];

/// The whole of some.
const NOT_HTTP_AT_ALL: &[(&str, &str)] = &[
    (
        "HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
        "does not begin as HTTP/1 does",
    ),
    (
        "SSH-2.0-OpenSSH_9.6\r\n\r\n",
        "does not begin as HTTP/1 does; check the Service's appProtocol",
    ),
    (
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding in HTTP/1.0",
    ),
];

async fn no_answer(scene: &Scene, request: &str, answer: &str, what: &str) {
    let name = format!("{:?}, {:?}", scene.way, &answer[..answer.len().min(200)]);
    let mut client = scene.client().await;
    client.send(request).await;
    let mut app = scene.app().await;
    app.head().await;
    app.send(answer).await;
    let head = client.head().await;
    assert!(head.contains(" 502 Bad Gateway\r\n"), "{name}: {head}");
    let code = "\r\noutrigger-error: upstream-protocol\r\n";
    assert!(head.contains(code), "{name}: {head}");
    let text = client.body(&head).await;
    assert!(text.contains(what), "{name}: {text}");
    // Whether it is HTTP at all is asked where it does not look like it.
    assert_eq!(
        text.contains("appProtocol"),
        what.contains("does not begin"),
        "{name}: {text}"
    );
    // Nothing more is asked on such a connection.
    assert_eq!(app.end().await, "", "{name}");
}

#[tokio::test]
async fn a_bad_response_is_no_response() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        for (bad, what) in NO_ANSWERS {
            no_answer(&scene, GOOD, &format!("HTTP/1.1 {bad}"), what).await;
        }
        for (bad, what) in NOT_HTTP_AT_ALL {
            no_answer(&scene, GOOD, bad, what).await;
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", "X: 1\r\n".repeat(100));
        no_answer(&scene, GOOD, &many, "more than 100 lines").await;
        let large = format!(
            "HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n",
            "a".repeat(65_600)
        );
        no_answer(&scene, GOOD, &large, "more than 64 KiB").await;
    }
}

/// A head that hyper does not frame a body by is looked at, too.
#[tokio::test]
async fn a_bad_answer_to_another_request_is_no_response() {
    const HEAD: &str = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
    const WEBSOCKET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    const H2C: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
    const BESIDE: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nUpgrade: h2c\r\n\r\n";
    const LIST: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: H2C, x\r\n\r\n";
    const OLD: &str = "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n";
    for way in WAYS {
        let scene = Scene::new(way).await;
        for length in ["five", "5, 6", "+5", ""] {
            let bad = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            let mut client = scene.client().await;
            client.send(HEAD).await;
            let mut app = scene.app().await;
            app.head().await;
            app.send(&bad).await;
            let head = client.head().await;
            assert!(
                head.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
                "{way:?}, {bad:?}: {head}"
            );
        }
        let websocket = SWITCHED.replace("h2c", "websocket");
        let nothing = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n";
        for (request, answer) in [
            (WEBSOCKET, SWITCHED),
            (WEBSOCKET, nothing),
            // Not passed on, and so not asked for.
            (H2C, SWITCHED),
            (BESIDE, SWITCHED),
            (LIST, SWITCHED),
            (OLD, websocket.as_str()),
        ] {
            no_answer(&scene, request, answer, "another protocol (101)").await;
        }
    }
}
