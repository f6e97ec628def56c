//! Apps that are asked whether they are well, in each way that kubelet knows.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::mesh::text;

/// What an app speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP in plaintext. It is well at `/ready`.
    Http,
    /// The same in TLS, with a certificate that nobody signed.
    Https,
    /// The same, and HTTP/2 only.
    Http2OverTls,
    /// gRPC's health check, of the service "shop".
    Grpc,
    /// It accepts connections, and nothing else.
    Nothing,
}

/// An app. Dropped, its connections are reset and new ones refused.
pub struct Probed {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Probed {
    /// Starts one.
    ///
    /// # Panics
    /// When its port is taken.
    pub async fn start(listen: SocketAddr, speaks: Speaks) -> Self {
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = tls(speaks);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, speaks, tls.clone()));
            }
        });
        Self { address, task }
    }

    /// Stops, and waits until its port is free.
    pub async fn stop(self) {
        self.task.abort();
        while !self.task.is_finished() {
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Probed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, speaks: Speaks, tls: Option<TlsAcceptor>) {
    match (speaks, tls) {
        (Speaks::Nothing, _) => {
            std::future::pending::<()>().await;
            drop(stream);
        }
        (_, None) => http(stream).await,
        // Who does not speak TLS is what some tests are about.
        (_, Some(tls)) => {
            if let Ok(stream) = tls.accept(stream).await {
                http(stream).await;
            }
        }
    }
}

async fn http(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(request).await) });
    let builder = auto::Builder::new(TokioExecutor::new());
    // Who asks and goes away is no failure of the app.
    let _ = builder.serve_connection(TokioIo::new(io), service).await;
}

async fn answer(request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
    match request.uri().path() {
        "/ready" => Response::new(text("well")),
        "/grpc.health.v1.Health/Check" => health(request).await,
        _ => {
            let mut response = Response::new(text("not here"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    }
}

/// Messages of one field, by hand: `HealthCheckRequest.service` is a string, `HealthCheckResponse.status` is a number.
async fn health(request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
    let asked = request.into_body().collect().await.unwrap().to_bytes();
    let known = asked.ends_with(b"\x0a\x04shop");
    let mut trailers = HeaderMap::new();
    let status = if known { "0" } else { "5" };
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    let message = Frame::data(Bytes::from_static(b"\0\0\0\0\x02\x08\x01"));
    let frames = known.then_some(message).into_iter().chain([Frame::trailers(trailers)]);
    let body = StreamBody::new(tokio_stream::iter(frames.map(Ok::<_, Infallible>)));
    let mut response = Response::new(body.boxed());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", grpc);
    response
}

fn tls(speaks: Speaks) -> Option<TlsAcceptor> {
    let alpn: &[&[u8]] = match speaks {
        Speaks::Https => &[b"http/1.1"],
        Speaks::Http2OverTls => &[b"h2"],
        _ => return None,
    };
    let own = rcgen::generate_simple_self_signed(["app.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.unwrap().with_no_client_auth();
    let mut config = builder.with_single_cert(vec![own.cert.der().clone()], key).unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Some(TlsAcceptor::from(Arc::new(config)))
}
