//! Serves one connection of a client, the app's or a peer sidecar's.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::fault::Fault;
use super::guard::{Guard, HEAD_TIME};
use super::response::ResponseBody;
use super::waiting::{Waiting, of_http1};
use super::watch::Watch;
use crate::authority;
use crate::body::ClientBody;
use crate::drain::{OpenConnection, Stage};
use crate::executor::LocalExecutor;
use crate::headers::{asks_for_tunnel, join_cookies};
use crate::limits::{CONNECTION_WINDOW, MAX_BUFFER, STREAM_WINDOW};
use crate::net::detect::{Peeked, http2_opening, peek};
use crate::net::{HttpVersion, Standing, Stream};
use crate::room::Held;

/// Streams that a client may have open on one connection; further ones wait on its side.
const MAX_STREAMS: u32 = 1000;
/// The same, and the size of a header section, where all requests of a connection will be refused but kubelet's.
const REFUSED_STREAMS: u32 = 8;
const REFUSED_FIELDS: usize = 4096;
/// Streams that a client resets before they were looked at, at one time: beyond, GOAWAY (rapid reset, CVE-2023-44487).
const MAX_RESET_UNSEEN: usize = 50;
/// Streams that a client's own mistakes end, in the life of a connection: beyond, GOAWAY (MadeYouReset, CVE-2025-8671).
const MAX_MISTAKES: usize = 1024;
/// What the app may leave unread of an HTTP/2 stream's response.
const SEND_BUFFER: usize = 256 * 1024;
/// What a peer that does not confirm a GOAWAY has to take the end of its last answer.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Serves requests until the connection ends or was drained.
///
/// # Errors
/// Those of the connection.
pub async fn serve<H>(version: HttpVersion, stream: Stream, open: &OpenConnection, handle: Rc<H>) -> hyper::Result<()>
where
    H: AsyncFn(Request<ClientBody>) -> Response<ResponseBody> + 'static,
{
    match version {
        HttpVersion::Http1 => serve_http1(stream, open, handle).await,
        // Boxed for HTTP/1's sake (sizes_of_connections).
        HttpVersion::Http2 => Box::pin(serve_http2(stream, open, handle)).await,
    }
}

async fn serve_http1<H>(stream: Stream, open: &OpenConnection, handle: Rc<H>) -> hyper::Result<()>
where
    H: AsyncFn(Request<ClientBody>) -> Response<ResponseBody> + 'static,
{
    let seat = open.seat();
    let term = stream.term();
    let half_closes = !stream.is_mesh();
    let (stream, watch) = Guard::new(stream, half_closes, seat.heads(), seat.most_held());
    let gone = Arc::clone(&watch);
    // A connection that has not had its first request is not closed by the drain: it was made for one.
    let used = Rc::new(Cell::new(false));
    let waiting = Rc::new(RefCell::new(Held::new(seat.requests())));
    let service = service_fn({
        let (used, activity, term) = (Rc::clone(&used), open.activity(), term.clone());
        move |request| {
            let first = !used.replace(true);
            watch.progress.begin();
            let busy = seat.busy();
            let (handle, watch, waiting) = (Rc::clone(&handle), Arc::clone(&watch), Rc::clone(&waiting));
            let (activity, term) = (Rc::clone(&activity), term.clone());
            async move {
                if first && half_closes {
                    // What came with the connection is read before the system says what else came: the end of the
                    // client's half. In one turn it is known.
                    tokio::task::yield_now().await;
                }
                let ending = || activity.stage() > Stage::Serving || !term.is_good();
                let response = answer_http1(&*handle, watch, &waiting, ending, request).await;
                Ok::<_, Infallible>(response.map(|body| body.with_busy(busy)))
            }
        }
    });
    // A client that closes while it waits has given up: its request is cancelled upstream as well. The guard knows who has
    // not given up (so hyper is not told of half-closes).
    // No timer for the head of a request, which hyper would arm for each and for idle connections too: the guard has one.
    let connection = http1::Builder::new()
        .preserve_header_case(true)
        .max_buf_size(MAX_BUFFER)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let served = {
        let mut connection = pin!(connection);
        let mut closing = false;
        poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            // hyper may have reasons not to read; the term is heard in any case.
            if polled.is_pending() && term.poll_cut(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            // Answers say "Connection: close" while the drain goes on; here, idle connections are closed.
            let drained = |cx: &mut Context<'_>| open.poll_stage(cx) >= Stage::Closing && used.get();
            if polled.is_pending() && !closing && (drained(cx) || term.standing() == Standing::Over) {
                closing = true;
                connection.as_mut().graceful_shutdown();
                return connection.as_mut().poll(cx);
            }
            polled
        })
        .await
    };
    // What it was upgraded to goes on elsewhere, and keeps its place.
    let _busy = open.seat().busy();
    gone.gone().await;
    served
}

/// Answers one request, or the stand-in for one. `ending`: whether it is the last one of its connection, asked when the answer
/// is there.
async fn answer_http1<H>(
    handle: &H,
    watch: Arc<Watch>,
    waiting: &RefCell<Held>,
    ending: impl Fn() -> bool,
    mut request: Request<Incoming>,
) -> Response<ResponseBody>
where
    H: AsyncFn(Request<ClientBody>) -> Response<ResponseBody>,
{
    let fault = watch.fault(request.method());
    if let Some(fault) = fault {
        request.extensions_mut().insert(fault);
    }
    settle(&mut request);
    join_cookies(request.headers_mut());
    if request.version() == Version::HTTP_10 {
        // RFC 9110 section 7.8: who speaks HTTP/1.0 asks for nothing with it.
        request.headers_mut().remove(UPGRADE);
    }
    // Held for as long as the head may be: until there is an answer.
    if fault.is_none() && !waiting.borrow_mut().set(of_http1(request.uri(), request.headers())) {
        request.extensions_mut().insert(Fault::Crowded);
    }
    let tunnel = watch.in_tunnel() && asks_for_tunnel(request.method(), request.headers());
    let connect = request.method() == Method::CONNECT;
    let request = request.map(|body| ClientBody::new(body, Some(Arc::clone(&watch.progress))));
    let received = request.body().received();
    let mut response = handle(request).await;
    // To hold nothing is never refused.
    let _ = waiting.borrow_mut().set(0);
    // RFC 9110 section 2.5: the version is this hop's own. hyper takes it down for an HTTP/1.0 client.
    *response.version_mut() = Version::HTTP_11;
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS || (connect && response.status().is_success());
    // hyper closes a connection whose request was answered before all of its body was read: then that is said, or the
    // client's next request on it would be lost.
    let unread = !received.ended();
    let half_closed = watch.progress.answered();
    let ends = fault.is_some() || unread || ending() || half_closed;
    // "Connection: upgrade" has to stay, and what follows is no HTTP.
    if !switches && (ends || (tunnel && watch.refuse_tunnel())) {
        // A 426 names a protocol, and `Connection` names that name.
        let options = match response.headers().contains_key(UPGRADE) {
            true => "close, upgrade",
            false => "close",
        };
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static(options));
    }
    response.map(|body| body.with_progress(Arc::clone(&watch.progress)))
}

/// What is malformed about whom a request is for, it carries to who refuses it.
fn settle<B>(request: &mut Request<B>) {
    if let Err(what) = authority::settle(request) {
        request.extensions_mut().insert(Fault::Malformed(what));
    }
}

/// Answers one request. To HEAD without content, as with 204 and 304, which peers take for a protocol error (RFC 9113 section
/// 8.1.1); hyper sees to that in HTTP/1 only.
async fn answer_http2<H>(handle: &H, waiting: &Rc<Waiting>, mut request: Request<Incoming>) -> Response<ResponseBody>
where
    H: AsyncFn(Request<ClientBody>) -> Response<ResponseBody>,
{
    let head = request.method() == Method::HEAD;
    settle(&mut request);
    join_cookies(request.headers_mut());
    // Held for as long as the head may be: until there is an answer.
    let share = waiting.share_for(request.uri(), request.headers());
    if share.is_none() {
        request.extensions_mut().insert(Fault::Crowded);
    }
    let response = handle(request.map(|body| ClientBody::new(body, None))).await;
    drop(share);
    if head || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        response.map(ResponseBody::without_content)
    } else {
        response
    }
}

async fn serve_http2<H>(stream: Stream, open: &OpenConnection, handle: Rc<H>) -> hyper::Result<()>
where
    H: AsyncFn(Request<ClientBody>) -> Response<ResponseBody> + 'static,
{
    // Another sidecar resets for many clients at once; one of them that goes away is not to end the others' connection.
    let reset_unseen = match stream.is_mesh() {
        true => MAX_STREAMS as usize,
        false => MAX_RESET_UNSEEN,
    };
    // The library waits for a preface without a limit.
    let opening = peek(stream, HEAD_TIME, http2_opening).await;
    let Ok(Peeked {
        verdict: Some(()), io, ..
    }) = opening
    else {
        tracing::debug!("a client closed an HTTP/2 connection before its SETTINGS, or did not send them in time");
        return Ok(());
    };
    let seat = open.seat();
    let term = io.get_ref().term();
    let (streams, fields) = match seat.most_held() {
        Some(most) => (REFUSED_STREAMS, most.max(REFUSED_FIELDS)),
        None => (MAX_STREAMS, MAX_BUFFER),
    };
    // A connection that is accepted during the drain carries one request before its GOAWAY.
    let used = Rc::new(Cell::new(false));
    // Whether a CONNECT was accepted: the library does not say when a tunnel ends.
    let tunnels = Rc::new(Cell::new(false));
    let waiting = Waiting::new(seat.requests());
    let service = service_fn({
        let (used, tunnels, term) = (Rc::clone(&used), Rc::clone(&tunnels), term.clone());
        move |request| {
            used.set(true);
            let (handle, waiting, busy) = (Rc::clone(&handle), Rc::clone(&waiting), seat.busy());
            let connect = (request.method() == Method::CONNECT).then(|| Rc::clone(&tunnels));
            // The client does not want to hear of the GOAWAY: until it confirms a ping, h2 lets it go on (RFC 9113 section 6.8).
            let late = term.standing() >= Standing::Over;
            if late {
                term.cut();
            }
            async move {
                if late {
                    // Its connection ends, and this stream with it.
                    pending::<()>().await;
                }
                let response = answer_http2(&*handle, &waiting, request).await;
                if let Some(tunnels) = connect.filter(|_| response.status().is_success()) {
                    tunnels.set(true);
                }
                Ok::<_, Infallible>(response.map(|body| body.with_busy(busy)))
            }
        }
    });
    let connection = http2::Builder::new(LocalExecutor)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(streams)
        .max_pending_accept_reset_streams(reset_unseen)
        .max_local_error_reset_streams(MAX_MISTAKES)
        .enable_connect_protocol()
        // The fields as decoded (HPACK bombs); h2 bounds the CONTINUATION frames by it too (CVE-2024-27316).
        .max_header_list_size(fields as u32)
        .max_send_buf_size(SEND_BUFFER)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let mut going = false;
    let mut idle_since = None;
    poll_fn(|cx| {
        let polled = connection.as_mut().poll(cx);
        // The library may have reasons not to read; the term is heard in any case.
        if polled.is_pending() && term.poll_cut(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let standing = term.standing();
        // It ends by itself when its streams have, if the peer confirms the GOAWAY. One that does not has a last time: the end
        // of an answer may be on its way. The sweep wakes this again.
        let is_idle = standing == Standing::Over && going && !seat.is_busy() && !tunnels.get();
        match (polled.is_pending() && is_idle, idle_since) {
            (false, _) => idle_since = None,
            (true, None) => idle_since = Some(Instant::now()),
            (true, Some(since)) if since.elapsed() >= LAST_WORDS => return Poll::Ready(Ok(())),
            (true, Some(_)) => {}
        }
        if polled.is_pending() && !going {
            let stage = open.poll_stage(cx);
            let drained = stage == Stage::Refusing || (stage >= Stage::Draining && used.get());
            if drained || seat.is_closed() || standing >= Standing::Ending {
                going = true;
                connection.as_mut().graceful_shutdown();
                return connection.as_mut().poll(cx);
            }
        }
        polled
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the future that `make` gives, which nobody calls.
    fn size<A, F: Future>(_make: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    /// The state of a connection beside its requests. A future keeps room for all that it may ever wait for.
    #[test]
    fn sizes_of_connections() {
        async fn handle(_: Request<ClientBody>) -> Response<ResponseBody> {
            unreachable!("nobody calls it")
        }
        type Connection = (Stream, &'static OpenConnection);
        let either = size(|(stream, open): Connection| serve(HttpVersion::Http1, stream, open, Rc::new(handle)));
        let http1 = size(|(stream, open): Connection| serve_http1(stream, open, Rc::new(handle)));
        let http2 = size(|(stream, open): Connection| serve_http2(stream, open, Rc::new(handle)));
        for (what, size, most) in [
            ("either", either, 1400),
            ("HTTP/1", http1, 1300),
            ("HTTP/2", http2, 2200),
        ] {
            // Far below it, the bound would let it grow.
            let room = most * 3 / 4..=most;
            assert!(
                room.contains(&size),
                "{what} takes {size} bytes, and {most} are written here"
            );
        }
    }
}
