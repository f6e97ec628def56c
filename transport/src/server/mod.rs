//! The side that is called: one connection of a client, what is refused of it, and the responses.

mod fault;
mod framing;
mod guard;
mod lines;
mod respond;
mod response;
mod serve;
pub mod upgrade;
mod waiting;
mod watch;

pub use crate::net::HttpVersion;
pub use fault::{Fault, PLAINTEXT_REFUSED, check};
pub use framing::{Scanned, Scanner};
pub use respond::{empty_response, error_response, reason_of, say_when};
pub use response::{Ended, OnEnd, ResponseBody};
pub use serve::serve;
