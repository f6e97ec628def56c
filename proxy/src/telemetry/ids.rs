//! Trace and span IDs.

use std::cell::RefCell;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

thread_local! {
    /// One generator a thread, seeded by the operating system: no lock on the request path.
    static RNG: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// Where IDs come from.
pub(super) struct Ids {
    /// For tests.
    seeded: Option<Mutex<SmallRng>>,
}

impl Ids {
    /// The thread's generator, or one that begins with `seed`.
    pub(super) fn new(seed: Option<u64>) -> Self {
        Self {
            seeded: seed.map(|seed| Mutex::new(SmallRng::seed_from_u64(seed))),
        }
    }

    /// Never all zeros, which both W3C and B3 call invalid.
    pub(super) fn trace_id(&self) -> [u8; 16] {
        ((u128::from(self.nonzero()) << 64) | u128::from(self.random())).to_be_bytes()
    }

    /// Never all zeros.
    pub(super) fn span_id(&self) -> [u8; 8] {
        self.nonzero().to_be_bytes()
    }

    /// Uniform.
    pub(super) fn random(&self) -> u64 {
        match &self.seeded {
            Some(rng) => rng.lock().random(),
            None => RNG.with_borrow_mut(|rng| rng.random()),
        }
    }

    fn nonzero(&self) -> u64 {
        loop {
            let id = self.random();
            if id != 0 {
                return id;
            }
        }
    }
}
