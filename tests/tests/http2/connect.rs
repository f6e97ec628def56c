//! Extended CONNECT (RFC 8441): WebSockets over HTTP/2, and CONNECT itself.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::ext::Protocol;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{EACH, all, client, code, mesh, piece, soon};

/// What the app was asked for.
type Asked = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// Answers CONNECT with an echo.
async fn app(offers: bool) -> (std::net::SocketAddr, Asked, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Asked::default();
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let asked = Arc::clone(&asked);
        async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let asked = Arc::clone(&asked);
                let service = hyper::service::service_fn(move |request| {
                    let asked = Arc::clone(&asked);
                    async move { Ok::<_, Infallible>(echo(request, &asked)) }
                });
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                if offers {
                    builder.enable_connect_protocol();
                }
                tokio::spawn(builder.serve_connection(TokioIo::new(tcp), service));
            }
        }
    });
    (address, asked, tasks)
}

fn echo(mut request: Request<Incoming>, asked: &Asked) -> Response<Empty<Bytes>> {
    let protocol = request.extensions().get::<hyper::ext::Protocol>();
    let protocol = protocol.map(|protocol| protocol.as_str().to_owned());
    asked.lock().unwrap().push((request.uri().to_string(), protocol));
    let mut response = Response::new(Empty::new());
    if request.method() != Method::CONNECT {
        return response;
    }
    if request.uri().path() == "/no" {
        *response.status_mut() = StatusCode::FORBIDDEN;
        return response;
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut tunnel = TokioIo::new(upgrade.await.unwrap());
        let (mut read, mut write) = tokio::io::split(&mut tunnel);
        // What it is told, back again; its end as well.
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut tunnel).await;
    });
    response
}

fn websocket(path: &str) -> Request<()> {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://orders.shop{path}"))
        .header("sec-websocket-version", "13")
        .body(())
        .unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    request
}

/// Waits for the other side's SETTINGS.
async fn offers_it(client: &SendRequest<Bytes>) {
    soon(async {
        while !client.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn carries_a_websocket_to_an_app_that_offers_it() {
    let (address, asked, _tasks) = app(true).await;
    for between in EACH {
        let mesh = mesh(between, address, "{}").await;
        let mut client = client(mesh.to).await;
        offers_it(&client).await;
        for _ in 0..2 {
            let (response, mut out) = client.send_request(websocket("/chat?room=1"), false).unwrap();
            let response = soon(response).await.unwrap();
            assert_eq!(response.status(), 200, "{between:?}");
            let mut echoes = response.into_body();
            for text in ["one", "two"] {
                out.send_data(text.into(), false).unwrap();
                assert_eq!(piece(&mut echoes).await.unwrap().unwrap(), text);
            }
            out.send_data("end".into(), true).unwrap();
            assert_eq!(all(echoes).await.unwrap().0, b"end", "{between:?}");
            let asked = asked.lock().unwrap().pop().unwrap();
            assert_eq!(asked.0, "http://orders.shop/chat?room=1");
            assert_eq!(asked.1.as_deref(), Some("websocket"));
        }
        let (response, _out) = client.send_request(websocket("/no"), false).unwrap();
        let response = soon(response).await.unwrap();
        assert_eq!((response.status().as_u16(), code(response.headers())), (403, None));
    }
}

#[tokio::test]
async fn is_refused_where_the_app_does_not_offer_it() {
    let (address, asked, _tasks) = app(false).await;
    for between in EACH {
        let mesh = mesh(between, address, "{}").await;
        let mut client = client(mesh.to).await;
        offers_it(&client).await;
        let (response, _out) = client.send_request(websocket("/chat"), false).unwrap();
        let response = soon(response).await.unwrap();
        assert_eq!(response.status(), 502, "{between:?}");
        assert_eq!(code(response.headers()), Some("upstream-protocol"));
        assert!(asked.lock().unwrap().is_empty());
        // The connection is good for other requests.
        let request = Request::get("http://orders.shop/").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        assert_eq!(soon(response).await.unwrap().status(), 200);
        asked.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn connect_itself_is_a_tunnel_too() {
    let (address, asked, _tasks) = app(false).await;
    for between in EACH {
        let mesh = mesh(between, address, "{}").await;
        let mut client = client(mesh.to).await;
        let request = Request::builder().method(Method::CONNECT).uri("db.shop:5432");
        let (response, mut out) = client.send_request(request.body(()).unwrap(), false).unwrap();
        let response = soon(response).await.unwrap();
        assert_eq!(response.status(), 200, "{between:?}");
        let mut echoes = response.into_body();
        out.send_data("hello".into(), false).unwrap();
        assert_eq!(piece(&mut echoes).await.unwrap().unwrap(), "hello");
        out.send_data(Bytes::new(), true).unwrap();
        assert_eq!(all(echoes).await.unwrap().0, b"");
        let asked = asked.lock().unwrap().pop().unwrap();
        assert_eq!(asked, ("db.shop:5432".to_owned(), None));
    }
}
