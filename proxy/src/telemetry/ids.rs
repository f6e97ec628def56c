//! Trace and span IDs.

use std::cell::RefCell;
use std::ops::RangeInclusive;

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

thread_local! {
    /// One generator a thread, seeded by the operating system: no lock on the request path.
    static RNG: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// Bytes of a request ID that a trace is known by. A shorter one (`1`, `test`) may be that of many requests, and a hash of a longer one
/// costs more than it is worth.
const REQUEST_ID: RangeInclusive<usize> = 16..=128;

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

    /// Of a trace that begins with a request of this ID. Never all zeros, which both W3C and B3 call invalid.
    ///
    /// Whoever sees the same request ID comes to the same trace ID. By a hash: samplers take the low 56 bits for random (W3C Trace
    /// Context level 2, "Random Trace ID Flag"), and a request ID is whatever its client likes.
    pub(super) fn trace_id(&self, request_id: &[u8]) -> [u8; 16] {
        let of_request = REQUEST_ID.contains(&request_id.len()).then(|| hashed(request_id));
        let random = || ((u128::from(self.nonzero()) << 64) | u128::from(self.random())).to_be_bytes();
        of_request.filter(|id| *id != [0; 16]).unwrap_or_else(random)
    }

    /// Never all zeros, and never of a request ID: each sidecar's spans are its own.
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

/// The first half of SHA-256.
fn hashed(request_id: &[u8]) -> [u8; 16] {
    let hash = digest(&SHA256, request_id);
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_ref()[..16]); // it has 32 bytes
    id
}
