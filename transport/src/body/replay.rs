//! A request body that can be sent again.
//!
//! It is never read ahead: bytes are kept while they stream. A large chunk costs the first attempt no more than a reference.
//! Small ones are copied together: a reference is larger than they are, and keeps the buffer alive that they were read into.
//! So what is kept takes memory in proportion to its bytes. Past the limit the chunks are let go, the body goes on streaming,
//! and cannot be sent again.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::received::ClientBody;
use crate::cause::{BoxError, ClientBroke};

/// Hears of bodies that cannot be sent again.
pub trait OnTooLarge {
    /// A body is larger than what is kept of one, so its request has no further attempt.
    fn body_not_kept(&self);
}

/// Bytes of a chunk that is not small: a good part of the buffer that it was read into.
const LARGE: usize = 4096;

/// What every attempt of one request shares.
pub struct Kept<B = ClientBody> {
    state: RefCell<State<B>>,
    /// Hears of it when the body is too large.
    on_too_large: Option<Arc<dyn OnTooLarge>>,
}

struct State<B> {
    source: B,
    chunks: Vec<Bytes>,
    /// Small chunks that came after those.
    tail: Vec<u8>,
    trailers: Option<HeaderMap>,
    kept: usize,
    limit: usize,
    ended: bool,
    /// Chunks were let go, or the client broke off.
    lost: bool,
    /// The attempt that reads now; an older one that still sends is stopped.
    attempt: u32,
    /// Of `chunks`, how many it has had.
    next: usize,
    /// It is the last one.
    last: bool,
    /// Of its task, while it waits for the client.
    waker: Option<Waker>,
}

/// The body of one attempt.
pub struct Replay<B = ClientBody> {
    kept: Rc<Kept<B>>,
    attempt: u32,
    done: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Kept<B>
where
    B::Error: Into<BoxError>,
{
    /// Keeps up to `limit` bytes; `on_too_large` hears of it if there are more.
    pub fn new(source: B, limit: usize, on_too_large: Option<Arc<dyn OnTooLarge>>) -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::new(State {
                source,
                chunks: Vec::new(),
                tail: Vec::new(),
                trailers: None,
                kept: 0,
                limit,
                ended: false,
                lost: false,
                attempt: 0,
                next: 0,
                last: false,
                waker: None,
            }),
            on_too_large,
        })
    }

    /// The body for the next attempt. `None`: it cannot be sent again.
    pub fn attempt(self: &Rc<Self>) -> Option<Replay<B>> {
        let mut state = self.state.borrow_mut();
        if state.lost {
            return None;
        }
        state.attempt += 1;
        // The client will not wake it any more, and a server that has answered early may leave its stream open: it would stay.
        state.waker.take().into_iter().for_each(Waker::wake);
        state.seal();
        state.next = 0;
        Some(Replay {
            kept: Rc::clone(self),
            attempt: state.attempt,
            done: false,
        })
    }

    /// Whether another attempt can have all of it.
    pub fn can_repeat(&self) -> bool {
        !self.state.borrow().lost
    }

    /// Keeps nothing for another attempt: a stream may go on for days after its response has begun.
    pub(super) fn let_go(&self) {
        let mut state = self.state.borrow_mut();
        state.last = true;
        state.forget();
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Replay<B>
where
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let state = &mut *this.kept.state.borrow_mut();
        if this.done {
            return Poll::Ready(None);
        }
        if this.attempt != state.attempt {
            this.done = true;
            return Poll::Ready(Some(Err("another attempt has taken over".into())));
        }
        if let Some(chunk) = state.chunks.get(state.next).cloned() {
            state.next += 1;
            state.forget();
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if state.ended {
            this.done = true;
            return Poll::Ready(state.trailers.clone().map(|t| Ok(Frame::trailers(t))));
        }
        let polled = Pin::new(&mut state.source).poll_frame(cx);
        if polled.is_pending() && !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        let frame = match ready!(polled) {
            None => {
                state.ended = true;
                this.done = true;
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                state.lost = true;
                this.done = true;
                return Poll::Ready(Some(Err(ClientBroke(error.into()).into())));
            }
            Some(Ok(frame)) => frame,
        };
        if let Some(data) = frame.data_ref() {
            let was_lost = state.lost;
            state.keep(data);
            if let Some(on_too_large) = this.kept.on_too_large.as_ref().filter(|_| state.lost && !was_lost) {
                on_too_large.body_not_kept();
            }
            state.next = state.chunks.len();
            state.ended = state.source.is_end_stream();
        } else if let Some(trailers) = frame.trailers_ref() {
            state.trailers = Some(trailers.clone());
            state.ended = true;
            this.done = true;
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.kept.state.borrow();
        self.done
            || if state.ended {
                state.next >= state.chunks.len() && state.trailers.is_none()
            } else {
                state.chunks.is_empty() && state.source.is_end_stream()
            }
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.kept.state.borrow();
        let ahead: u64 = state.chunks.iter().skip(state.next).map(|c| c.len() as u64).sum();
        let source = state.source.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(ahead + source.lower());
        if let Some(upper) = source.upper() {
            hint.set_upper(ahead + upper);
        }
        hint
    }
}

impl<B> State<B> {
    fn keep(&mut self, data: &Bytes) {
        if self.lost {
            return;
        }
        self.kept += data.len();
        if self.kept > self.limit {
            self.lost = true;
            self.chunks = Vec::new();
            self.tail = Vec::new();
        } else if data.len() < LARGE {
            self.tail.extend_from_slice(data);
        } else {
            self.seal();
            self.chunks.push(data.clone());
        }
    }

    /// Lets go of all chunks when the last attempt has had them.
    fn forget(&mut self) {
        if self.last && self.next >= self.chunks.len() {
            self.lost = true;
            self.next = 0;
            self.chunks = Vec::new();
            self.tail = Vec::new();
        }
    }

    /// Makes a chunk of the small ones at the end, for an attempt to read. The one that reads now has had them.
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push(std::mem::take(&mut self.tail).into());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Kept, LARGE, Replay};
    use crate::cause::BoxError;
    use bytes::Bytes;
    use http::HeaderMap;
    use http_body::{Body, Frame};
    use http_body_util::{BodyExt, StreamBody};
    use std::pin::Pin;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::task::{Context, Poll, Wake, Waker};

    type Source = StreamBody<tokio_stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, BoxError>>>>;

    fn kept(chunks: &[&'static str], limit: usize) -> Rc<Kept<Source>> {
        let mut frames: Vec<_> = chunks
            .iter()
            .map(|c| Ok(Frame::data(Bytes::from_static(c.as_bytes()))))
            .collect();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", http::HeaderValue::from_static("1"));
        frames.push(Ok(Frame::trailers(trailers)));
        Kept::new(StreamBody::new(tokio_stream::iter(frames)), limit, None)
    }

    async fn all(replay: Replay<Source>) -> (Bytes, bool) {
        let collected = replay.collect().await.unwrap();
        let trailers = collected.trailers().is_some();
        (collected.to_bytes(), trailers)
    }

    #[tokio::test]
    async fn small_bodies_are_sent_again_with_their_trailers() {
        let kept = kept(&["ab", "cd", "ef"], 6);
        let mut first = kept.attempt().unwrap();
        first.frame().await.unwrap().unwrap();
        let second = kept.attempt().unwrap();
        assert!(first.frame().await.unwrap().is_err(), "two attempts read one body");
        assert_eq!(all(second).await, (Bytes::from_static(b"abcdef"), true));
        assert_eq!(
            all(kept.attempt().unwrap()).await,
            (Bytes::from_static(b"abcdef"), true)
        );
    }

    #[tokio::test]
    async fn after_the_last_attempt_nothing_is_kept() {
        let large: &'static str = "L".repeat(LARGE).leak();
        let sent = ["a", large, "b", large, "c"];
        // The response begins after so many frames of the last attempt; the first one was sent three.
        for had in 0..=sent.len() {
            let kept = kept(&sent, 4 * LARGE);
            let mut replay = kept.attempt().unwrap();
            for _ in 0..3 {
                replay.frame().await.unwrap().unwrap();
            }
            let mut replay = kept.attempt().unwrap();
            let mut body = Vec::new();
            for n in 0.. {
                if n == had {
                    kept.let_go();
                }
                match replay.frame().await {
                    Some(frame) => body.extend(frame.unwrap().into_data().unwrap_or_default()),
                    None => break,
                }
                let state = kept.state.borrow();
                let all_sent_again = n >= 2;
                if n >= had && all_sent_again {
                    assert_eq!((state.chunks.capacity(), state.tail.capacity()), (0, 0), "{had}, {n}");
                }
            }
            assert!(body == sent.concat().as_bytes(), "{had}");
            assert!(!kept.can_repeat());
        }
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    #[test]
    fn an_attempt_that_waits_for_the_client_ends_when_another_takes_over() {
        type Silent = StreamBody<futures_util::stream::Pending<Result<Frame<Bytes>, BoxError>>>;
        let kept: Rc<Kept<Silent>> = Kept::new(StreamBody::new(futures_util::stream::pending()), 10, None);
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(Arc::clone(&woken));
        let poll = |attempt: &mut Replay<Silent>| Pin::new(attempt).poll_frame(&mut Context::from_waker(&waker));
        let mut first = kept.attempt().unwrap();
        assert!(poll(&mut first).is_pending() && !woken.0.load(Relaxed));
        let _second = kept.attempt().unwrap();
        assert!(woken.0.load(Relaxed), "nobody else wakes it");
        assert!(matches!(poll(&mut first), Poll::Ready(Some(Err(_)))));
    }

    #[tokio::test]
    async fn what_is_kept_takes_memory_in_proportion_to_its_bytes() {
        const LIMIT: usize = 64 * 1024;
        // In pieces of the buffer that they were read into, as the library gives them.
        let buffer = Bytes::from(vec![b'x'; LIMIT]);
        for size in [1, 7, 100, LARGE - 1, LARGE, LIMIT] {
            let frames: Vec<_> = (0..LIMIT / size)
                .map(|n| Ok(Frame::data(buffer.slice(n * size..(n + 1) * size))))
                .collect();
            let kept: Rc<Kept<Source>> = Kept::new(StreamBody::new(tokio_stream::iter(frames)), LIMIT, None);
            let bytes = LIMIT / size * size;
            for _ in 0..2 {
                assert_eq!(kept.attempt().unwrap().collect().await.unwrap().to_bytes().len(), bytes);
            }
            let state = kept.state.borrow();
            let places = state.chunks.capacity() * size_of::<Bytes>();
            let memory = bytes + state.tail.capacity() + places;
            assert!(memory <= LIMIT * 2, "{memory} bytes for {bytes} in chunks of {size}");
        }
    }

    #[tokio::test]
    async fn small_chunks_keep_their_place_among_large_ones() {
        let large: &'static str = "L".repeat(LARGE).leak();
        let sent = ["a", "b", large, "c", large, large, "d", "e"];
        let kept = kept(&sent, 4 * LARGE);
        let mut first = kept.attempt().unwrap();
        for _ in 0..4 {
            first.frame().await.unwrap().unwrap();
        }
        let second = kept.attempt().unwrap();
        assert_eq!(all(second).await, (sent.concat().into(), true));
        assert_eq!(all(kept.attempt().unwrap()).await, (sent.concat().into(), true));
    }

    #[tokio::test]
    async fn large_bodies_stream_on_and_are_let_go() {
        let kept = kept(&["ab", "cd", "ef"], 5);
        assert_eq!(all(kept.attempt().unwrap()).await.0, "abcdef");
        assert!(!kept.can_repeat() && kept.attempt().is_none());
    }

    #[tokio::test]
    async fn nothing_is_lost_before_it_was_read() {
        let kept = kept(&["too long for the limit"], 1);
        drop(kept.attempt().unwrap());
        assert!(kept.can_repeat());
        assert!(!kept.attempt().unwrap().is_end_stream());
    }
}
