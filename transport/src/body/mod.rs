//! The bodies of requests: as they come from the client, as they are kept for another attempt, and as they go to a server.

mod awaited;
mod progress;
mod received;
mod replay;
mod request;

pub use awaited::{Answer, Awaited, Refused};
pub use progress::{ANSWER_TIME, LAST_CHANCE, Progress, SAME_MOMENT};
pub use received::{ClientBody, Received};
pub use replay::{Kept, OnTooLarge, Replay};
pub use request::{BodySource, RequestBody, await_answer};
