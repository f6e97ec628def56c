//! An app that speaks HTTP/2 by prior knowledge, on one thread: any request gets a body of a fixed size; one of gRPC gets
//! a message of that size and the trailer `grpc-status: 0`; an export of spans gets an empty message.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Result;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpListener;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Listens here.
    #[arg(long)]
    addr: SocketAddr,
    /// Bytes of each body or message.
    #[arg(long, default_value_t = 1024)]
    size: u32,
}

#[derive(Clone)]
struct Bodies {
    plain: Bytes,
    message: Bytes,
    empty: Bytes,
}

/// A message of gRPC: uncompressed, its length, its bytes.
fn message(size: u32) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(size);
    message.put_bytes(b'x', size as usize);
    message.freeze()
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let bodies = Bodies {
        plain: Bytes::from(vec![b'x'; options.size as usize]),
        message: message(options.size),
        empty: message(0),
    };
    let listener = TcpListener::bind(options.addr).await?;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true)?;
        let bodies = bodies.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let bodies = bodies.clone();
                async move { Ok::<_, Infallible>(answer(request, bodies).await) }
            });
            // A client that goes away is no error here.
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(1000)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Frames = StreamBody<tokio_stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

async fn answer(mut request: Request<Incoming>, bodies: Bodies) -> Response<Frames> {
    while let Some(Ok(_)) = request.body_mut().frame().await {}
    let content_type = request.headers().get(CONTENT_TYPE);
    let grpc = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let export = request.uri().path().starts_with("/opentelemetry");
    let mut frames = Vec::with_capacity(2);
    let (name, value) = if grpc {
        let message = if export { bodies.empty } else { bodies.message };
        frames.push(Ok(Frame::data(message)));
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        frames.push(Ok(Frame::trailers(trailers)));
        (CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
    } else {
        let length = bodies.plain.len();
        frames.push(Ok(Frame::data(bodies.plain)));
        (CONTENT_LENGTH, HeaderValue::from(length))
    };
    let mut response = Response::new(StreamBody::new(tokio_stream::iter(frames)));
    response.headers_mut().insert(name, value);
    response
}
