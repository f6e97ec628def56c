//! Connections to one peer, kept for the next request: an idle list for HTTP/1, one shared connection for HTTP/2.
//!
//! A pool belongs to one endpoint (address and identity together) of one worker, so two connections in it are equal in
//! everything that trust depends on, except the credentials: those have a generation, and a connection of an older
//! generation finishes what it carries and is not used again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::body::RequestBody;
use super::headers::MAX_HEADER_BYTES;
use super::server::{CONNECTION_WINDOW, LocalExecutor, MAX_BUFFER, STREAM_WINDOW};
use crate::error::{ProxyError, Reason};
use crate::net::Stream;

/// Idle HTTP/1 connections to one peer; a further one is closed.
const MAX_IDLE: usize = 64;
/// An app's server often closes a connection that was idle for 5 s; a request sent at that moment is lost. So we close
/// first.
const PLAIN_IDLE: Duration = Duration::from_secs(4);
/// A peer sidecar does not close idle connections, and a handshake costs more than keeping one.
const MESH_IDLE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Default)]
pub struct Pool {
    http1: RefCell<Vec<Idle>>,
    http2: RefCell<Option<Shared>>,
    /// Held while an HTTP/2 connection is made, so that one is made.
    connecting: tokio::sync::Mutex<()>,
    /// Of the newest request.
    generation: Cell<u64>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    generation: u64,
    mesh: bool,
    since: Instant,
}

struct Shared {
    sender: http2::SendRequest<RequestBody>,
    generation: u64,
    mesh: bool,
    used: Instant,
}

/// A connection that is ready for a request.
pub struct Checkout {
    pub sender: Sender,
    /// It has carried a request before: its other end may have closed it meanwhile.
    pub reused: bool,
}

/// Sends a request.
pub enum Sender {
    Http1(Lease),
    Http2(http2::SendRequest<RequestBody>),
}

/// An HTTP/1 connection out of the pool. Dropped without [`Lease::release`], it is closed.
pub struct Lease {
    pool: Rc<Pool>,
    pub sender: http1::SendRequest<RequestBody>,
    generation: u64,
    mesh: bool,
}

impl Lease {
    /// Gives the connection back, after the last byte of the response.
    pub fn release(self) {
        let Lease {
            pool,
            sender,
            generation,
            mesh,
        } = self;
        let mut idle = pool.http1.borrow_mut();
        if idle.len() < MAX_IDLE && generation == pool.generation.get() && !sender.is_closed() {
            idle.push(Idle {
                sender,
                generation,
                mesh,
                since: Instant::now(),
            });
        }
    }
}

impl Pool {
    /// A connection for one HTTP/1 request, the one that was used last first.
    ///
    /// # Errors
    /// What `connect` says.
    pub async fn http1(
        self: &Rc<Self>,
        generation: u64,
        connect: impl AsyncFnOnce() -> Result<Stream, ProxyError>,
    ) -> Result<Checkout, ProxyError> {
        self.generation.set(generation);
        while let Some(mut lease) = self.pop(generation) {
            // Not ready yet: the connection's task may still have to see that its response has ended. When it is not
            // ready after a turn, its request is still being sent.
            if !lease.sender.is_ready() {
                tokio::task::yield_now().await;
            }
            if lease.sender.is_ready() && lease.sender.ready().await.is_ok() {
                return Ok(Checkout {
                    sender: Sender::Http1(lease),
                    reused: true,
                });
            }
        }
        let stream = connect().await?;
        let mesh = stream.is_mesh();
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .max_buf_size(MAX_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| handshake_failed(&e))?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "an HTTP/1 connection ended");
            }
        });
        Ok(Checkout {
            sender: Sender::Http1(Lease {
                pool: Rc::clone(self),
                sender,
                generation,
                mesh,
            }),
            reused: false,
        })
    }

    /// The HTTP/2 connection, made when there is none that takes new streams.
    ///
    /// # Errors
    /// What `connect` says.
    pub async fn http2(
        &self,
        generation: u64,
        connect: impl AsyncFnOnce() -> Result<Stream, ProxyError>,
    ) -> Result<Checkout, ProxyError> {
        self.generation.set(generation);
        if let Some(sender) = self.shared(generation) {
            return Ok(Checkout { sender, reused: true });
        }
        let _one_connects = self.connecting.lock().await;
        if let Some(sender) = self.shared(generation) {
            return Ok(Checkout { sender, reused: true });
        }
        let stream = connect().await?;
        let mesh = stream.is_mesh();
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| handshake_failed(&e))?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP/2 connection ended");
            }
        });
        *self.http2.borrow_mut() = Some(Shared {
            sender: sender.clone(),
            generation,
            mesh,
            used: Instant::now(),
        });
        Ok(Checkout {
            sender: Sender::Http2(sender),
            reused: false,
        })
    }

    /// Closes what was idle for too long, and forgets what is closed. Called by the worker's one timer.
    pub fn sweep(&self, now: Instant) {
        let expired = |mesh: bool, since: Instant| {
            now.saturating_duration_since(since) >= if mesh { MESH_IDLE } else { PLAIN_IDLE }
        };
        let mut idle = self.http1.borrow_mut();
        idle.retain(|i| !i.sender.is_closed() && i.generation == self.generation.get() && !expired(i.mesh, i.since));
        if idle.is_empty() {
            *idle = Vec::new();
        }
        let mut shared = self.http2.borrow_mut();
        // A connection with open streams lives on without its place here, until they have ended.
        if shared
            .as_ref()
            .is_some_and(|s| s.sender.is_closed() || expired(s.mesh, s.used))
        {
            *shared = None;
        }
    }

    /// Whether it holds no connection.
    pub fn is_empty(&self) -> bool {
        self.http1.borrow().is_empty() && self.http2.borrow().is_none()
    }

    fn pop(self: &Rc<Self>, generation: u64) -> Option<Lease> {
        let mut idle = self.http1.borrow_mut();
        while let Some(i) = idle.pop() {
            if i.generation == generation && !i.sender.is_closed() {
                return Some(Lease {
                    pool: Rc::clone(self),
                    sender: i.sender,
                    generation,
                    mesh: i.mesh,
                });
            }
        }
        None
    }

    fn shared(&self, generation: u64) -> Option<Sender> {
        let mut shared = self.http2.borrow_mut();
        match shared.as_mut() {
            Some(s) if s.generation == generation && s.sender.is_ready() => {
                s.used = Instant::now();
                Some(Sender::Http2(s.sender.clone()))
            }
            Some(_) => {
                *shared = None;
                None
            }
            None => None,
        }
    }
}

fn handshake_failed(error: &hyper::Error) -> ProxyError {
    ProxyError::new(
        Reason::ConnectFailed,
        format!("the connection broke before it was used: {error}"),
    )
}
