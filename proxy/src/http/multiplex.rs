//! HTTP/2 connections to one peer: one, and more only while the peer's limit of concurrent streams is reached.
//!
//! Streams are counted here and not left to the library's queue: what waits there is lost when the peer says GOAWAY, and
//! nobody can tell whether it was sent.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::body::RequestBody;
use super::headers::MAX_HEADER_BYTES;
use super::server::{CONNECTION_WINDOW, LocalExecutor, STREAM_WINDOW};
use crate::error::{ProxyError, Reason};
use crate::net::Stream;

/// Connections to one peer; beyond, requests wait for a stream to end.
const MAX_CONNECTIONS: usize = 8;
/// Streams before the peer's SETTINGS have said how many it takes: none, so that none is refused.
const BEFORE_SETTINGS: usize = 0;
/// How long the SETTINGS of a peer are waited for, where a request depends on them.
const SETTINGS_TIME: Duration = Duration::from_secs(1);

type Connection = http2::Connection<TokioIo<Stream>, RequestBody, LocalExecutor>;

/// See the module.
#[derive(Default)]
pub struct Multiplex {
    connections: RefCell<Vec<Rc<Http2>>>,
    /// Held while a connection is made, so that one is made.
    connecting: Mutex<()>,
    /// A stream has ended, or a connection.
    freed: Rc<Notify>,
}

/// One connection.
struct Http2 {
    sender: http2::SendRequest<RequestBody>,
    state: Rc<State>,
    generation: u64,
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
}

/// How a connection has ended.
struct Ended {
    /// `None`: in peace.
    error: Option<hyper::Error>,
    before_settings: bool,
}

/// Room for one stream on a connection, until it is dropped.
pub struct Slot(Rc<Http2>);

impl Multiplex {
    /// A slot, on a connection that is made when there is none that has room. `true`: the connection has been used.
    ///
    /// # Errors
    /// What `connect` says.
    pub async fn slot(
        &self,
        generation: u64,
        connect: impl AsyncFnOnce() -> Result<Stream, ProxyError>,
    ) -> Result<(Slot, bool), ProxyError> {
        loop {
            if let Some(slot) = self.free(generation) {
                return Ok((slot, true));
            }
            // While another connects, a stream may end.
            let one_connects = tokio::select! {
                biased;
                one_connects = self.connecting.lock() => one_connects,
                () = self.freed.notified() => continue,
            };
            if let Some(slot) = self.free(generation) {
                return Ok((slot, true));
            }
            if self.takes_another() {
                let stream = connect().await?;
                // Boxed: who waits for a free stream, as most do, keeps no room for a handshake.
                return Ok((Box::pin(self.connect(generation, stream)).await?, false));
            }
            drop(one_connects);
            self.freed.notified().await;
        }
    }

    /// Closes what was idle for too long, and forgets what is closed.
    pub fn sweep(&self, expired: impl Fn(Instant) -> bool) {
        self.connections
            .borrow_mut()
            .retain(|c| c.takes_requests() && (c.open.get() > 0 || !expired(c.used.get())));
    }

    /// Whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.connections.borrow().is_empty()
    }

    /// A slot on the first connection that has room, so that those that are not needed become idle.
    fn free(&self, generation: u64) -> Option<Slot> {
        let mut connections = self.connections.borrow_mut();
        // What is dropped here lives on without its place until its streams have ended.
        connections.retain(|c| c.generation >= generation && c.takes_requests());
        connections.iter().find(|c| c.has_room()).map(Slot::new)
    }

    /// Whether another connection would help. Where the peer has not said yet how many streams it takes, that is waited for.
    fn takes_another(&self) -> bool {
        let connections = self.connections.borrow();
        connections.len() < MAX_CONNECTIONS && !connections.iter().any(|c| c.state.before_settings())
    }

    async fn connect(&self, generation: u64, stream: Stream) -> Result<Slot, ProxyError> {
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
        });
        tokio::task::spawn_local(Rc::clone(&state).run(Rc::clone(&self.freed)));
        let connection = Rc::new(Http2 {
            sender,
            state,
            generation,
            open: Cell::new(0),
            used: Cell::new(Instant::now()),
            leaving: Cell::new(false),
            freed: Rc::clone(&self.freed),
        });
        let slot = Slot::new(&connection);
        self.connections.borrow_mut().push(connection);
        Ok(slot)
    }
}

impl Http2 {
    fn takes_requests(&self) -> bool {
        !self.leaving.get() && self.sender.is_ready()
    }

    fn has_room(&self) -> bool {
        match self.state.max_streams() {
            // The first waits in the library until there are SETTINGS.
            Some(BEFORE_SETTINGS) => self.open.get() == 0,
            Some(max) => self.open.get() < max,
            None => false,
        }
    }
}

impl State {
    /// `None`: the connection has ended.
    fn max_streams(&self) -> Option<usize> {
        let connection = self.connection.borrow();
        connection.as_ref().map(Connection::current_max_send_streams)
    }

    fn before_settings(&self) -> bool {
        self.max_streams() == Some(BEFORE_SETTINGS)
    }

    async fn run(self: Rc<Self>, freed: Rc<Notify>) {
        let mut before_settings = true;
        let ended = poll_fn(|cx| {
            let polled = match self.connection.borrow_mut().as_mut() {
                Some(connection) => Pin::new(connection).poll(cx),
                None => Poll::Ready(Ok(())),
            };
            // SETTINGS let the first request go, which wakes this task.
            if before_settings && !self.before_settings() {
                before_settings = false;
                freed.notify_waiters();
            }
            polled
        });
        let error = ended.await.err();
        if let Some(error) = &error {
            tracing::debug!(%error, "an HTTP/2 connection ended");
        }
        *self.ended.borrow_mut() = Some(Ended { error, before_settings });
        // Only now do those hear of it whose requests wait in the connection.
        drop(self.connection.take());
        freed.notify_waiters();
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

    /// No more requests go to this connection: it said GOAWAY, or has ended.
    pub fn leave(&self) {
        self.0.leaving.set(true);
    }

    /// Whether the connection has ended before its first stream could begin.
    pub fn never_began(&self) -> bool {
        self.0.state.ended.borrow().as_ref().is_some_and(|e| e.before_settings)
    }

    /// Whether the connection has ended, and nothing broke it.
    pub fn ended_in_peace(&self) -> bool {
        self.0.state.ended.borrow().as_ref().is_some_and(|e| e.error.is_none())
    }

    /// Looks at what broke the connection, if something has.
    pub fn broken<T>(&self, look: impl FnOnce(&hyper::Error) -> T) -> Option<T> {
        self.0.state.ended.borrow().as_ref()?.error.as_ref().map(look)
    }

    /// Whether the peer takes extended CONNECT (RFC 8441 section 3). Waits for its SETTINGS.
    pub async fn takes_extended_connect(&self) -> bool {
        let until = Instant::now() + SETTINGS_TIME;
        loop {
            let state = match &*self.0.state.connection.borrow() {
                None => Some(false),
                Some(connection) if connection.is_extended_connect_protocol_enabled() => Some(true),
                Some(connection) => (connection.current_max_send_streams() != BEFORE_SETTINGS).then_some(false),
            };
            match state {
                Some(known) => return known,
                None if Instant::now() >= until => return false,
                // Nothing tells of SETTINGS; this is asked on the first request of a connection only.
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.used.set(Instant::now());
        self.0.freed.notify_one();
    }
}
