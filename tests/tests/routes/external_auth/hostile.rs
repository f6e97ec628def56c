//! Servers that want no good: whatever comes in place of an answer, nothing is let through, and the next request is asked about as if nothing had been.

use futures_util::{StreamExt, stream};
use outrigger_proxy::outbound::auth::wire::check_response::HttpResponse;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::http2::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
};

/// How often each of them.
const ROUNDS: usize = 20;
/// Requests at a time.
const AT_ONCE: usize = 16;

/// `:status: 200` and `content-type: application/grpc`, by HPACK's tables.
const OK_GRPC: &[u8] = b"\x88\x5f\x10application/grpc";

/// What it is, and what a server writes when it has a request. It ends the connection then.
type Answer = (&'static str, Vec<u8>);

fn http1() -> Vec<Answer> {
    let answer = |name, bytes: &[u8]| (name, bytes.to_vec());
    let endless = |begin: &str, again: &str| [begin, &again.repeat(4 << 20 >> 4)].concat().into_bytes();
    vec![
        answer("nothing", b""),
        answer("no HTTP", &[0; 1000]),
        answer("half a head", b"HTTP/1.1 200 OK\r\nx: "),
        answer("another version", b"HTTP/2.0 200 OK\r\n\r\n"),
        answer("no status", b"HTTP/1.1\r\n\r\n"),
        answer("a status of two digits", b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n"),
        answer(
            "a status of four digits",
            b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n",
        ),
        answer("a status below 100", b"HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n"),
        answer("another 2xx", b"HTTP/1.1 204 OK\r\n\r\n"),
        answer(
            "a redirect",
            b"HTTP/1.1 302 Found\r\nlocation: http://x/\r\ncontent-length: 0\r\n\r\n",
        ),
        answer(
            "an upgrade",
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        ),
        answer(
            "two lengths",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        ),
        answer(
            "a name that is none",
            b"HTTP/1.1 200 OK\r\nx y: z\r\ncontent-length: 0\r\n\r\n",
        ),
        answer(
            "NUL in a header",
            b"HTTP/1.1 200 OK\r\nx: \0\r\ncontent-length: 0\r\n\r\n",
        ),
        ("100 for ever", b"HTTP/1.1 100 Continue\r\n\r\n".repeat(10_000)),
        ("lines for ever", endless("HTTP/1.1 200 OK\r\n", "x-0123456789: y\r\n")),
        (
            "one line for ever",
            endless("HTTP/1.1 200 OK\r\nx: ", "0123456789abcdef"),
        ),
        (
            "a denial for ever",
            endless("HTTP/1.1 403 Forbidden\r\n\r\n", "0123456789abcdef"),
        ),
    ]
}

fn http2() -> Vec<Answer> {
    let settings = frame(SETTINGS, 0, 0, b"");
    let begun = frame(HEADERS, END_HEADERS, 1, OK_GRPC);
    let answer = |name, frames: &[&[u8]]| (name, frames.concat());
    let message = |response: CheckResponse| {
        let message = response.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0][..], &length, &message].concat()
    };
    // `grpc-status: 0` at the end.
    let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\0\x0bgrpc-status\x010");
    let says = |name, data: &[u8]| answer(name, &[&begun, &frame(DATA, 0, 1, data), &trailers]);
    let yes = CheckResponse {
        status: Some(wire::Status { code: 0 }),
        http_response: Some(HttpResponse::OkResponse(OkHttpResponse::default())),
    };
    let yes = message(yes);
    let denied = CheckResponse {
        status: None,
        http_response: Some(HttpResponse::OkResponse(OkHttpResponse::default())),
    };
    vec![
        answer("nothing", &[]),
        answer("no HTTP/2", &[&[0xff; 1000]]),
        answer("another version", &[b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]),
        answer("a goodbye", &[&frame(GOAWAY, 0, 0, &[0; 8])]),
        answer("a reset", &[&frame(RST_STREAM, 0, 1, &[0, 0, 0, 2])]),
        answer(
            "a window that overflows",
            &[&frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]).repeat(2)],
        ),
        answer("pings for ever", &[&frame(PING, 0, 0, &[0; 8]).repeat(10_000)]),
        answer("settings for ever", &[&settings.repeat(10_000)]),
        answer(
            "a head for ever",
            &[
                &frame(HEADERS, 0, 1, OK_GRPC),
                &frame(CONTINUATION, 0, 1, b"\0\x01x\x01y").repeat(10_000),
            ],
        ),
        answer("data before a head", &[&frame(DATA, 0, 1, &yes)]),
        answer("a stream that is none", &[&frame(HEADERS, END_HEADERS, 3, OK_GRPC)]),
        answer(
            "only the end",
            &[&frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                b"\x88\0\x0bgrpc-status\x010",
            )],
        ),
        says("no message", b""),
        says("half a message", &yes[..yes.len() - 1]),
        says("a message of 4 GiB", &[&b"\0\xff\xff\xff\xff"[..], &yes].concat()),
        says("a compressed message", &[&[1], &yes[1..]].concat()),
        says("no protobuf", b"\0\0\0\0\x04\xff\xff\xff\xff"),
        says("no status", &message(denied)),
        says("an empty answer", b"\0\0\0\0\0"),
        says("messages that are nested deeply", &nested()),
    ]
}

/// Groups within groups, which no field of the message is.
fn nested() -> Vec<u8> {
    let length = 10_000_u32;
    [&[0][..], &length.to_be_bytes(), &vec![0x7b; length as usize]].concat()
}

/// Answers a question about `/hostile/7/` by the seventh of them.
async fn server(of: Server, answers: Vec<Answer>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answers = Arc::new(answers);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answers = Arc::clone(&answers);
            tokio::spawn(async move { answer(of, stream, &answers).await });
        }
    });
    address
}

async fn answer(of: Server, mut stream: TcpStream, answers: &[Answer]) -> std::io::Result<()> {
    if of == Server::Grpc {
        // Before, nothing is asked.
        stream.write_all(&frame(SETTINGS, 0, 0, b"")).await?;
    }
    let mut got = Vec::new();
    let which = loop {
        if stream.read_buf(&mut got).await? == 0 {
            return Ok(());
        }
        // Of HTTP/2 it is in the message, where nothing compresses it.
        let text = String::from_utf8_lossy(&got);
        let which = text
            .split_once("/hostile/")
            .and_then(|(_, behind)| behind.split_once('/'));
        match which {
            Some((number, behind)) if of == Server::Grpc || behind.contains("\r\n\r\n") => {
                break number.parse::<usize>().unwrap();
            }
            _ => {}
        }
    };
    stream.write_all(&answers[which].1).await?;
    stream.shutdown().await?;
    // What is not read would have the kernel reset the connection, and the answer be lost with it.
    while stream.read_buf(&mut got).await? > 0 {
        got.clear();
    }
    Ok(())
}

async fn nothing_is_let_through(of: Server, answers: Vec<Answer>) {
    let names: Vec<_> = answers.iter().map(|(name, _)| *name).collect();
    let hostile = server(of, answers).await;
    let lab = Lab::build(of, "", Some(hostile)).await;
    // Of HTTP/2 one after the other: answers are for the first stream of a connection.
    let at_once = if of == Server::Http { AT_ONCE } else { 1 };
    let all = (0..ROUNDS).flat_map(|round| (0..names.len()).map(move |which| (round, which)));
    let seen = stream::iter(all).map(|(round, which)| {
        let (lab, speaks) = (&lab, Speaks::ALL[round % Speaks::ALL.len()]);
        async move {
            (
                speaks,
                which,
                lab.send(speaks, &format!("/hostile/{which}/"), "alice").await,
            )
        }
    });
    let seen = seen.buffer_unordered(at_once);
    seen.for_each(async |(speaks, which, seen)| {
        let name = names[which];
        let denied = matches!(seen.error(), Some("auth-denied" | "auth-unavailable"));
        assert!(denied, "{name}, {speaks:?}: {} {:?}", seen.status, seen.headers);
        assert!(!["0", "200 OK"].contains(&&*speaks.status(&seen)), "{name}, {speaks:?}");
    })
    .await;
    assert!(lab.app.take().is_empty());
    // Who means well is believed as before.
    assert_eq!(lab.send(Speaks::Http1, "/", "alice").await.body, "an answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_answer_in_http_lets_nothing_through() {
    nothing_is_let_through(Server::Http, http1()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_answer_in_grpc_lets_nothing_through() {
    nothing_is_let_through(Server::Grpc, http2()).await;
}
