//! The decision about a connection that carries bytes, and the place that it has.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::spiffe::SpiffeId;

use crate::decide::{Limiter, Refused, micros};
use crate::open::{By, Key};

/// A connection that is admitted.
#[derive(Debug)]
pub struct Connection {
    /// Its own.
    pub place: Place,
    enforced: Vec<By>,
    shadows: Vec<By>,
}

/// A connection that is refused.
#[derive(Debug)]
pub struct Denied(By);

/// A connection is open for as long as there is this.
#[derive(Debug)]
pub struct Place {
    limiter: Arc<Limiter>,
    key: Key,
}

impl Limiter {
    /// Decides about a connection that carries bytes, and counts it for as long as it has its place.
    ///
    /// # Errors
    /// A policy refuses it.
    pub fn connect(
        self: &Arc<Self>,
        port: u16,
        identity: Option<&SpiffeId>,
        now: Duration,
    ) -> Result<Connection, Denied> {
        let key = (port, self.random.hash_one(identity.map(SpiffeId::as_str)));
        let (enforced, shadows) = self.open.lock().enter(key, micros(now)).map_err(Denied)?;
        let place = Place {
            limiter: Arc::clone(self),
            key,
        };
        Ok(Connection {
            place,
            enforced,
            shadows,
        })
    }
}

impl Denied {
    /// The policy, and which of its numbers.
    pub fn by(&self) -> Refused<'_> {
        name(&self.0)
    }
}

impl Connection {
    /// The policies in force that are about it, without the name of a number.
    pub fn enforced(&self) -> impl Iterator<Item = Refused<'_>> {
        self.enforced.iter().map(name)
    }

    /// Shadows that would refuse it, and by which of their numbers.
    pub fn shadows(&self) -> impl Iterator<Item = Refused<'_>> {
        self.shadows.iter().map(name)
    }
}

fn name((policy, limit): &By) -> Refused<'_> {
    Refused { policy, limit }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.limiter.open.lock().leave(self.key);
    }
}
