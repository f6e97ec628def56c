//! The wall clock.

use std::time::SystemTime;

/// What the machine's clock says. What is decided by it takes it as an argument.
#[expect(clippy::disallowed_methods, reason = "the place where it is read")]
pub fn now() -> SystemTime {
    SystemTime::now()
}
