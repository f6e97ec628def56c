//! `Expect: 100-continue` from end to end (RFC 9110 section 10.1.1).
//!
//! The client's 100 is sent by hyper when the body is first asked for. So the body is asked for when the next hop says 100,
//! and not before; when its answer is final, never. A server that knows nothing of it, and just waits, gets the body
//! after [`PATIENCE`], as it would from the client.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::cause::BoxError;

/// As long as curl waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// A body that waits until it is wanted.
pub struct Awaited<B> {
    /// `None`: it never will be.
    body: Option<B>,
    answer: Arc<Answer>,
    patience: Pin<Box<Sleep>>,
}

/// What the server has said of the body.
#[derive(Default)]
pub struct Answer {
    state: AtomicU8,
    waker: AtomicWaker,
}

/// Ends the connection to a server that did not want the body, when its response has been read: it still waits for what
/// will not come.
pub struct Refused(Arc<Answer>);

// The states of `Answer`.
const NONE: u8 = 0;
const WANTED: u8 = 1;
const REFUSED: u8 = 2;
const OVER: u8 = 3;

impl Answer {
    /// The server has said 100.
    pub(super) fn wanted(&self) {
        self.advance(WANTED);
    }

    /// There is a final response. `Some`: the body was not wanted before it.
    pub fn refused(self: &Arc<Self>) -> Option<Refused> {
        self.advance(REFUSED);
        (self.state.load(Ordering::Relaxed) == REFUSED).then(|| Refused(Arc::clone(self)))
    }

    /// From `NONE`, or to the end.
    fn advance(&self, to: u8) {
        let _ = self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            (now == NONE || to == OVER).then_some(to)
        });
        self.waker.wake();
    }
}

impl Drop for Refused {
    fn drop(&mut self) {
        self.0.advance(OVER);
    }
}

impl<B> Awaited<B> {
    /// Holds `body` back until the answer says more.
    pub(super) fn new(body: B) -> (Self, Arc<Answer>) {
        let answer = Arc::<Answer>::default();
        let awaited = Self {
            body: Some(body),
            answer: Arc::clone(&answer),
            patience: Box::pin(tokio::time::sleep(PATIENCE)),
        };
        (awaited, answer)
    }
}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin> Awaited<B> {
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            self.answer.waker.register(cx.waker());
            match (self.answer.state.load(Ordering::Relaxed), &mut self.body) {
                (WANTED, Some(body)) => return Pin::new(body).poll_frame(cx),
                (NONE, _) => {
                    if self.patience.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.answer.advance(WANTED);
                }
                (REFUSED, body) => {
                    // The client's connection need not wait for anybody who reads.
                    *body = None;
                    return Poll::Pending;
                }
                _ => return Poll::Ready(Some(Err("the server does not want the body".into()))),
            }
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}
