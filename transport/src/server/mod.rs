//! The side that is called: one connection of a client, what is refused of it, and the responses.

mod framing;
mod guard;
mod respond;
mod response;
mod serve;
mod waiting;

pub use crate::net::HttpVersion;
pub use framing::{Fault, PLAINTEXT_REFUSED, Scanned, Scanner};
pub use guard::check;
pub use respond::{empty_response, error_response, reason_of};
pub use response::{Ended, OnEnd, ResponseBody};
pub use serve::serve;
