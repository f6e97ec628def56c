//! The load: a client app with every kind of request, each checked to the last byte.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::app::{Body, ID, ONCE, REPLICA, WORK, digest, pattern};
use super::verdict::{BROKEN, Failure, HANGS, Kind, Outcome, WRONG};

/// Longer than anything that is not a mistake.
const PATIENCE: Duration = Duration::from_secs(30);
/// More than a sidecar keeps of a body (64 KiB), so that it cannot be sent again.
const LARGE: std::ops::Range<usize> = 70_000..200_000;

/// How often each kind is drawn.
const SHARES: [(Kind, u32); 10] = [
    (Kind::Get, 28),
    (Kind::LongGet, 5),
    (Kind::Put, 6),
    (Kind::KeyedPost, 6),
    (Kind::Post, 22),
    (Kind::LargePost, 3),
    (Kind::Unary, 20),
    (Kind::Stream, 3),
    (Kind::Tcp, 4),
    (Kind::Upgrade, 3),
];

/// One request, drawn beforehand.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) kind: Kind,
    pub(super) id: u64,
    size: usize,
    /// What the app takes for it, or the pause between two messages.
    work: Duration,
    /// The client closes its connection after it.
    close: bool,
}

impl Call {
    pub(super) fn draw(id: u64, random: &mut SmallRng) -> Self {
        let all = SHARES.iter().map(|(_, share)| share).sum();
        let mut drawn = random.random_range(0..all);
        let of = |(kind, share): &(Kind, u32)| match drawn.checked_sub(*share) {
            Some(rest) => {
                drawn = rest;
                None
            }
            None => Some(*kind),
        };
        // The shares add up to `all`.
        let kind = SHARES.iter().find_map(of).unwrap_or(Kind::Get);
        Self::of(kind, id, random)
    }

    pub(super) fn of(kind: Kind, id: u64, random: &mut SmallRng) -> Self {
        let size = match kind {
            Kind::LongGet | Kind::LargePost => random.random_range(LARGE),
            Kind::Tcp => random.random_range(1..100_000),
            _ => random.random_range(0..2_000),
        };
        // Most are done at once, and some are in flight whenever something happens.
        let longest = if random.random_bool(0.1) { 1_000 } else { 20 };
        Self {
            kind,
            id,
            size,
            work: Duration::from_millis(random.random_range(0..=longest)),
            close: random.random_bool(0.2),
        }
    }
}

/// An app that calls the replicas through its sidecar.
pub(super) struct Client {
    http: SocketAddr,
    grpc: SocketAddr,
    tcp: SocketAddr,
    one: Legacy<HttpConnector, Body>,
    two: Legacy<HttpConnector, Body>,
}

type Done = Result<(), Failure>;

impl Client {
    /// The addresses are those of its sidecar for HTTP, gRPC and TCP.
    pub(super) fn new([http, grpc, tcp]: [SocketAddr; 3]) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            http,
            grpc,
            tcp,
            one: Legacy::builder(TokioExecutor::new()).build(connector.clone()),
            two: Legacy::builder(TokioExecutor::new()).http2_only(true).build(connector),
        }
    }

    /// Does it, and says how it went.
    pub(super) async fn perform(&self, call: &Call) -> Outcome {
        let began = Instant::now();
        let mut replica = None;
        let performed = async {
            match call.kind {
                Kind::Get | Kind::LongGet => self.get(call, &mut replica).await,
                Kind::Put | Kind::KeyedPost | Kind::Post | Kind::LargePost => self.send(call, &mut replica).await,
                Kind::Unary => self.unary(call, &mut replica).await,
                Kind::Stream => self.stream(call, &mut replica).await,
                Kind::Tcp => self.tcp(call, &mut replica).await,
                Kind::Upgrade => self.upgrade(call, &mut replica).await,
            }
        };
        let done = timeout(PATIENCE, performed).await.unwrap_or_else(|_| {
            let detail = format!("it was not done after {PATIENCE:?}");
            Err(Failure {
                code: HANGS.to_owned(),
                detail,
            })
        });
        Outcome {
            kind: call.kind,
            id: call.id,
            began,
            ended: Instant::now(),
            replica,
            failure: done.err(),
        }
    }

    /// Asks each Service for something, and does not mind what comes of it.
    pub(super) async fn touch(&self) {
        let call = Call::of(Kind::Get, 0, &mut SmallRng::seed_from_u64(0));
        let _ = self.get(&call, &mut None).await;
        let _ = self.unary(&call, &mut None).await;
        let _ = self.tcp(&call, &mut None).await;
    }

    async fn get(&self, call: &Call, replica: &mut Option<String>) -> Done {
        let request = self.request(call, Method::GET, &format!("/bytes/{}", call.size));
        let response = self.one.request(request.body(Empty::new().boxed()).unwrap()).await;
        let body = answered(response.map_err(broken)?, replica).await?;
        equal(&body, &pattern(0, call.size))
    }

    async fn send(&self, call: &Call, replica: &mut Option<String>) -> Done {
        let method = match call.kind {
            Kind::Put => Method::PUT,
            _ => Method::POST,
        };
        let mut request = self.request(call, method, "/digest");
        if call.kind == Kind::KeyedPost {
            request = request.header("idempotency-key", call.id);
        }
        let content = pattern(call.id as usize % 251, call.size);
        // Of a known length, or chunked.
        let body = if call.id.is_multiple_of(2) {
            Full::new(content.clone()).boxed()
        } else {
            let chunks: Vec<_> = content.chunks(16_000).map(Bytes::copy_from_slice).collect();
            let frames = tokio_stream::iter(chunks).map(|chunk| Ok(Frame::data(chunk)));
            BodyExt::boxed(StreamBody::new(frames))
        };
        let response = self.one.request(request.body(body).unwrap()).await;
        let body = answered(response.map_err(broken)?, replica).await?;
        equal(&body, digest(&content).as_bytes())
    }

    async fn unary(&self, call: &Call, replica: &mut Option<String>) -> Done {
        let message = message(call.id, call.size);
        let request = self.grpc_request(call, "Unary", Full::new(message.clone()).boxed());
        let response = self.two.request(request).await.map_err(broken)?;
        let mut body = grpc_answered(response, replica)?;
        let mut answer = BytesMut::new();
        while answer.len() < message.len() {
            answer.put(next_data(&mut body).await?);
        }
        equal(&answer, &message)?;
        end_of_grpc(&mut body).await
    }

    /// Messages there and back, one after the other.
    async fn stream(&self, call: &Call, replica: &mut Option<String>) -> Done {
        let (messages, body) = mpsc::channel(1);
        let body = ReceiverStream::new(body).map(|message| Ok(Frame::data(message)));
        let request = self.grpc_request(call, "Stream", BodyExt::boxed(StreamBody::new(body)));
        let response = self.two.request(request).await.map_err(broken)?;
        let mut body = grpc_answered(response, replica)?;
        for n in 0..20 {
            let message = message(call.id + n, call.size);
            if messages.send(message.clone()).await.is_err() {
                return Err(failure(BROKEN, "nobody takes the messages"));
            }
            let mut answer = BytesMut::new();
            while answer.len() < message.len() {
                answer.put(next_data(&mut body).await?);
            }
            equal(&answer, &message)?;
            sleep(call.work / 5).await;
        }
        drop(messages);
        end_of_grpc(&mut body).await
    }

    /// Bytes there and back at the same time, until both have ended.
    async fn tcp(&self, call: &Call, replica: &mut Option<String>) -> Done {
        let mut stream = TcpStream::connect(self.tcp).await.map_err(broken)?;
        let (read, mut write) = stream.split();
        let mut read = BufReader::new(read);
        let mut name = String::new();
        read.read_line(&mut name).await.map_err(broken)?;
        if name.is_empty() {
            return Err(failure(BROKEN, "the connection ended before the greeting"));
        }
        *replica = Some(name.trim_end().to_owned());
        let sent = pattern(0, call.size);
        let send = async {
            for part in sent.chunks(sent.len().div_ceil(5)) {
                write.write_all(part).await?;
                sleep(call.work).await;
            }
            write.shutdown().await
        };
        let mut got = Vec::new();
        let (sent_all, got_all) = tokio::join!(send, read.read_to_end(&mut got));
        sent_all.and(got_all).map_err(broken)?;
        if got.len() < sent.len() && sent.starts_with(&got) {
            return Err(failure(
                BROKEN,
                &format!("it ended after {} of {} bytes", got.len(), sent.len()),
            ));
        }
        equal(&got, &sent)
    }

    async fn upgrade(&self, call: &Call, replica: &mut Option<String>) -> Done {
        let stream = TcpStream::connect(self.http).await.map_err(broken)?;
        let mut stream = BufReader::new(stream);
        let head = "GET /upgrade HTTP/1.1\r\nHost: soak\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.write_all(head.as_bytes()).await.map_err(broken)?;
        let (status, headers) = read_head(&mut stream).await?;
        *replica = header(&headers, REPLICA);
        if status != 101 {
            return Err(refused(status, &headers, ""));
        }
        for n in 0..10 {
            let message = message(call.id + n, call.size);
            stream.write_all(&message).await.map_err(broken)?;
            let mut answer = vec![0; message.len()];
            stream.read_exact(&mut answer).await.map_err(broken)?;
            equal(&answer, &message)?;
            sleep(call.work / 5).await;
        }
        stream.shutdown().await.map_err(broken)?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.map_err(broken)?;
        equal(&rest, b"")
    }

    fn request(&self, call: &Call, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.http));
        let request = marked(request, call);
        match call.close {
            true => request.header("connection", "close"),
            false => request,
        }
    }

    fn grpc_request(&self, call: &Call, method: &str, body: Body) -> Request<Body> {
        let request = Request::post(format!("http://{}/soak.Echo/{method}", self.grpc))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        marked(request, call).body(body).unwrap()
    }
}

fn marked(request: http::request::Builder, call: &Call) -> http::request::Builder {
    let request = request.header(ID, call.id).header(WORK, call.work.as_millis() as u64);
    match call.kind.once() {
        true => request.header(ONCE, "yes"),
        false => request,
    }
}

/// A gRPC message, with its prefix.
fn message(seed: u64, size: usize) -> Bytes {
    let mut message = BytesMut::with_capacity(5 + size);
    message.put_u8(0);
    message.put_u32(size as u32);
    message.put(pattern(seed as usize % 251, size));
    message.freeze()
}

/// The body of a response of the app.
async fn answered(response: Response<Incoming>, replica: &mut Option<String>) -> Result<Bytes, Failure> {
    let (head, body) = response.into_parts();
    *replica = header(&head.headers, REPLICA);
    let body = body.collect().await.map_err(broken)?.to_bytes();
    if head.status != 200 {
        return Err(refused(
            head.status.as_u16(),
            &head.headers,
            &String::from_utf8_lossy(&body),
        ));
    }
    Ok(body)
}

fn grpc_answered(response: Response<Incoming>, replica: &mut Option<String>) -> Result<Incoming, Failure> {
    let (head, body) = response.into_parts();
    *replica = header(&head.headers, REPLICA);
    if head.status != 200 || head.headers.contains_key("grpc-status") {
        let message = header(&head.headers, "grpc-message").unwrap_or_default();
        return Err(refused(head.status.as_u16(), &head.headers, &message));
    }
    Ok(body)
}

async fn next_data(body: &mut Incoming) -> Result<Bytes, Failure> {
    match body.frame().await {
        Some(Ok(frame)) => frame.into_data().map_err(|frame| {
            let trailers = frame.into_trailers().unwrap_or_default();
            failure(BROKEN, &format!("trailers in the middle: {trailers:?}"))
        }),
        Some(Err(error)) => Err(broken(error)),
        None => Err(failure(BROKEN, "it ended in the middle")),
    }
}

async fn end_of_grpc(body: &mut Incoming) -> Done {
    let trailers = match body.frame().await {
        Some(Ok(frame)) => frame
            .into_trailers()
            .map_err(|_| failure(WRONG, "more data than was sent"))?,
        Some(Err(error)) => return Err(broken(error)),
        None => return Err(failure(BROKEN, "it ended without trailers")),
    };
    match header(&trailers, "grpc-status").as_deref() {
        Some("0") => Ok(()),
        _ => Err(failure(BROKEN, &format!("its trailers are {trailers:?}"))),
    }
}

async fn read_head(stream: &mut BufReader<TcpStream>) -> Result<(u16, HeaderMap), Failure> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.map_err(broken)?;
        match line.trim_end() {
            "" if line.is_empty() => return Err(failure(BROKEN, "the connection ended before a response")),
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let status = lines.first().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers = lines.iter().skip(1).filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        Some((name.parse::<http::HeaderName>().ok()?, value.parse().ok()?))
    });
    match status {
        Some(status) => Ok((status, headers.collect())),
        None => Err(failure(WRONG, &format!("it is no response: {lines:?}"))),
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// Somebody answered that it does not work.
fn refused(status: u16, headers: &HeaderMap, text: &str) -> Failure {
    let code = header(headers, "outrigger-error").unwrap_or_else(|| format!("status {status}"));
    failure(&code, text.lines().next().unwrap_or_default())
}

fn equal(got: &[u8], expected: &[u8]) -> Done {
    if got == expected {
        return Ok(());
    }
    let same = got.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let detail = format!(
        "{} bytes came, {} were expected, and they differ from byte {same} on",
        got.len(),
        expected.len()
    );
    Err(failure(WRONG, &detail))
}

fn broken(error: impl Into<anyhow::Error>) -> Failure {
    failure(BROKEN, &format!("{:#}", error.into()))
}

fn failure(code: &str, detail: &str) -> Failure {
    Failure {
        code: code.to_owned(),
        detail: detail.to_owned(),
    }
}
