//! HTTP/2 and gRPC through two sidecars and through one: streams, resets, time limits, connections, and floods.

mod answers;
mod authority;
mod connect;
mod connections;
mod deadlines;
mod floods;
mod heads;
mod memory;
pub(crate) mod raw;
mod resets;
mod streams;
mod unsent;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{Authority, SOON, Sidecar, id};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// What is in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    Both,
    CallersSidecar,
    AppsSidecar,
}

const EACH: [Between; 3] = [Between::Both, Between::CallersSidecar, Between::AppsSidecar];

/// A way to an app.
struct Mesh {
    to: SocketAddr,
    web: Option<RunningProxy>,
    orders: Option<RunningProxy>,
    _authority: Authority,
}

async fn mesh(between: Between, app: SocketAddr, policy: &str) -> Mesh {
    let authority = Authority::start(&["web", "orders"], Duration::from_secs(86_400)).await;
    let orders = match between {
        Between::CallersSidecar => None,
        _ => Some(Sidecar::new("orders").protects(app).start(&authority).await),
    };
    let web = match between {
        Between::AppsSidecar => None,
        _ => {
            let endpoint = orders
                .as_ref()
                .map_or((app, None), |orders| (orders.inbound[0], Some(id("orders"))));
            let web = Sidecar::new("web").calls("orders", "http2", &[endpoint], policy);
            Some(web.start(&authority).await)
        }
    };
    let to = match (&web, &orders) {
        (Some(web), _) => web.outbound[0],
        (None, Some(orders)) => orders.inbound[0],
        (None, None) => app,
    };
    Mesh {
        to,
        web,
        orders,
        _authority: authority,
    }
}

/// An app on the bare library: it sees frames that others hide.
struct H2App {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// The task of each connection.
    open: Arc<std::sync::Mutex<Vec<AbortHandle>>>,
    _tasks: JoinSet<()>,
}

impl H2App {
    async fn start<F, R>(handle: F) -> Self
    where
        F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let mut builder = h2::server::Builder::new();
        // Its own limits are not what is tested: all that a client resets at once comes to it at once.
        builder
            .max_header_list_size(1 << 20)
            .max_pending_accept_reset_streams(1000);
        Self::with(builder, usize::MAX, handle).await
    }

    /// With settings; and connections that say GOAWAY after `requests`.
    async fn with<F, R>(builder: h2::server::Builder, requests: usize, handle: F) -> Self
    where
        F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let open: Arc<std::sync::Mutex<Vec<AbortHandle>>> = Arc::default();
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let (connections, open) = (Arc::clone(&connections), Arc::clone(&open));
            async move {
                let mut running = JoinSet::new();
                while let Ok((tcp, _)) = listener.accept().await {
                    connections.fetch_add(1, SeqCst);
                    let (builder, handle) = (builder.clone(), handle.clone());
                    let task = running.spawn(async move {
                        let Ok(mut connection) = builder.handshake(tcp).await else {
                            return;
                        };
                        let mut streams = JoinSet::new();
                        let mut seen = 0;
                        while let Some(Ok((request, respond))) = connection.accept().await {
                            seen += 1;
                            if seen == requests {
                                connection.graceful_shutdown();
                            }
                            streams.spawn(handle(request, respond));
                        }
                    });
                    open.lock().unwrap().push(task);
                }
            }
        });
        Self {
            address,
            connections,
            open,
            _tasks: tasks,
        }
    }

    /// How many connections there have been.
    fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    /// Breaks all connections.
    fn break_connections(&self) {
        self.open.lock().unwrap().drain(..).for_each(|task| task.abort());
    }
}

/// A client's connection.
async fn client(to: SocketAddr) -> SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    builder.max_header_list_size(1 << 20);
    client_with(to, &builder).await
}

async fn client_with(to: SocketAddr, builder: &h2::client::Builder) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(to).await.unwrap();
    let (sender, connection) = builder.handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

/// A gRPC call's head.
fn call(path: &str) -> Request<()> {
    Request::post(format!("http://orders.shop{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

/// A message of gRPC: not compressed, its length, itself.
fn message(text: &[u8]) -> Bytes {
    let mut message = vec![0];
    message.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
    message.extend_from_slice(text);
    message.into()
}

/// Within the time that everything takes at most.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("nothing comes")
}

/// The same for many megabytes, on a slow machine.
async fn at_length<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(6 * SOON, future).await.expect("it does not end")
}

/// The next piece of a body; `None`: the last was there.
async fn piece(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let piece = soon(body.data()).await;
    if let Some(Ok(bytes)) = &piece {
        let _ = body.flow_control().release_capacity(bytes.len());
    }
    piece
}

/// All of a body, and its trailers.
async fn all(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(piece) = piece(&mut body).await {
        bytes.extend_from_slice(&piece?);
    }
    Ok((bytes, soon(body.trailers()).await?))
}

/// Sends as much as the other side takes, and waits.
async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes, end: bool) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len().min(1 << 16));
        let room = match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(room) => room?.min(bytes.len()),
            None => return Err(h2::Reason::STREAM_CLOSED.into()),
        };
        stream.send_data(bytes.split_to(room), end && bytes.is_empty())?;
    }
    Ok(())
}

/// What a stream is reset with.
async fn reset(stream: &mut SendStream<Bytes>) -> h2::Reason {
    soon(std::future::poll_fn(|cx| stream.poll_reset(cx))).await.unwrap()
}

fn trailers(grpc_status: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", grpc_status.parse().unwrap());
    trailers
}

/// The head of a gRPC response.
fn answer() -> Response<()> {
    Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .unwrap()
}

fn code(headers: &HeaderMap) -> Option<&str> {
    headers.get("outrigger-error").and_then(|code| code.to_str().ok())
}

fn grpc_status(headers: &HeaderMap) -> Option<&str> {
    headers.get("grpc-status").and_then(|status| status.to_str().ok())
}
