//! What passes, unchanged where the protocol allows it.

use super::wire::{Scene, WAYS, text};

/// A request, as the app sees it, its answer, as the client sees it. `""`: the same.
struct Case {
    sent: &'static [u8],
    seen: &'static [u8],
    answered: &'static [u8],
    got: &'static [u8],
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const SAME: &[u8] = b"";

/// With the usual answer.
const fn request(sent: &'static [u8], seen: &'static [u8]) -> Case {
    Case {
        sent,
        seen,
        answered: OK,
        got: SAME,
    }
}

/// To the usual request.
const fn response(answered: &'static [u8], got: &'static [u8]) -> Case {
    Case {
        sent: b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        seen: SAME,
        answered,
        got,
    }
}

async fn each(cases: &[Case]) {
    for way in WAYS {
        let scene = Scene::new(way).await;
        for case in cases {
            let or_same =
                |wanted: &'static [u8], else_: &'static [u8]| text(if wanted.is_empty() { else_ } else { wanted });
            let (seen, got) = scene.exchange(case.sent, case.answered).await;
            let sent = text(&case.sent[..case.sent.len().min(2000)]);
            assert_eq!(seen, or_same(case.seen, case.sent), "the app's side, {way:?}: {sent}");
            assert_eq!(
                got,
                or_same(case.got, case.answered),
                "the client's side, {way:?}: {sent}"
            );
        }
    }
}

#[tokio::test]
async fn requests_pass_as_they_are() {
    each(&[
        request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", SAME),
        // Names in the case that they had, in the order that they had.
        request(b"GET /x?y=%20z&q=a;b HTTP/1.1\r\nHOST: orders.shop:80\r\nuser-AGENT: x\r\nX-cAmEl: 1\r\naccept: */*\r\n\r\n", SAME),
        // Repeated headers: all of them, in their order; beside one another. An empty one without a space.
        request(
            b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nY: 2\r\nx: 3\r\nX: \r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nx: 3\r\nX:\r\nY: 2\r\n\r\n",
        ),
        // Cookies alone become one line, as policies judge them.
        request(
            b"GET / HTTP/1.1\r\nHost: a\r\nCookie: a=b\r\nX: 1\r\nCookie: c=d\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nCookie: a=b; c=d\r\nX: 1\r\n\r\n",
        ),
        // obs-text (RFC 9110 section 5.5), and no white space around a value.
        request(
            b"GET / HTTP/1.1\r\nHost:a\r\nX: caf\xe9 \xff\r\nY: \t a \t b \t\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: caf\xe9 \xff\r\nY: a \t b\r\n\r\n",
        ),
        // Methods that nobody knows.
        request(b"PURGE /x HTTP/1.1\r\nHost: a\r\n\r\n", SAME),
        request(b"X-Odd.Method!|~ /x HTTP/1.1\r\nHost: a\r\n\r\n", SAME),
        // Other forms of the target.
        request(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", SAME),
        request(b"GET http://a/x?y HTTP/1.1\r\nHost: a\r\n\r\n", SAME),
        request(
            b"GET http://b:80/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET http://b:80/x?y HTTP/1.1\r\nHost: b:80\r\n\r\n",
        ),
        request(
            b"GET ftp://u:p@b/x HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET ftp://u:p@b/x HTTP/1.1\r\nHost: b\r\n\r\n",
        ),
        Case {
            sent: b"GET http://b/ HTTP/1.0\r\n\r\n",
            seen: b"GET http://b/ HTTP/1.1\r\nhost: b\r\n\r\n",
            answered: OK,
            got: b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        },
        // Every host that the grammar has (RFC 9110 section 7.2), and none.
        request(b"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", SAME),
        request(b"GET / HTTP/1.1\r\nHost: a_b.%C3%A9:\r\n\r\n", SAME),
        request(b"GET / HTTP/1.1\r\nHost:\r\n\r\n", SAME),
        request(b"GET //a/../b/./%2e%2E/?? HTTP/1.1\r\nHost: a\r\n\r\n", SAME),
        request(b"GET /{a}|^\\\"b\"[]\xc3\xa9?c={d}|^`\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", SAME),
    ])
    .await;
}

#[tokio::test]
async fn bodies_of_requests() {
    each(&[
        request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", SAME),
        request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", SAME),
        request(b"DELETE / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n\0\n", SAME),
        request(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", SAME),
        // Extensions are of this hop (RFC 9112 section 7.1.1).
        request(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n005;x=y\r\nhello\r\n00\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        // Trailers that are announced.
        request(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n",
            SAME,
        ),
        // No body, though it might have one.
        request(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", SAME),
    ])
    .await;
}

#[tokio::test]
async fn responses_pass_as_they_are() {
    each(&[
        response(b"HTTP/1.1 200 OK\r\nX-cAmEl: 1\r\nset-COOKIE: a=1\r\nSet-Cookie: b=2; Path=/\r\nServer: \xe9\r\nContent-Length: 0\r\n\r\n", SAME),
        // The app's own words; and none.
        response(b"HTTP/1.1 200 Fine, thanks\r\nContent-Length: 0\r\n\r\n", SAME),
        response(b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n", SAME),
        // One that is not ASCII is lost in hyper's parser, and nothing else of the response.
        response(
            b"HTTP/1.1 299 caf\xe9\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n",
        ),
        response(b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", SAME),
        response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", SAME),
        // Statuses without a body.
        response(b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n", SAME),
        response(b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", SAME),
        response(b"HTTP/1.1 301 Moved Permanently\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n", SAME),
        // An old server's version is not this hop's.
        response(
            b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
    ])
    .await;
}

/// What a proxy has to take out (RFC 9112 sections 5.1 and 5.2, RFC 9110 sections 8.6 and 9.3.6), and what says what the answer
/// means.
#[tokio::test]
async fn responses_are_repaired() {
    each(&[
        response(
            b"HTTP/1.1 200 OK\r\nX : a\r\nY\t : b\r\nContent-Length : 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nX: a\r\nY: b\r\nContent-Length: 2\r\n\r\nok",
        ),
        response(
            b"HTTP/1.1 200 OK\r\nX: a\r\n \t b\r\n\tc\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nX: a b c\r\nContent-Length: 2\r\n\r\nok",
        ),
        response(
            b"HTTP/1.1 200 OK\nX: a\nContent-Length: 2\n\nok",
            b"HTTP/1.1 200 OK\r\nX: a\r\nContent-Length: 2\r\n\r\nok",
        ),
        response(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        response(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        response(
            b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\nX: a\r\n\r\nok",
            b"HTTP/1.1 204 No Content\r\nX: a\r\n\r\n",
        ),
        response(
            b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\nX: a\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\nX: a\r\n\r\n",
        ),
        // Other answers before the one that counts.
        response(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 199 Odd\r\nX: 1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            OK,
        ),
    ])
    .await;
}

#[tokio::test]
async fn headers_that_are_what_the_answer_means() {
    each(&[
        response(
            b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.3, HTTP/1.1\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nno",
            b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.3, HTTP/1.1\r\nContent-Length: 2\r\nConnection: upgrade\r\n\r\nno",
        ),
        // The app's word about its connection is not about the client's.
        response(
            b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.3\r\nConnection: Upgrade, close\r\nContent-Length: 2\r\n\r\nno",
            b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.3\r\nContent-Length: 2\r\nConnection: upgrade\r\n\r\nno",
        ),
        response(
            b"HTTP/1.1 200 OK\r\nUpgrade: h2,h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nok",
            OK,
        ),
        response(
            b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n",
            SAME,
        ),
        Case {
            sent: b"GET http://a/ HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic x\r\n\r\n",
            seen: SAME,
            answered: b"HTTP/1.1 200 OK\r\nProxy-Authentication-Info: x\r\nContent-Length: 2\r\n\r\nok",
            got: SAME,
        },
    ])
    .await;
}

/// A connection that ends says so beside what the answer says.
#[tokio::test]
async fn an_upgrade_that_is_required_is_told_at_the_end_of_a_connection() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        for request in [
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            // Its body is not read.
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab",
        ] {
            let mut client = scene.client().await;
            client.send(request).await;
            let mut app = scene.app().await;
            app.head().await;
            app.send(
                "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.3\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
            )
            .await;
            let head = client.head().await.to_ascii_lowercase();
            assert!(
                head.contains("\r\nupgrade: tls/1.3\r\n"),
                "{way:?}, {request:?}: {head}"
            );
            let options = head.lines().find_map(|line| line.strip_prefix("connection: ")).unwrap();
            assert!(
                options.contains("close") && options.contains("upgrade"),
                "{way:?}, {request:?}: {head}"
            );
        }
    }
}

#[tokio::test]
async fn trailers_of_responses_for_who_takes_them() {
    let chunked =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n";
    each(&[
        Case {
            sent: b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n",
            seen: SAME,
            answered: chunked,
            got: SAME,
        },
        // What frames and routes is no trailer (RFC 9110 section 6.5.1), whatever announces it.
        Case {
            sent: b"POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: Connection, X-Sum\r\n\r\n0\r\nconnection: close\r\nx-sum: 1\r\n\r\n",
            seen: b"POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: Connection, X-Sum\r\n\r\n0\r\nx-sum: 1\r\n\r\n",
            answered: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Keep-Alive, X-Sum\r\n\r\n2\r\nok\r\n0\r\nkeep-alive: max=5\r\nx-sum: 1\r\n\r\n",
            got: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Keep-Alive, X-Sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n",
        },
        // RFC 9110 section 6.5.1: who does not say that it takes them may not get them.
        response(
            chunked,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
    ])
    .await;
}

#[tokio::test]
async fn headers_of_one_hop_end_at_it() {
    each(&[
        Case {
            sent: b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Private\r\nX-Private: 1\r\n\r\n",
            seen: b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            answered: OK,
            got: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nconnection: close\r\n\r\nok",
        },
        request(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        request(
            b"GET / HTTP/1.1\r\nHost: a\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        request(
            b"GET / HTTP/1.1\r\nHost: a\r\nTE: gzip;q=1, trailers\r\nConnection: TE\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n",
        ),
        request(b"GET / HTTP/1.1\r\nHost: a\r\nTE: gzip\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        // What frames and routes the message is not the client's to take away.
        request(
            b"POST / HTTP/1.1\r\nConnection: Host, Content-Length\r\nHost: a\r\nContent-Length: 2\r\n\r\nok",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok",
        ),
        // Asked for by Java's client with each first request: everything after it would be opaque.
        request(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        response(
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        response(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_long_target_and_long_headers() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let (path, cookie) = ("a".repeat(30_000), "b".repeat(30_000));
        let sent = format!("GET /{path} HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n");
        let answered = format!("HTTP/1.1 200 OK\r\nX: {path}\r\nY: {cookie}\r\nContent-Length: 0\r\n\r\n");
        let (seen, got) = scene.exchange(sent.as_bytes(), answered.as_bytes()).await;
        assert!(seen == sent && got == answered, "{way:?}");
    }
}

#[tokio::test]
async fn head_has_the_headers_of_get_and_no_body() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let (mut client, head) = (scene.client().await, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.send(head).await;
        let mut app = scene.app().await;
        app.head().await;
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
            "HTTP/1.1 200 OK\r\nETag: \"x\"\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
        ] {
            app.send(answer).await;
            assert_eq!(client.head().await, answer, "{way:?}");
            // The connections go on: there was no body.
            client.send(head).await;
            app.head().await;
        }
    }
}

#[tokio::test]
async fn a_body_until_the_end_of_the_connection() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut app = scene.app().await;
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\nServer: old\r\n\r\nhello").await;
        let head = client.head().await;
        assert_eq!(
            head,
            "HTTP/1.1 200 OK\r\nServer: old\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        assert_eq!(client.until(b"hello\r\n").await, "5\r\nhello\r\n");
        drop(app);
        assert_eq!(client.until(b"\r\n\r\n").await, "0\r\n\r\n");
    }
}
