//! A request's body as it comes from the client.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::ahead::{Ahead, AheadRoom, Growing, NotRead};
use super::copied::{Copied, CopyRoom, Copying, Feed, copy};
use super::progress::Progress;
use crate::headers::strip_trailers;
use crate::net::Quiet;

/// A request's body as it comes from the client.
pub struct ClientBody {
    body: Source,
    received: Rc<Received>,
}

enum Source {
    Client(Incoming),
    /// It was read ahead. Boxed: few are.
    Memory(Box<Ahead>),
}

/// How much of a request's body has been read.
#[derive(Default)]
pub struct Received {
    bytes: Cell<u64>,
    ended: Cell<bool>,
    /// Of the connection, in HTTP/1.
    progress: Option<Arc<Progress>>,
    copies: RefCell<Vec<Feed>>,
    /// Where a policy asks for it.
    quiet: OnceCell<Rc<Quiet>>,
}

impl ClientBody {
    /// `progress`: of the connection, in HTTP/1.
    pub fn new(body: Incoming, progress: Option<Arc<Progress>>) -> Self {
        let received = Rc::new(Received {
            progress,
            ..Received::default()
        });
        if body.is_end_stream() {
            received.end();
        }
        Self {
            body: Source::Client(body),
            received,
        }
    }

    /// Reads all of it, up to `limit` bytes, which count in `room` as long as somebody holds them, and gives them. Afterwards it can
    /// be read as if it came then.
    ///
    /// # Errors
    /// Why that is not possible: nothing can be done with the rest.
    pub async fn read_ahead(&mut self, limit: usize, room: &AheadRoom) -> Result<Bytes, NotRead> {
        if self.size_hint().lower() > limit as u64 {
            return Err(NotRead::TooLarge);
        }
        let mut growing = Growing::new(limit, room);
        let mut trailers = None;
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut *self).poll_frame(cx)).await {
            match frame.map_err(NotRead::Broken)?.into_data() {
                Ok(data) => growing.add(&data)?,
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        let ahead = growing.end(trailers);
        let data = ahead.data.clone();
        self.body = Source::Memory(Box::new(ahead));
        Ok(data)
    }

    /// A copy of what will be read. It keeps nothing back, and takes its memory out of `room`. `None`: there is no body.
    pub fn copy(&self, room: &CopyRoom) -> Option<(Copied, Copying)> {
        if self.is_end_stream() {
            return None;
        }
        let (feed, copied, copying) = copy(self.size_hint(), room);
        self.received.copies.borrow_mut().push(feed);
        Some((copied, copying))
    }

    /// Tells how much has been read, also when the body is elsewhere.
    pub fn received(&self) -> Rc<Received> {
        Rc::clone(&self.received)
    }
}

impl Drop for ClientBody {
    /// Nothing more is read.
    fn drop(&mut self) {
        self.received.copies.take();
    }
}

impl Received {
    /// Without trailers, and without what HTTP/1 puts around chunks.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Whether there is nothing left to read.
    pub fn ended(&self) -> bool {
        self.ended.get()
    }

    /// A server that takes the request gets it now.
    pub fn sent_head(&self) {
        if let Some(progress) = &self.progress {
            progress.sent_head();
        }
    }

    /// Tells when something was read. The first who asks is told.
    pub fn watch(&self, quiet: &Rc<Quiet>) {
        if self.quiet.set(Rc::clone(quiet)).is_ok() && self.ended() {
            quiet.sent();
        }
    }

    fn add(&self, frame: &Frame<Bytes>) {
        let length = frame.data_ref().map_or(0, Bytes::len);
        self.bytes.set(self.bytes.get() + length as u64);
        self.copy(frame);
        self.quiet.get().into_iter().for_each(|quiet| quiet.moved());
    }

    fn copy(&self, frame: &Frame<Bytes>) {
        self.copies.borrow().iter().for_each(|copy| copy.write(frame));
    }

    fn end(&self) {
        self.ended.set(true);
        self.copies.take().iter().for_each(Feed::end);
        self.quiet.get().into_iter().for_each(|quiet| quiet.sent());
        if let Some(progress) = &self.progress {
            progress.sent_body();
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let received = &this.received;
        let body = match &mut this.body {
            Source::Client(body) => body,
            Source::Memory(ahead) => {
                let frame = ahead.next();
                frame.iter().for_each(|frame| received.copy(frame));
                if ahead.is_end() {
                    received.end();
                }
                return Poll::Ready(frame.map(Ok));
            }
        };
        let mut frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame {
            frame.trailers_mut().into_iter().for_each(strip_trailers);
        }
        match &frame {
            Some(Ok(frame)) => {
                received.add(frame);
                if frame.is_trailers() || body.is_end_stream() {
                    received.end();
                }
            }
            Some(Err(_)) => drop(received.copies.take()),
            None => received.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Source::Client(body) => body.is_end_stream(),
            Source::Memory(ahead) => ahead.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Source::Client(body) => body.size_hint(),
            Source::Memory(ahead) => SizeHint::with_exact(ahead.data.len() as u64),
        }
    }
}
