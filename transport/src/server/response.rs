//! A response's body as it passes through to the client.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::body::Progress;
use crate::cause::{BoxError, h2_cause};
use crate::client::Lease;
use crate::error::{ProxyError, Reason};
use crate::grpc::{grpc_status, grpc_trailers};
use crate::headers::strip_trailers;
use crate::net::Idle;
use crate::room::Busy;

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With its last byte, and the gRPC status of its trailers.
    Complete(Option<u16>),
    /// The server broke off, or the time was up.
    Failed(Reason),
    /// The client went away.
    Cancelled,
}

/// Is told once how a response ended.
pub trait OnEnd {
    /// `bytes`: of the body.
    fn ended(self: Box<Self>, ended: Ended, bytes: u64);
}

/// A response's body on its way to the client.
pub struct ResponseBody {
    content: Content,
    /// A gRPC client is told in trailers what went wrong, where there is nothing else to tell it by.
    grpc: bool,
    /// The connection that it comes from; given back with the last byte.
    lease: Option<Lease>,
    /// Its client's connection is not closed for another one before the last byte.
    busy: Option<Busy>,
    /// `None`: it was told.
    on_end: Option<Box<dyn OnEnd>>,
    /// `None`: there is no limit, and no timer.
    deadline: Option<(Pin<Box<Sleep>>, Reason)>,
    /// `None`: nothing need move, and there is no timer.
    idle: Option<Box<Idle>>,
    /// Why the server broke off. It is told one turn later: hyper throws away what it has not written by then, which may be
    /// the head of the response.
    broken: Option<BoxError>,
    bytes: u64,
    /// Of the client's connection, in HTTP/1.
    progress: Option<Arc<Progress>>,
}

enum Content {
    Ready(Option<Bytes>),
    Streaming {
        body: Incoming,
        from_sidecar: bool,
        /// It has no content: what the server sends in spite of that is not passed on.
        bare: bool,
    },
}

impl ResponseBody {
    /// A body that this sidecar made itself.
    pub fn ready(bytes: Bytes) -> Self {
        Self::new(Content::Ready(Some(bytes).filter(|b| !b.is_empty())), false)
    }

    /// Takes away the content where there must be none (RFC 9110 section 6.4.1): in the answer to HEAD, in 204 and 304.
    pub fn without_content(mut self) -> Self {
        match &mut self.content {
            Content::Ready(bytes) => {
                *bytes = None;
                self.complete(None);
            }
            Content::Streaming { bare, .. } => *bare = true,
        }
        self
    }

    /// A server's; `grpc`: to a client that speaks gRPC. `from_sidecar`: the server is a sidecar, and speaks as one.
    pub fn streaming(body: Incoming, grpc: bool, from_sidecar: bool) -> Self {
        let content = Content::Streaming {
            body,
            from_sidecar,
            bare: false,
        };
        Self::new(content, grpc)
    }

    /// Gives the connection back when the body has ended.
    pub fn with_lease(mut self, lease: Option<Lease>) -> Self {
        self.lease = lease;
        if self.is_end_stream() {
            self.release();
        }
        self
    }

    /// Tells how it ended; at once, where there is no body.
    pub fn with_end(mut self, on_end: Box<dyn OnEnd>) -> Self {
        self.on_end = Some(on_end);
        if self.is_end_stream() {
            self.tell(Ended::Complete(None));
        }
        self
    }

    /// The client's connection has this to do until the body is gone.
    pub fn with_busy(mut self, busy: Busy) -> Self {
        self.busy = Some(busy);
        self
    }

    /// Breaks off at a moment, for a reason.
    pub fn with_deadline(mut self, deadline: Option<(tokio::time::Instant, Reason)>) -> Self {
        if !self.is_end_stream() {
            self.deadline = deadline.map(|(at, reason)| (Box::pin(tokio::time::sleep_until(at)), reason));
        }
        self
    }

    /// Breaks off when nothing has moved for too long, neither of this body nor of the request's.
    pub fn with_idle(mut self, idle: Option<Idle>) -> Self {
        if !self.is_end_stream() {
            self.idle = idle.map(Box::new);
        }
        self
    }

    /// Tells a client's connection when it has ended.
    pub fn with_progress(mut self, progress: Arc<Progress>) -> Self {
        self.progress = Some(progress);
        self
    }

    fn new(content: Content, grpc: bool) -> Self {
        Self {
            content,
            grpc,
            lease: None,
            busy: None,
            on_end: None,
            deadline: None,
            idle: None,
            broken: None,
            bytes: 0,
            progress: None,
        }
    }

    fn tell(&mut self, ended: Ended) {
        if let Some(on_end) = self.on_end.take() {
            on_end.ended(ended, self.bytes);
        }
    }

    fn release(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.release();
        }
    }

    /// Ends the body for a reason of this sidecar's own.
    fn fail(&mut self, error: ProxyError) -> Option<Result<Frame<Bytes>, BoxError>> {
        self.tell(Ended::Failed(error.reason));
        if !self.grpc {
            return Some(Err(error.into()));
        }
        self.content = Content::Ready(None);
        Some(Ok(Frame::trailers(grpc_trailers(&error))))
    }

    fn complete(&mut self, trailers: Option<&HeaderMap>) {
        self.deadline = None;
        self.idle = None;
        self.release();
        self.tell(Ended::Complete(trailers.and_then(grpc_status)));
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let (body, from_sidecar, bare) = match &mut this.content {
            Content::Ready(bytes) => {
                let bytes = bytes.take();
                this.bytes += bytes.as_ref().map_or(0, |b| b.len() as u64);
                this.complete(None);
                return Poll::Ready(bytes.map(|b| Ok(Frame::data(b))));
            }
            Content::Streaming {
                body,
                from_sidecar,
                bare,
            } => (body, *from_sidecar, *bare),
        };
        let mut frame = match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if let Some((sleep, reason)) = &mut this.deadline
                    && sleep.as_mut().poll(cx).is_ready()
                {
                    let late = ProxyError::new(*reason, "the time for the response was up before its last byte");
                    return Poll::Ready(this.fail(late));
                }
                if let Some(idle) = &mut this.idle
                    && Pin::new(idle.as_mut()).poll(cx).is_ready()
                {
                    let idle = ProxyError::new(
                        Reason::IdleTimeout,
                        "no byte of the request or the response has moved for too long; see timeouts.idle",
                    );
                    return Poll::Ready(this.fail(idle));
                }
                return Poll::Pending;
            }
        };
        if bare {
            // Its head was all of it. What comes in place of its end is dropped, and the stream is reset with it.
            this.content = Content::Ready(None);
            this.complete(None);
            return Poll::Ready(None);
        }
        match &mut frame {
            None => this.complete(None),
            Some(Ok(frame)) => {
                if !from_sidecar {
                    frame.trailers_mut().into_iter().for_each(strip_trailers);
                }
                this.idle.iter().for_each(|idle| idle.moved());
                if let Some(data) = frame.data_ref() {
                    this.bytes += data.len() as u64;
                }
                if frame.is_trailers() || this.is_end_stream() {
                    this.complete(frame.trailers_ref());
                }
            }
            Some(Err(error)) if this.grpc && !is_peers_reset(error) => {
                let why = format!("the server's connection broke in the middle of the response: {error}");
                return Poll::Ready(this.fail(ProxyError::new(Reason::UpstreamReset, why)));
            }
            // The server's own reset goes on with its code: hyper takes it out of the error.
            Some(Err(_)) => {
                this.tell(Ended::Failed(Reason::UpstreamReset));
                this.broken = frame.and_then(Result::err).map(Into::into);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(frame.map(|f| f.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Ready(bytes) => bytes.is_none(),
            Content::Streaming { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Ready(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Content::Streaming { bare: true, .. } => SizeHint::default(),
            Content::Streaming { body, .. } => body.size_hint(),
        }
    }
}

fn is_peers_reset(error: &hyper::Error) -> bool {
    h2_cause(error).is_some_and(|h2| h2.is_reset() && h2.is_remote())
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.tell(Ended::Cancelled);
        if let Some(progress) = &self.progress {
            progress.end();
        }
    }
}
