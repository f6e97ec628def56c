//! HTTP/2 connections to one peer: one, and more only while the peer's limit of concurrent streams is reached.
//!
//! Streams are counted here and not left to the library's queue: what waits there is lost when the peer says GOAWAY, and
//! nobody can tell whether it was sent.
//!
//! A connection is made by a task of its own, which no request owns: the requests that wait for it share the connection, or
//! its failure, and it is finished when the one that asked for it first has gone. Otherwise requests to a dead peer would
//! dial one after the other, each for the whole time limit, and clients that wait for less than a handshake takes would
//! never get a connection. To be made includes the peer's SETTINGS (RFC 9113 section 3.4): only they say that it speaks
//! HTTP/2, and how many streams it takes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::dialer::Dialer;
use crate::body::RequestBody;
use crate::cause::{classify_before_settings, describe, unanswered};
use crate::error::{ProxyError, Reason};
use crate::executor::LocalExecutor;
use crate::limits::{CONNECTION_WINDOW, MAX_HEADER_BYTES, STREAM_WINDOW};
use crate::net::count::Held;
use crate::net::{HttpVersion, Stream, Term, writes_to_inner};

/// Connections to one peer; beyond, requests wait for a stream to end.
const MAX_CONNECTIONS: usize = 8;
/// Streams before the peer's SETTINGS have said how many it takes: none, so that none is refused.
const BEFORE_SETTINGS: usize = 0;

type Connection = http2::Connection<TokioIo<Heard>, RequestBody, LocalExecutor>;
/// `None`: it is under way.
type Dialled = watch::Receiver<Option<Result<(), ProxyError>>>;

/// See the module.
#[derive(Default)]
pub(super) struct Multiplex(Rc<Connections>);

#[derive(Default)]
struct Connections {
    made: RefCell<Vec<Rc<Http2>>>,
    /// The one that is being made, and its generation.
    dialled: RefCell<Option<(u64, Dialled)>>,
    /// A stream has ended, or a connection.
    freed: Rc<Notify>,
}

/// One connection.
struct Http2 {
    sender: http2::SendRequest<RequestBody>,
    state: Rc<State>,
    generation: u64,
    term: Term,
    open: Cell<usize>,
    /// When the last stream ended.
    used: Cell<Instant>,
    /// It takes no more requests, whatever the library thinks.
    leaving: Cell<bool>,
    freed: Rc<Notify>,
}

/// What the task of a connection and those who use it share. It does not hold a sender: the connection ends with the last.
struct State {
    /// `None`: it has ended.
    connection: RefCell<Option<Connection>>,
    ended: RefCell<Option<Ended>>,
    /// Something was read, or the connection has ended.
    heard: Rc<Notify>,
}

/// How a connection has ended. `None`: in peace.
struct Ended(Option<hyper::Error>);

/// A connection that says when something was read. The library does not say when SETTINGS have come.
struct Heard {
    io: Stream,
    heard: Rc<Notify>,
}

/// Room for one stream on a connection, until it is dropped.
pub struct Slot(Rc<Http2>);

impl Multiplex {
    /// A slot, on a connection that `dialer` makes when there is none that has room. `true`: the connection was there before.
    ///
    /// # Errors
    /// What `dialer` says; [`Reason::ConnectTimeout`] and others when the peer sends no SETTINGS.
    pub(super) async fn slot(&self, dialer: &impl Dialer) -> Result<(Slot, bool), ProxyError> {
        let generation = dialer.generation();
        let (mut was_there, mut waits, mut held) = (true, None, None);
        loop {
            if let Some(slot) = self.0.free(generation) {
                return Ok((slot, was_there));
            }
            if waits.is_none() {
                waits = Some(dialer.wait()?);
            }
            let mut dialled = match self.0.under_way(generation) {
                Some(dialled) => dialled,
                None if self.0.takes_another() => {
                    let free = held.take().or_else(|| Held::take_behind(dialer.connections()).ok());
                    let Some(held) = free.or_else(|| self.first_of_all(dialer)) else {
                        // Boxed: few Services have limits (`outbound::sizes`).
                        let place = Box::pin(Held::wait(dialer.connections(), || dialer.make_room()));
                        tokio::select! {
                            biased;
                            place = place => held = Some(place),
                            () = self.0.freed.notified() => {}
                        }
                        continue;
                    };
                    was_there = false;
                    Connections::dial(&self.0, dialer, held)
                }
                None => {
                    self.0.freed.notified().await;
                    continue;
                }
            };
            tokio::select! {
                biased;
                result = dialled.wait_for(Option::is_some) => match result.as_deref() {
                    Ok(Some(Err(error))) => return Err(error.clone()),
                    Ok(_) => {}
                    // Its task is gone only when all of this thread's are.
                    Err(_) => return Err(ProxyError::new(Reason::ConnectFailed, "this sidecar ends")),
                },
                // While a connection is made, a stream may end.
                () = self.0.freed.notified() => {}
            }
        }
    }

    /// Where there is no connection, there is one whatever is counted: those to other peers may carry streams for days, and who calls this one
    /// would wait for as long.
    fn first_of_all(&self, dialer: &impl Dialer) -> Option<Held> {
        self.is_empty().then(|| {
            dialer.make_room();
            Held::beyond(dialer.connections())
        })
    }

    /// Closes what was idle for too long, and forgets what is closed.
    pub(super) fn sweep(&self, expired: impl Fn(Instant) -> bool) {
        let mut connections = self.0.made.borrow_mut();
        let before = connections.len();
        connections.retain(|c| c.takes_requests() && (c.open.get() > 0 || !expired(c.used.get())));
        if connections.len() < before {
            // There is room for another connection: who waits for a stream to end need not wait for that.
            self.0.freed.notify_waiters();
        }
    }

    /// Closes one without a stream. `false`: there is none.
    pub(super) fn close_idle(&self) -> bool {
        let mut connections = self.0.made.borrow_mut();
        let idle = connections.iter().position(|c| c.open.get() == 0);
        idle.map(|idle| connections.remove(idle)).is_some()
    }

    /// Whether there is no connection.
    pub(super) fn is_empty(&self) -> bool {
        self.0.made.borrow().is_empty()
    }
}

impl Connections {
    /// A slot on the first connection that has room, so that those that are not needed become idle.
    fn free(&self, generation: u64) -> Option<Slot> {
        let mut connections = self.made.borrow_mut();
        // What is dropped here lives on without its place until its streams have ended.
        connections.retain(|c| c.generation >= generation && c.takes_requests());
        connections.iter().find(|c| c.has_room()).map(Slot::new)
    }

    fn takes_another(&self) -> bool {
        self.made.borrow().len() < MAX_CONNECTIONS
    }

    /// The connection that is being made, unless its credentials are older.
    fn under_way(&self, generation: u64) -> Option<Dialled> {
        let dialled = self.dialled.borrow();
        let (of, dialled) = dialled.as_ref()?;
        (*of >= generation).then(|| dialled.clone())
    }

    fn dial(this: &Rc<Self>, dialer: &impl Dialer, held: Held) -> Dialled {
        let (generation, to, limit) = (dialer.generation(), dialer.address(), dialer.limit());
        let connecting = dialer.connect(HttpVersion::Http2);
        let (sender, receiver) = watch::channel(None);
        *this.dialled.borrow_mut() = Some((generation, receiver.clone()));
        let this = Rc::clone(this);
        tokio::task::spawn_local(async move {
            let result = this.connect(generation, to, limit, connecting, held).await;
            // One with newer credentials may have begun meanwhile.
            this.dialled.borrow_mut().take_if(|(of, _)| *of == generation);
            if result.is_ok() {
                // It takes more requests than the one that asked for it: those that wait for a stream to end, too.
                this.freed.notify_waiters();
            }
            sender.send_replace(Some(result));
        });
        receiver
    }

    async fn connect(
        &self,
        generation: u64,
        to: SocketAddr,
        limit: Duration,
        connecting: impl Future<Output = Result<Stream, ProxyError>>,
        held: Held,
    ) -> Result<(), ProxyError> {
        let began = Instant::now();
        let io = connecting.await?.counted(held);
        let term = io.term();
        let heard = Rc::<Notify>::default();
        let stream = Heard {
            io,
            heard: Rc::clone(&heard),
        };
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(BEFORE_SETTINGS)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| {
                let detail = format!("the connection broke before it was used: {error}");
                ProxyError::new(Reason::ConnectFailed, detail)
            })?;
        let state = Rc::new(State {
            connection: RefCell::new(Some(connection)),
            ended: RefCell::default(),
            heard,
        });
        let task = tokio::task::spawn_local(Rc::clone(&state).run(Rc::clone(&self.freed)));
        if timeout(limit.saturating_sub(began.elapsed()), state.settled())
            .await
            .is_err()
        {
            task.abort();
            return Err(no_settings(to, limit));
        }
        if let Some(ended) = state.ended.borrow().as_ref() {
            return Err(ended_before_settings(to, ended));
        }
        self.made.borrow_mut().push(Rc::new(Http2 {
            sender,
            state,
            generation,
            term,
            open: Cell::new(0),
            used: Cell::new(Instant::now()),
            leaving: Cell::new(false),
            freed: Rc::clone(&self.freed),
        }));
        Ok(())
    }
}

impl Http2 {
    fn takes_requests(&self) -> bool {
        !self.leaving.get() && self.term.is_good() && self.sender.is_ready()
    }

    fn has_room(&self) -> bool {
        self.state.max_streams().is_some_and(|max| self.open.get() < max)
    }
}

impl State {
    /// `None`: the connection has ended.
    fn max_streams(&self) -> Option<usize> {
        let connection = self.connection.borrow();
        connection.as_ref().map(Connection::current_max_send_streams)
    }

    /// Waits for the peer's SETTINGS, or for the end.
    async fn settled(&self) {
        while self.max_streams() == Some(BEFORE_SETTINGS) {
            self.heard.notified().await;
        }
    }

    async fn run(self: Rc<Self>, freed: Rc<Notify>) {
        let ended = poll_fn(|cx| match self.connection.borrow_mut().as_mut() {
            Some(connection) => Pin::new(connection).poll(cx),
            None => Poll::Ready(Ok(())),
        });
        let error = ended.await.err();
        if let Some(error) = &error {
            tracing::debug!(%error, "an HTTP/2 connection ended");
        }
        *self.ended.borrow_mut() = Some(Ended(error));
        // Only now do those hear of it whose requests wait in the connection.
        drop(self.connection.take());
        self.heard.notify_one();
        freed.notify_waiters();
    }
}

impl AsyncRead for Heard {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if read.is_ready() {
            // The task that is woken looks after the library has: both are on this thread.
            this.heard.notify_one();
        }
        read
    }
}

impl AsyncWrite for Heard {
    writes_to_inner!();

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

fn no_settings(to: SocketAddr, limit: Duration) -> ProxyError {
    let detail = format!(
        "{to} took the connection, and did not begin to speak HTTP/2 (no SETTINGS) within {limit:?}; check that it \
         does, and that it is not hung"
    );
    ProxyError::new(Reason::ConnectTimeout, detail)
}

fn ended_before_settings(to: SocketAddr, ended: &Ended) -> ProxyError {
    match &ended.0 {
        Some(error) => unanswered(classify_before_settings(error), &describe(error), true, to),
        None => unanswered(Reason::UpstreamRefused, "the connection has ended", true, to),
    }
}

impl Slot {
    fn new(connection: &Rc<Http2>) -> Self {
        connection.open.set(connection.open.get() + 1);
        Self(Rc::clone(connection))
    }

    /// Sends requests on the connection.
    pub fn sender(&self) -> http2::SendRequest<RequestBody> {
        self.0.sender.clone()
    }

    /// When the connection ends.
    pub(super) fn term(&self) -> Term {
        self.0.term.clone()
    }

    /// No more requests go to this connection: it said GOAWAY, or has ended.
    pub fn leave(&self) {
        self.0.leaving.set(true);
    }

    /// Whether the connection has ended, and nothing broke it.
    pub fn ended_in_peace(&self) -> bool {
        self.0.state.ended.borrow().as_ref().is_some_and(|e| e.0.is_none())
    }

    /// Looks at what broke the connection, if something has.
    pub fn broken<T>(&self, look: impl FnOnce(&hyper::Error) -> T) -> Option<T> {
        self.0.state.ended.borrow().as_ref()?.0.as_ref().map(look)
    }

    /// Whether the peer takes extended CONNECT (RFC 8441 section 3).
    pub fn takes_extended_connect(&self) -> bool {
        let connection = self.0.state.connection.borrow();
        connection
            .as_ref()
            .is_some_and(Connection::is_extended_connect_protocol_enabled)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.used.set(Instant::now());
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
#[path = "multiplex_tests.rs"]
mod tests;
