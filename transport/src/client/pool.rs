//! Connections to one peer, kept for the next request: an idle list for HTTP/1, shared connections for HTTP/2.
//!
//! A pool belongs to one endpoint (address and identity together) of one worker, so two connections in it are equal in
//! everything that trust depends on, except our credentials and the peer's certificate. The credentials have a generation, and
//! the certificate a [`Term`]: a connection of an older generation, or whose term is over, finishes what it carries and is not
//! used again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::dialer::Dialer;
use super::dials::{Dial, Dials, Turn};
use super::leaving::{Leaving, until_it_ends};
use super::multiplex::{Multiplex, Slot};
use crate::body::{Refused, RequestBody};
use crate::error::{ProxyError, Reason};
use crate::limits::{MAX_BUFFER, MAX_HEADER_BYTES};
use crate::net::count::{Count, Held};
use crate::net::{HttpVersion, Stream, Term};

/// Idle HTTP/1 connections to one peer; a further one is closed. As many as come at once are kept for a while: to close and
/// make them again costs a handshake each.
const MAX_IDLE: usize = 1024;
/// An app's server often closes a connection that was idle for 5 s; a request sent at that moment is lost. So we close
/// first.
const PLAIN_IDLE: Duration = Duration::from_secs(4);
/// A peer sidecar does not close idle connections, and a handshake costs more than keeping one.
const MESH_IDLE: Duration = Duration::from_secs(60);

/// Requests to one peer that have a connection one after the other while requests to other peers wait for its place.
const IN_A_ROW: usize = 8;

/// See the module.
pub struct Pool {
    /// Whether mutual TLS protects its connections.
    mesh: bool,
    http1: RefCell<Vec<Idle>>,
    dials: Dials<Idling>,
    http2: Multiplex,
    /// Of the newest request.
    generation: Cell<u64>,
    /// What its connections are counted by: while others wait for a place, none is kept that is idle.
    counts: RefCell<Vec<Arc<Count>>>,
    /// Connections that were given from request to request while others waited for their places.
    handed: Cell<usize>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    generation: u64,
    term: Term,
    since: Instant,
}

/// A connection that is ready for a request.
pub struct Checkout {
    /// Of its protocol.
    pub sender: Sender,
    /// It has carried a request before: its other end may have closed it meanwhile.
    pub reused: bool,
}

/// Sends a request.
pub enum Sender {
    /// The connection is its alone until the response has ended.
    Http1(Idling),
    /// One stream of a connection that others use, too.
    Http2(Slot),
}

/// What a response's body holds of its connection. Dropped without [`Lease::release`], an HTTP/1 connection is closed.
pub enum Lease {
    /// It goes back to the pool.
    Http1(Idling),
    /// Freed when it is dropped, too.
    Http2(Slot),
}

/// An HTTP/1 connection out of the pool.
pub struct Idling {
    pool: Rc<Pool>,
    pub(super) sender: http1::SendRequest<RequestBody>,
    generation: u64,
    term: Term,
    /// The server still waits for a body that does not come: this connection is not used again.
    pub(super) refused: Option<Refused>,
}

impl Lease {
    /// The term of the connection.
    pub fn term(&self) -> Term {
        match self {
            Lease::Http1(idling) => idling.term.clone(),
            Lease::Http2(slot) => slot.term(),
        }
    }

    /// Gives the connection back, after the last byte of the response.
    pub fn release(self) {
        if let Lease::Http1(idling) = self
            && idling.refused.is_none()
            && idling.generation == idling.pool.generation.get()
            && idling.term.is_good()
            && !idling.sender.is_closed()
        {
            let pool = Rc::clone(&idling.pool);
            if pool.gives_way() {
                return;
            }
            if let Err(idling) = pool.dials.give(idling) {
                pool.keep(idling);
            }
        }
    }
}

impl Pool {
    /// An empty one. `mesh`: its connections are protected by mutual TLS.
    pub fn new(mesh: bool) -> Self {
        Self {
            mesh,
            http1: RefCell::default(),
            dials: Dials::new(mesh),
            http2: Multiplex::default(),
            generation: Cell::new(0),
            counts: RefCell::default(),
            handed: Cell::new(0),
        }
    }

    /// A connection for one request: one that is there, or one that `dialer` makes.
    ///
    /// # Errors
    /// What `dialer` says; [`Reason::ConnectTimeout`] and others when a peer that is to speak HTTP/2 sends no SETTINGS.
    pub async fn checkout(self: &Rc<Self>, version: HttpVersion, dialer: &impl Dialer) -> Result<Checkout, ProxyError> {
        self.generation.set(dialer.generation());
        let counted = dialer.connections();
        let now = counted.iter().map(|bound| Arc::as_ptr(&bound.count));
        if !self.counts.borrow().iter().map(Arc::as_ptr).eq(now) {
            *self.counts.borrow_mut() = counted.iter().map(|bound| Arc::clone(&bound.count)).collect();
        }
        match version {
            HttpVersion::Http1 => self.http1(dialer).await,
            HttpVersion::Http2 => {
                let (slot, reused) = self.http2.slot(dialer).await?;
                Ok(Checkout {
                    sender: Sender::Http2(slot),
                    reused,
                })
            }
        }
    }

    /// The one that was used last first.
    async fn http1(self: &Rc<Self>, dialer: &impl Dialer) -> Result<Checkout, ProxyError> {
        let generation = dialer.generation();
        let mut waits = None;
        loop {
            let idling = match self.pop(generation) {
                Some(idling) => idling,
                None => {
                    if waits.is_none() {
                        waits = Some(dialer.wait()?);
                    }
                    let place = if dialer.connections().is_empty() {
                        Ok(Held::default())
                    } else {
                        // Boxed: few Services have limits (`outbound::sizes`).
                        Box::pin(self.place_or_idling(dialer)).await
                    };
                    match place {
                        Ok(held) => match self.dials.turn().await {
                            Turn::Reuse(idling) => idling,
                            Turn::Connect(dial) => return self.dial(dialer, dial, held).await,
                        },
                        Err(idling) => idling,
                    }
                }
            };
            if idling.generation == generation
                && idling.term.is_good()
                && let Some(checkout) = idling.checkout().await
            {
                return Ok(checkout);
            }
        }
    }

    /// The right to one more connection of those that are counted.
    ///
    /// # Errors
    /// Another request has given one back meanwhile.
    async fn place_or_idling(&self, dialer: &impl Dialer) -> Result<Held, Idling> {
        tokio::select! {
            biased;
            held = Held::wait(dialer.connections(), || dialer.make_room()) => Ok(held),
            idling = self.dials.given() => Err(idling),
        }
    }

    /// A connection that a task of its own makes. If the request has gone by then, another has it, or the next.
    async fn dial(
        self: &Rc<Self>,
        dialer: &impl Dialer,
        dial: Dial<Idling>,
        held: Held,
    ) -> Result<Checkout, ProxyError> {
        let connecting = dialer.connect(HttpVersion::Http1);
        let (generation, pool) = (dialer.generation(), Rc::clone(self));
        let (mut made, mine) = oneshot::channel();
        tokio::task::spawn_local(async move {
            let connected = tokio::select! {
                biased;
                connected = pool.connect(generation, connecting, held) => connected,
                () = dial.given_up(made.closed()) => return,
            };
            if let Err(Ok(idling)) = made.send(connected) {
                Lease::Http1(idling).release();
            }
        });
        // Its task is gone only when all of this thread's are.
        let ends = |_| Err(ProxyError::new(Reason::ConnectFailed, "this sidecar ends"));
        let idling = mine.await.unwrap_or_else(ends)?;
        Ok(Checkout {
            sender: Sender::Http1(idling),
            reused: false,
        })
    }

    async fn connect(
        self: &Rc<Self>,
        generation: u64,
        connecting: impl Future<Output = Result<Stream, ProxyError>>,
        held: Held,
    ) -> Result<Idling, ProxyError> {
        let stream = connecting.await?.counted(held);
        let term = stream.term();
        let (stream, leaves) = Leaving::new(stream);
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .max_buf_size(MAX_BUFFER)
            .max_header_size(MAX_HEADER_BYTES)
            // RFC 9112 sections 5.1 and 5.2: a proxy takes both out of what it passes on.
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| handshake_failed(&e))?;
        tokio::task::spawn_local(async move {
            if let Some(Err(error)) = until_it_ends(connection.with_upgrades(), &leaves).await {
                tracing::debug!(%error, "an HTTP/1 connection ended");
            }
        });
        Ok(Idling {
            pool: Rc::clone(self),
            sender,
            generation,
            term,
            refused: None,
        })
    }

    /// Closes what was idle for too long, and forgets what is closed. Called by the worker's one timer.
    pub fn sweep(&self, now: Instant) {
        let limit = if self.mesh { MESH_IDLE } else { PLAIN_IDLE };
        let wanted = self.is_wanted();
        let expired = |since: Instant| wanted || now.saturating_duration_since(since) >= limit;
        let mut idle = self.http1.borrow_mut();
        let generation = self.generation.get();
        idle.retain(|i| !i.sender.is_closed() && i.generation == generation && i.term.is_good() && !expired(i.since));
        if idle.is_empty() {
            *idle = Vec::new();
        }
        self.http2.sweep(expired);
    }

    /// Closes one that is idle. `false`: there is none.
    pub fn close_idle(&self) -> bool {
        // The one that was used last is the likeliest to be used again.
        let mut idle = self.http1.borrow_mut();
        if idle.is_empty() {
            return self.http2.close_idle();
        }
        idle.remove(0);
        true
    }

    /// Whether the place of a connection that is given back goes to who waits for one to another peer, though others wait for it here: they
    /// had [`IN_A_ROW`] of them.
    fn gives_way(&self) -> bool {
        let here = self.dials.kept_out();
        let counts = self.counts.borrow();
        if here == 0 || counts.iter().all(|count| count.wanted() <= here) {
            return false;
        }
        let handed = (self.handed.get() + 1) % IN_A_ROW;
        self.handed.set(handed);
        handed == 0
    }

    /// Whether a place is waited for that an idle connection has.
    fn is_wanted(&self) -> bool {
        self.counts.borrow().iter().any(|count| count.wanted() > 0)
    }

    /// Whether it holds no connection.
    pub fn is_empty(&self) -> bool {
        self.http1.borrow().is_empty() && self.http2.is_empty()
    }

    fn pop(self: &Rc<Self>, generation: u64) -> Option<Idling> {
        let mut idle = self.http1.borrow_mut();
        while let Some(i) = idle.pop() {
            if i.generation == generation && i.term.is_good() && !i.sender.is_closed() {
                return Some(Idling {
                    pool: Rc::clone(self),
                    sender: i.sender,
                    generation,
                    term: i.term,
                    refused: None,
                });
            }
        }
        None
    }

    fn keep(&self, idling: Idling) {
        if self.is_wanted() {
            return;
        }
        let mut idle = self.http1.borrow_mut();
        if idle.len() < MAX_IDLE {
            idle.push(Idle {
                sender: idling.sender,
                generation: idling.generation,
                term: idling.term,
                since: Instant::now(),
            });
        }
    }
}

impl Idling {
    /// `None`: it is not to be used.
    async fn checkout(mut self) -> Option<Checkout> {
        // Not ready yet: the connection's task may still have to see that its response has ended. When it is not
        // ready after a turn, its request is still being sent.
        if !self.sender.is_ready() {
            tokio::task::yield_now().await;
        }
        if self.sender.is_ready() && self.sender.ready().await.is_ok() {
            return Some(Checkout {
                sender: Sender::Http1(self),
                reused: true,
            });
        }
        None
    }
}

fn handshake_failed(error: &hyper::Error) -> ProxyError {
    ProxyError::new(
        Reason::ConnectFailed,
        format!("the connection broke before it was used: {error}"),
    )
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "pool_bounds_tests.rs"]
mod bounds_tests;
