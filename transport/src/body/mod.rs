//! The bodies of requests: as they come from the client, as they are kept for another attempt, as they are copied for a mirror,
//! as they are read before anything is sent on, and as they go to a server.

mod ahead;
mod awaited;
mod copied;
mod progress;
mod received;
mod replay;
mod request;

pub use ahead::{AheadRoom, NotRead};
pub use awaited::{Answer, Awaited, Refused};
pub use copied::{Copied, CopyRoom, Copying, NotCopied};
pub use progress::{ANSWER_TIME, LAST_CHANCE, Progress, SAME_MOMENT};
pub use received::{ClientBody, Received};
pub use replay::{Kept, OnTooLarge, Replay};
pub use request::{BodySource, RequestBody, await_answer};
