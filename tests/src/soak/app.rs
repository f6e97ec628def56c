//! The app of a replica: HTTP and gRPC on one port, an echo that speaks first on another. It can be killed and started
//! again at the same addresses.

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::ledger::Ledger;
use super::port::Port;

pub(super) type Body = BoxBody<Bytes, Infallible>;

/// Headers of the requests: which it is, whether it may be executed once only, and the milliseconds that it takes.
pub(super) const ID: &str = "x-id";
pub(super) const ONCE: &str = "x-once";
pub(super) const WORK: &str = "x-work";
/// Header of the responses: who answers.
pub(super) const REPLICA: &str = "x-replica";

/// The longest content of anything.
const LONGEST: usize = 256 * 1024;
/// A long response comes in this many pieces.
const PIECES: usize = 8;

/// See the module.
pub(super) struct App {
    http: Port,
    echo: Port,
    me: Arc<Me>,
    alive: CancellationToken,
}

struct Me {
    name: String,
    ledger: Arc<Ledger>,
}

impl App {
    pub(super) fn start(name: &str, ledger: Arc<Ledger>) -> io::Result<Self> {
        let me = Me {
            name: name.to_owned(),
            ledger,
        };
        let mut app = Self {
            http: Port::reserve()?,
            echo: Port::reserve()?,
            me: Arc::new(me),
            alive: CancellationToken::new(),
        };
        app.restart()?;
        Ok(app)
    }

    /// Where HTTP and where the echo is.
    pub(super) fn addresses(&self) -> [SocketAddr; 2] {
        [self.http.address, self.echo.address]
    }

    /// Its connections end in the middle of whatever they carry, and new ones are refused.
    pub(super) fn kill(&self) {
        self.alive.cancel();
    }

    /// Starts again after it was killed.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.alive = CancellationToken::new();
        let alive = &self.alive;
        spawn(
            alive,
            accept(self.http.listen()?, alive.clone(), Arc::clone(&self.me), serve),
        );
        spawn(
            alive,
            accept(self.echo.listen()?, alive.clone(), Arc::clone(&self.me), echo),
        );
        Ok(())
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs until it ends, or the app is killed.
fn spawn(alive: &CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
    let alive = alive.clone();
    tokio::spawn(async move { alive.run_until_cancelled_owned(task).await });
}

async fn accept<F>(
    listener: TcpListener,
    alive: CancellationToken,
    me: Arc<Me>,
    serve: impl Fn(TcpStream, CancellationToken, Arc<Me>) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        spawn(&alive, serve(stream, alive.clone(), Arc::clone(&me)));
    }
}

/// Says its name, and then what it is told.
async fn echo(mut stream: TcpStream, _: CancellationToken, me: Arc<Me>) {
    let greeted = stream.write_all(format!("{}\n", me.name).as_bytes()).await;
    let (mut read, mut write) = stream.split();
    // A peer that is gone is what the soak is about.
    if greeted.is_ok() && tokio::io::copy(&mut read, &mut write).await.is_ok() {
        let _ = write.shutdown().await;
    }
}

async fn serve(stream: TcpStream, alive: CancellationToken, me: Arc<Me>) {
    let upgrades = alive.clone();
    let service = service_fn(move |request| {
        let (me, alive) = (Arc::clone(&me), upgrades.clone());
        async move {
            let mut response = answer(request, &me, &alive).await;
            let name = HeaderValue::from_str(&me.name).expect("a replica's name is ASCII");
            response.headers_mut().insert(REPLICA, name);
            Ok::<_, Infallible>(response)
        }
    });
    let builder = auto::Builder::new(UntilKilled(alive));
    let _ = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await;
}

#[derive(Clone)]
struct UntilKilled(CancellationToken);

impl<F> hyper::rt::Executor<F> for UntilKilled
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        spawn(&self.0, task);
    }
}

async fn answer(request: Request<Incoming>, me: &Me, alive: &CancellationToken) -> Response<Body> {
    let headers = request.headers();
    let number = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let (id, work) = (number(ID), Duration::from_millis(number(WORK).unwrap_or(0)));
    let once = headers.contains_key(ONCE);
    let path = request.uri().path().to_owned();
    let execute = || {
        if let Some(id) = id {
            me.ledger.execute(id, once, &me.name);
        }
    };
    match path.as_str() {
        "/upgrade" => upgrade(request, alive),
        "/soak.Echo/Stream" => grpc(echo_stream(request.into_body())),
        "/soak.Echo/Unary" => {
            let Ok(body) = request.into_body().collect().await else {
                return status(StatusCode::BAD_REQUEST);
            };
            execute();
            tokio::time::sleep(work).await;
            grpc(
                Full::new(body.to_bytes())
                    .with_trailers(async { Some(Ok(grpc_ok())) })
                    .boxed(),
            )
        }
        "/digest" => {
            let Ok(body) = request.into_body().collect().await else {
                return status(StatusCode::BAD_REQUEST);
            };
            execute();
            tokio::time::sleep(work).await;
            Response::new(Full::new(digest(&body.to_bytes()).into()).boxed())
        }
        _ => match path.strip_prefix("/bytes/").and_then(|size| size.parse().ok()) {
            Some(size) if size <= LONGEST => Response::new(pieces(size, work)),
            _ => status(StatusCode::NOT_FOUND),
        },
    }
}

/// What `/digest` answers to a body.
pub(super) fn digest(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    format!("{} bytes, {:016x}", body.len(), hasher.finish())
}

/// The bytes that `/bytes/SIZE` answers with, from `at` on. Both together are at most [`LONGEST`].
pub(super) fn pattern(at: usize, size: usize) -> Bytes {
    // Made once: the soak's own work is to be small.
    static PATTERN: LazyLock<Bytes> = LazyLock::new(|| (0..LONGEST).map(|n| (n % 251) as u8).collect());
    PATTERN.slice(at..at + size)
}

fn pieces(size: usize, work: Duration) -> Body {
    let pieces = stream::unfold(0, move |at| async move {
        let next = (size - at).min(size.div_ceil(PIECES).max(1));
        tokio::time::sleep(work / PIECES as u32).await;
        (next > 0).then(|| (Ok(Frame::data(pattern(at, next))), at + next))
    });
    BodyExt::boxed(StreamBody::new(pieces))
}

fn echo_stream(body: Incoming) -> Body {
    let frames = stream::unfold(Some(body), |body| async {
        let mut body = body?;
        match body.frame().await {
            Some(Ok(frame)) => Some((Ok(frame), Some(body))),
            None => Some((Ok(Frame::trailers(grpc_ok())), None)),
            // The caller is gone.
            Some(Err(_)) => None,
        }
    });
    BodyExt::boxed(StreamBody::new(frames))
}

fn grpc(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    response
}

fn grpc_ok() -> HeaderMap {
    HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )])
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::default().boxed());
    *response.status_mut() = status;
    response
}

/// Switches to an echo.
fn upgrade(mut request: Request<Incoming>, alive: &CancellationToken) -> Response<Body> {
    let upgrading = hyper::upgrade::on(&mut request);
    spawn(alive, async move {
        if let Ok(upgraded) = upgrading.await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                let _ = write.shutdown().await;
            }
        }
    });
    let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("echo"));
    response
}
