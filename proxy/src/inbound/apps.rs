//! The connections of one worker to the app.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use outrigger_proxy_transport::client::Pool;
use tokio::time::Instant;

/// See the module.
#[derive(Default)]
pub(super) struct Apps {
    /// By the app's address.
    shared: RefCell<HashMap<SocketAddr, Rc<Pool>>>,
    /// Those that one connection of a peer has to itself.
    for_one: RefCell<Vec<Weak<Pool>>>,
}

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
