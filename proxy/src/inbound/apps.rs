//! The connections of one worker to the app.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use outrigger_proxy_transport::client::{Dialer, Pool};
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::net::{HttpVersion, Io, Stream, listen};
use tokio::time::Instant;

use super::APP_CONNECT;

/// See the module.
#[derive(Default)]
pub(super) struct Apps {
    /// By the app's address.
    shared: RefCell<HashMap<SocketAddr, Rc<Pool>>>,
    /// Those that one connection of a peer has to itself.
    for_one: RefCell<Vec<Weak<Pool>>>,
}

/// Makes connections to the app at an address.
pub(super) struct AppDialer(pub(super) SocketAddr);

impl Apps {
    /// The connections to the app at an address.
    pub(super) fn shared(&self, address: SocketAddr) -> Rc<Pool> {
        let mut apps = self.shared.borrow_mut();
        Rc::clone(apps.entry(address).or_insert_with(|| Rc::new(Pool::new(false))))
    }

    /// Connections to the app that nobody else has.
    pub(super) fn for_one(&self) -> Rc<Pool> {
        let pool = Rc::new(Pool::new(false));
        self.for_one.borrow_mut().push(Rc::downgrade(&pool));
        pool
    }

    /// Closes what was idle for too long.
    pub(super) fn sweep(&self, now: Instant) {
        self.shared.borrow_mut().retain(|_, pool| {
            pool.sweep(now);
            Rc::strong_count(pool) > 1 || !pool.is_empty()
        });
        self.for_one.borrow_mut().retain(|pool| {
            let pool = pool.upgrade();
            pool.inspect(|pool| pool.sweep(now)).is_some()
        });
    }
}

impl Dialer for AppDialer {
    fn address(&self) -> SocketAddr {
        self.0
    }

    fn generation(&self) -> u64 {
        0
    }

    fn limit(&self) -> Duration {
        APP_CONNECT
    }

    fn connect(&self, _: HttpVersion) -> impl Future<Output = Result<Stream, ProxyError>> + 'static {
        connect(self.0)
    }
}

async fn connect(app: SocketAddr) -> Result<Stream, ProxyError> {
    let unavailable = |why: &dyn std::fmt::Display| {
        ProxyError::new(
            Reason::AppUnavailable,
            format!("the app does not accept connections at {app}: {why}; check that it listens on the pod's address"),
        )
    };
    match tokio::time::timeout(APP_CONNECT, listen::connect(app)).await {
        Ok(Ok(tcp)) => Ok(Io::Tcp(tcp).into()),
        Ok(Err(error)) => Err(unavailable(&error)),
        Err(elapsed) => Err(unavailable(&elapsed)),
    }
}
