//! A copy of a request's body for a server that the request must not wait for.
//!
//! [`ClientBody`](super::ClientBody) writes it where it reads, so it has each byte once, however many attempts read the body
//! again. What is not sent at once waits here, in bounded memory. Where that does not suffice, or the body ends before it is
//! whole, the copy fails: its server sees the stream reset, or the connection closed, and never an end that looks like one.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::cause::BoxError;
use crate::limits::MAX_BUFFER;

/// Bytes of one copy that wait, twice what may be read at once.
const MOST: usize = 2 * MAX_BUFFER;
/// Bytes that are handed on together: a server that has stopped reading holds one of these, and not all that waits.
const PIECE: usize = 16 * 1024;

/// Memory for copies. They share it, and bytes count until the server's socket has them.
pub struct CopyRoom(Arc<Semaphore>);

/// Why a copy is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotCopied {
    /// Its server does not take it as fast as it comes.
    TooSlow,
    /// The body broke, or whoever it was for did not read all of it.
    Incomplete,
}

/// Writes a copy. Dropped before [`Feed::end`], it is incomplete.
pub(super) struct Feed(Rc<Shared>);

/// A copy, as the body of a request.
pub struct Copied {
    shared: Rc<Shared>,
    /// Of what was not read yet.
    hint: SizeHint,
}

/// What becomes of a copy. Dropped, it lets nobody have the rest.
pub struct Copying(Rc<Shared>);

struct Shared {
    waiting: RefCell<Waiting>,
    progress: watch::Sender<Progress>,
    room: Arc<Semaphore>,
    reader: AtomicWaker,
}

#[derive(Default)]
struct Waiting {
    pieces: VecDeque<Piece>,
    bytes: usize,
    trailers: Option<HeaderMap>,
}

/// Bytes, with their share of the room.
struct Piece {
    bytes: Vec<u8>,
    share: OwnedSemaphorePermit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Open,
    /// All of the body is here, or was.
    Whole,
    /// Nobody reads it any more.
    Done,
    Failed(NotCopied),
}

impl CopyRoom {
    /// For so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }
}

/// A copy of a body that has `hint`.
pub(super) fn copy(hint: SizeHint, room: &CopyRoom) -> (Feed, Copied, Copying) {
    let shared = Rc::new(Shared {
        waiting: RefCell::default(),
        progress: watch::Sender::new(Progress::Open),
        room: Arc::clone(&room.0),
        reader: AtomicWaker::new(),
    });
    let copied = Copied {
        shared: Rc::clone(&shared),
        hint,
    };
    (Feed(Rc::clone(&shared)), copied, Copying(shared))
}

impl Feed {
    pub(super) fn write(&self, frame: &Frame<Bytes>) {
        let shared = &*self.0;
        if shared.progress() != Progress::Open {
            return;
        }
        let mut waiting = shared.waiting.borrow_mut();
        if let Some(data) = frame.data_ref() {
            if !waiting.add(data, &shared.room) {
                drop(waiting);
                return shared.fail(NotCopied::TooSlow);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            waiting.trailers = Some(trailers.clone());
        }
        shared.reader.wake();
    }

    /// All of it was written.
    pub(super) fn end(&self) {
        self.0.advance(&[Progress::Open], Progress::Whole);
        self.0.reader.wake();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if self.0.progress() == Progress::Open {
            self.0.fail(NotCopied::Incomplete);
        }
    }
}

impl Copying {
    /// Waits until all of the body is here, or nobody wants it.
    ///
    /// # Errors
    /// Why it will never be.
    pub async fn whole(&self) -> Result<(), NotCopied> {
        match self.0.reaches(|progress| progress != Progress::Open).await {
            Progress::Failed(why) => Err(why),
            _ => Ok(()),
        }
    }

    /// Waits until all of it is in its server's connection, or that does not want it. Of a copy that fails, it never is.
    pub async fn sent(&self) {
        self.0.reaches(|progress| progress == Progress::Done).await;
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        if matches!(self.0.progress(), Progress::Open | Progress::Whole) {
            self.0.fail(NotCopied::Incomplete);
        }
    }
}

impl Body for Copied {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        this.shared.reader.register(cx.waker());
        let progress = this.shared.progress();
        if let Progress::Failed(_) = progress {
            // RFC 9113 section 7: the stream is not needed any more.
            return Poll::Ready(Some(Err(h2::Error::from(h2::Reason::CANCEL).into())));
        }
        let mut waiting = this.shared.waiting.borrow_mut();
        if let Some(piece) = waiting.next() {
            this.hint = after(&this.hint, piece.bytes.len());
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(piece)))));
        }
        match progress {
            Progress::Open => Poll::Pending,
            _ => Poll::Ready(waiting.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        let waiting = self.shared.waiting.borrow();
        self.shared.progress() == Progress::Whole && waiting.pieces.is_empty() && waiting.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.shared.advance(&[Progress::Open, Progress::Whole], Progress::Done);
        self.shared.waiting.take();
    }
}

impl Shared {
    fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    fn advance(&self, from: &[Progress], to: Progress) {
        self.progress.send_if_modified(|now| {
            let may = from.contains(now);
            if may {
                *now = to;
            }
            may
        });
    }

    async fn reaches(&self, there: impl Fn(Progress) -> bool) -> Progress {
        let mut progress = self.progress.subscribe();
        // It is not closed: this has the sender.
        match progress.wait_for(|progress| there(*progress)).await {
            Ok(progress) => *progress,
            Err(_) => self.progress(),
        }
    }

    fn fail(&self, why: NotCopied) {
        self.progress.send_replace(Progress::Failed(why));
        self.waiting.take();
        self.reader.wake();
    }
}

impl Waiting {
    /// Whether there is room for it.
    fn add(&mut self, data: &[u8], room: &Arc<Semaphore>) -> bool {
        let bytes = self.bytes + data.len();
        let (true, Ok(length)) = (bytes <= MOST, u32::try_from(data.len())) else {
            return false;
        };
        let Ok(mut share) = Arc::clone(room).try_acquire_many_owned(length) else {
            return false;
        };
        self.bytes = bytes;
        let mut rest = data;
        // Small ones together, or each would have a place of its own, and a buffer that it was read into.
        if let Some(last) = self.pieces.back_mut() {
            let (more, beyond) = rest.split_at(rest.len().min(PIECE - last.bytes.len()));
            last.bytes.extend_from_slice(more);
            if let Some(share) = share.split(more.len()) {
                last.share.merge(share);
            }
            rest = beyond;
        }
        for piece in rest.chunks(PIECE) {
            self.pieces.extend(share.split(piece.len()).map(|share| Piece {
                bytes: piece.to_vec(),
                share,
            }));
        }
        true
    }

    fn next(&mut self) -> Option<Piece> {
        let piece = self.pieces.pop_front()?;
        self.bytes -= piece.bytes.len();
        Some(piece)
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What is left of it behind so many bytes.
fn after(hint: &SizeHint, bytes: usize) -> SizeHint {
    let bytes = bytes as u64;
    let mut left = SizeHint::new();
    left.set_lower(hint.lower().saturating_sub(bytes));
    if let Some(upper) = hint.upper() {
        left.set_upper(upper.saturating_sub(bytes));
    }
    left
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Copied, CopyRoom, Copying, Feed, MOST, NotCopied, PIECE, copy};
    use bytes::Bytes;
    use futures_util::FutureExt;
    use http::{HeaderMap, HeaderValue};
    use http_body::{Body, Frame, SizeHint};
    use http_body_util::BodyExt;

    const ROOM: usize = 4 * MOST;

    fn some(room: &CopyRoom) -> (Feed, Copied, Copying) {
        copy(SizeHint::new(), room)
    }

    fn data(bytes: usize) -> Frame<Bytes> {
        Frame::data(vec![b'x'; bytes].into())
    }

    /// What a reader has at once: `None`, it waits.
    fn now(copied: &mut Copied) -> Option<Option<Result<Frame<Bytes>, ()>>> {
        let frame = copied.frame().now_or_never()?;
        Some(frame.map(|frame| frame.map_err(|_| ())))
    }

    fn is_broken(copied: &mut Copied) -> bool {
        !copied.is_end_stream() && matches!(now(copied), Some(Some(Err(()))))
    }

    fn is_all_free(room: &CopyRoom) -> bool {
        room.0.available_permits() == ROOM
    }

    #[test]
    fn it_has_all_that_was_written_and_then_ends() {
        let room = CopyRoom::new(ROOM);
        let (feed, mut copied, copying) = copy(SizeHint::with_exact(6), &room);
        assert!(now(&mut copied).is_none() && !copied.is_end_stream());
        feed.write(&Frame::data("ab".into()));
        feed.write(&Frame::data("".into()));
        feed.write(&Frame::data("cd".into()));
        assert_eq!(now(&mut copied).unwrap().unwrap().unwrap().into_data().unwrap(), "abcd");
        assert_eq!(copied.size_hint().exact(), Some(2));
        assert!(now(&mut copied).is_none() && copying.whole().now_or_never().is_none());
        feed.write(&Frame::data("ef".into()));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        feed.write(&Frame::trailers(trailers.clone()));
        feed.end();
        drop(feed);
        assert_eq!(copying.whole().now_or_never(), Some(Ok(())));
        assert!(copying.sent().now_or_never().is_none());
        let rest = copied.collect().now_or_never().unwrap().unwrap();
        assert_eq!(rest.trailers(), Some(&trailers));
        assert_eq!(rest.to_bytes(), "ef");
        assert_eq!(copying.sent().now_or_never(), Some(()));
        assert!(is_all_free(&room));
    }

    #[test]
    fn a_body_without_trailers_ends_with_its_last_piece() {
        let room = CopyRoom::new(ROOM);
        let (feed, mut copied, _copying) = some(&room);
        feed.write(&data(PIECE + 1));
        feed.end();
        let mut piece = || {
            let length = now(&mut copied).unwrap().unwrap().unwrap().into_data().unwrap().len();
            (length, copied.is_end_stream())
        };
        assert_eq!([piece(), piece()], [(PIECE, false), (1, true)]);
    }

    #[test]
    fn who_reads_too_slowly_sees_it_broken_and_nothing_is_kept() {
        let room = CopyRoom::new(ROOM);
        let (feed, mut copied, copying) = some(&room);
        let (other_feed, mut other, _other_copying) = some(&room);
        for _ in 0..MOST / PIECE {
            feed.write(&data(PIECE));
            other_feed.write(&data(PIECE));
            now(&mut other).unwrap();
        }
        assert!(copying.whole().now_or_never().is_none());
        feed.write(&data(1));
        assert_eq!(copying.whole().now_or_never(), Some(Err(NotCopied::TooSlow)));
        assert!(is_all_free(&room), "{}", room.0.available_permits());
        // Nor from now on.
        feed.write(&data(1));
        feed.end();
        assert!(is_broken(&mut copied) && is_all_free(&room));
        other_feed.end();
        assert!(
            now(&mut other).unwrap().is_none(),
            "it has nothing to do with the other"
        );
    }

    #[test]
    fn bytes_count_until_they_are_gone() {
        let room = CopyRoom::new(ROOM);
        let (feed, mut copied, copying) = some(&room);
        let mut held = Vec::new();
        for _ in 0..ROOM / PIECE {
            feed.write(&data(PIECE));
            held.push(now(&mut copied).unwrap().unwrap().unwrap());
        }
        assert_eq!(room.0.available_permits(), 0);
        held.pop();
        feed.write(&data(PIECE));
        assert!(copying.whole().now_or_never().is_none());
        feed.write(&data(1));
        assert_eq!(copying.whole().now_or_never(), Some(Err(NotCopied::TooSlow)));
        drop(held);
        assert!(is_all_free(&room));
    }

    #[test]
    fn small_pieces_take_memory_in_proportion() {
        let room = CopyRoom::new(ROOM);
        let (feed, copied, _copying) = some(&room);
        // In pieces of the buffer that they were read into, as the library gives them.
        let buffer = Bytes::from(vec![b'x'; MOST]);
        for n in 0..MOST {
            feed.write(&Frame::data(buffer.slice(n..=n)));
        }
        let waiting = copied.shared.waiting.borrow();
        let bytes: usize = waiting.pieces.iter().map(|piece| piece.bytes.capacity()).sum();
        assert_eq!((waiting.bytes, waiting.pieces.len()), (MOST, MOST / PIECE));
        assert!(bytes <= 2 * MOST, "{bytes}");
    }

    #[test]
    fn what_is_not_whole_never_looks_so() {
        let room = CopyRoom::new(ROOM);
        let (feed, mut copied, copying) = some(&room);
        feed.write(&data(1));
        drop(feed);
        assert_eq!(copying.whole().now_or_never(), Some(Err(NotCopied::Incomplete)));
        assert!(is_broken(&mut copied));
        // Who follows it gives it up.
        for whole in [false, true] {
            let (feed, mut copied, copying) = some(&room);
            feed.write(&data(1));
            if whole {
                feed.end();
            }
            drop(copying);
            assert!(is_broken(&mut copied), "{whole}");
            drop(feed);
            assert!(is_broken(&mut copied), "{whole}");
        }
        assert!(is_all_free(&room));
    }

    #[test]
    fn nothing_is_kept_for_who_does_not_want_it() {
        let room = CopyRoom::new(ROOM);
        let (feed, copied, copying) = some(&room);
        feed.write(&data(1));
        drop(copied);
        feed.write(&data(MOST + 1));
        drop(feed);
        assert_eq!(copying.whole().now_or_never(), Some(Ok(())));
        assert_eq!(copying.sent().now_or_never(), Some(()));
        assert!(is_all_free(&room));
    }
}
