//! A request's body on its way to a server.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::EXPECT;
use http::{Request, StatusCode};
use http_body::{Body, Frame, SizeHint};

use super::awaited::{Answer, Awaited};
use super::copied::Copied;
use super::received::ClientBody;
use super::replay::{Kept, OnTooLarge, Replay};
use crate::cause::BoxError;

/// A request's body on its way to a server.
pub enum RequestBody {
    /// There is none.
    Empty,
    /// This sidecar's own, one piece after the other, until they have been read. An empty piece is none.
    Own(Box<[Bytes; 2]>),
    /// A client's.
    Replay(Replay),
    /// A copy of a client's.
    Copied(Copied),
    /// The client waits for the server to want it.
    Awaited(Box<Awaited<RequestBody>>),
}

/// Where the bodies of a request's attempts come from. An attempt reads it and does not own it: an attempt that ends before
/// the first byte was read leaves it whole for the next one, also where nothing is kept.
pub enum BodySource {
    /// There is none.
    Empty,
    /// One that is kept while it is read.
    Kept(Rc<Kept>),
}

impl BodySource {
    /// A client's. Up to `limit` bytes can be sent again after they were read; `on_too_large` hears of it if there are more.
    pub fn new(body: ClientBody, limit: usize, on_too_large: Option<Arc<dyn OnTooLarge>>) -> Self {
        match body.is_end_stream() {
            true => Self::Empty,
            false => Self::Kept(Kept::new(body, limit, on_too_large)),
        }
    }

    /// The body for the next attempt. `None`: it cannot be sent again.
    pub fn attempt(&self) -> Option<RequestBody> {
        match self {
            Self::Empty => Some(RequestBody::Empty),
            Self::Kept(kept) => kept.attempt().map(RequestBody::Replay),
        }
    }

    /// Whether another attempt can have all of it.
    pub fn can_repeat(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Kept(kept) => kept.can_repeat(),
        }
    }
}

impl Drop for BodySource {
    /// There is no attempt after this.
    fn drop(&mut self) {
        if let Self::Kept(kept) = self {
            kept.let_go();
        }
    }
}

/// Holds the body of a request back, if the client waits for a word from the server.
pub fn await_answer(request: &mut Request<RequestBody>) -> Option<Arc<Answer>> {
    if request.body().is_end_stream() {
        return None;
    }
    let expect = request.headers().get(EXPECT)?;
    if !expect.as_bytes().eq_ignore_ascii_case(b"100-continue") {
        return None;
    }
    let body = std::mem::replace(request.body_mut(), RequestBody::Empty);
    let (awaited, answer) = Awaited::new(body);
    *request.body_mut() = RequestBody::Awaited(Box::new(awaited));
    let told = Arc::clone(&answer);
    hyper::ext::on_informational(request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            told.wanted();
        }
    });
    Some(answer)
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            RequestBody::Empty => Poll::Ready(None),
            RequestBody::Own(pieces) => {
                let piece = pieces.iter_mut().find(|piece| !piece.is_empty()).map(std::mem::take);
                Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
            }
            RequestBody::Replay(replay) => Pin::new(replay).poll_frame(cx),
            RequestBody::Copied(copied) => Pin::new(copied).poll_frame(cx),
            RequestBody::Awaited(awaited) => awaited.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Own(pieces) => pieces.iter().all(Bytes::is_empty),
            RequestBody::Replay(replay) => replay.is_end_stream(),
            RequestBody::Copied(copied) => copied.is_end_stream(),
            // One that has no bytes is not waited for.
            RequestBody::Awaited(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Own(pieces) => SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum()),
            RequestBody::Replay(replay) => replay.size_hint(),
            RequestBody::Copied(copied) => copied.size_hint(),
            RequestBody::Awaited(awaited) => awaited.size_hint(),
        }
    }
}
