//! Bounds for what strangers may make a server hold, shared out so that nobody can take the place of all others.
//!
//! Four things are bounded, each by a decision that is plain data with no I/O (time is an argument), and a thin layer that
//! asks it:
//!
//! | what | decision | layer |
//! |---|---|---|
//! | connections | [`Book`]: whom to close when there is no room | [`accept`], [`Gate`], [`Work`], [`Guarded`] |
//! | work whose input is complete | [`Queue`]: whose turn it is, and who is sent away | [`Turns`] |
//! | memory | [`Budget`]: how much one holder may have of what is left | [`Charge`], [`memory_limit`] |
//! | time for what is said | [`Pace`]: until when somebody must not be heard | [`Paces`], [`Paced`] |
//!
//! The rule is the same for what is shared, which the first three are: at the bound, whoever has most gives way, and never simply
//! whoever comes last, for that is the one under attack.

mod accept;
mod book;
mod budget;
mod guarded;
mod memory;
mod pace;
mod place;
mod queue;
mod turns;

pub use accept::accept;
pub use book::{Book, Decision, Id, Limits, State};
pub use budget::{Budget, Charge, Holder, OverBudget};
pub use guarded::{Guarded, Times, Work, Working};
pub use memory::memory_limit;
pub use pace::{Pace, Paced, Paces, Rate};
pub use place::{Gate, Place};
pub use queue::{Arrival, Queue, Room};
pub use turns::{Crowded, Turn, Turns};
