//! The end of a sidecar: what is in flight is told to go and may finish, up to a deadline.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{App, Authority, Http, SOON, Sidecar, id, metric, request, status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

const DAY: Duration = Duration::from_secs(86_400);
/// A drain that must not be waited for: longer than any of these tests.
const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(2);

struct Pair {
    web: RunningProxy,
    orders: RunningProxy,
    to: SocketAddr,
    _authority: Authority,
}

async fn pair(app: SocketAddr, protocol: &str, drain: Duration) -> Pair {
    let authority = Authority::start(&["web", "orders"], DAY).await;
    let orders = Sidecar::new("orders").protects(app);
    let orders = orders
        .start_with(&authority, |config| config.drain_timeout = drain)
        .await;
    let web = Sidecar::new("web").calls("orders", protocol, &[(orders.inbound[0], Some(id("orders")))], "{}");
    let web = web.start_with(&authority, |config| config.drain_timeout = drain).await;
    Pair {
        to: web.outbound[0],
        web,
        orders,
        _authority: authority,
    }
}

/// Upgrades to a protocol that says everything twice.
async fn echo() -> App {
    App::start(async |mut request| {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 64];
            while let Ok(read @ 1..) = io.read(&mut word).await {
                io.write_all(&word[..read]).await.unwrap();
            }
        });
        let mut response = status(101);
        let headers = response.headers_mut();
        headers.insert("connection", HeaderValue::from_static("Upgrade"));
        headers.insert("upgrade", HeaderValue::from_static("websocket"));
        response
    })
    .await
}

async fn upgraded(to: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(to).await.unwrap();
    let head = "GET /ws HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(client.read_u8().await.unwrap());
    }
    assert!(
        answer.starts_with(b"HTTP/1.1 101 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    client
}

async fn echoes(client: &mut TcpStream) -> bool {
    let mut word = [0; 4];
    client.write_all(b"ping").await.is_ok() && client.read_exact(&mut word).await.is_ok() && &word == b"ping"
}

/// Both ends of a mesh, one after the other: that of the caller, and that of the called.
#[tokio::test]
async fn a_websocket_lives_until_the_deadline_and_is_closed_then() {
    for ends_at_the_caller in [true, false] {
        let app = echo().await;
        let Pair {
            web,
            orders,
            to,
            _authority,
            ..
        } = pair(app.address, "http1", SHORT).await;
        let mut client = upgraded(to).await;
        assert!(echoes(&mut client).await);
        let (ends, _stays) = if ends_at_the_caller {
            (web, orders)
        } else {
            (orders, web)
        };
        let began = Instant::now();
        let end = tokio::spawn(ends.shutdown());
        while began.elapsed() < SHORT / 2 {
            assert!(echoes(&mut client).await, "closed after {:?}", began.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!end.is_finished());
        // The end is no failure, and the connection is closed for the client.
        timeout(SOON, end).await.unwrap().unwrap().unwrap();
        assert!(began.elapsed() >= SHORT);
        let mut nothing = [0; 1];
        let read = timeout(SOON, client.read(&mut nothing))
            .await
            .expect("the connection is still open");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
}

/// An app whose response to POST comes in parts, when the test says so.
async fn streaming() -> (App, mpsc::UnboundedSender<&'static str>) {
    let (say, hears) = mpsc::unbounded_channel::<&'static str>();
    let hears = Mutex::new(Some(hears));
    let app = App::start(move |request| {
        let stream = request.method() == Method::POST;
        let hears = stream.then(|| hears.lock().unwrap().take().unwrap());
        async move {
            let Some(hears) = hears else {
                return status(200);
            };
            let parts = UnboundedReceiverStream::new(hears).map(|part| Ok(Frame::data(Bytes::from(part))));
            Response::new(BodyExt::boxed(StreamBody::new(parts)))
        }
    })
    .await;
    (app, say)
}

#[tokio::test]
async fn a_stream_is_told_to_go_and_may_finish() {
    for ends_at_the_caller in [true, false] {
        let (app, say) = streaming().await;
        let Pair {
            web,
            orders,
            to,
            _authority,
            ..
        } = pair(app.address, "http2", LONG).await;
        let tcp = TcpStream::connect(to).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(tcp).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::post("http://orders/shop.Orders/Watch").header("content-type", "application/grpc");
        let (response, mut body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        say.send("one").unwrap();
        let mut response = response.await.unwrap().into_body();
        assert_eq!(&response.data().await.unwrap().unwrap()[..], b"one");
        let handshakes = || metric(&web, "outrigger_tls_handshakes_total", &["outbound", "result=\"ok\""]);
        assert_eq!(handshakes(), 1);
        let end = if ends_at_the_caller {
            let end = tokio::spawn(web.shutdown());
            // GOAWAY: no new stream on this connection, whose task goes on.
            timeout(SOON, async {
                while std::future::poll_fn(|cx| sender.poll_ready(cx)).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
            .await
            .expect("no GOAWAY comes");
            end
        } else {
            let end = tokio::spawn(orders.shutdown());
            // The sidecar of the caller hears GOAWAY, and takes a new connection for what comes next.
            super::until("a new connection is made", async || {
                assert_eq!(Http::two().get(to, "/").await.status, 200);
                handshakes() > 1
            })
            .await;
            end
        };
        // Both directions of the stream go on.
        body.send_data(Bytes::from_static(b"more"), true).unwrap();
        for part in ["two", "three"] {
            say.send(part).unwrap();
            assert_eq!(
                &timeout(SOON, response.data()).await.unwrap().unwrap().unwrap()[..],
                part.as_bytes()
            );
        }
        assert!(!end.is_finished(), "it ended with a stream in flight");
        drop(say);
        // The end may be a frame of its own, without data.
        let rest = timeout(SOON, async {
            let mut rest = Vec::new();
            while let Some(data) = response.data().await {
                rest.extend(data.unwrap());
            }
            rest
        });
        assert!(rest.await.unwrap().is_empty());
        timeout(SOON, end)
            .await
            .expect("nothing is in flight any more")
            .unwrap()
            .unwrap();
        if ends_at_the_caller {
            timeout(SOON, connection).await.unwrap().unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn idle_connections_of_the_app_do_not_hold_a_sidecar() {
    let app = App::start(async |_| status(200)).await;
    for (protocol, http) in [("http1", Http::one()), ("http2", Http::two())] {
        let Pair {
            web,
            orders,
            to,
            _authority,
        } = pair(app.address, protocol, LONG).await;
        assert_eq!(http.get(to, "/").await.status, 200);
        // The client keeps its connection, and so does the sidecar of the caller.
        for sidecar in [orders, web] {
            timeout(SOON, sidecar.shutdown())
                .await
                .expect("it waits for idle connections")
                .unwrap();
        }
    }
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_at_the_deadline() {
    let (app, say) = streaming().await;
    let Pair {
        web,
        orders,
        to,
        _authority,
    } = pair(app.address, "http1", SHORT).await;
    let request = request(Method::POST, to, "/", "");
    say.send("one").unwrap();
    let call = tokio::spawn(async move { Http::one().send(request).await });
    super::until("the request is in flight", async || {
        metric(&orders, "outrigger_connections_open", &["inbound"]) > 0
    })
    .await;
    timeout(SOON, orders.shutdown())
        .await
        .expect("it waits for ever")
        .unwrap();
    assert!(
        timeout(SOON, call).await.unwrap().unwrap().is_err(),
        "half a response looked like a whole one"
    );
    drop((web, say));
}
