//! The end of an HTTP/1 connection that nobody uses any more.
//!
//! To close TLS is to write a last word behind what still waits (RFC 8446 section 6.1), and a server that reads nothing never takes it: what
//! was written of a request that was given up would wait with it, in a connection that nothing counts. So it has [`LINGER_TIME`].
//! In plaintext nothing is written at the end, and nothing waits.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::net::{LINGER_TIME, Stream, writes_to_inner};

/// A connection that says when it is being closed, to the task that carries it. That task has ended where it has become another protocol's.
pub(crate) struct Leaving {
    io: Stream,
    leaves: Arc<AtomicBool>,
}

impl Leaving {
    /// Beside it, whether it is being closed.
    pub(super) fn new(io: Stream) -> (Self, Arc<AtomicBool>) {
        let leaves = Arc::<AtomicBool>::default();
        let this = Self {
            io,
            leaves: Arc::clone(&leaves),
        };
        (this, leaves)
    }

    /// The connection itself.
    pub(crate) fn get_ref(&self) -> &Stream {
        &self.io
    }
}

/// Carries a connection until it has ended, or has taken too long to. `None`: it is to be dropped.
pub(super) async fn until_it_ends<T>(connection: impl Future<Output = T>, leaves: &AtomicBool) -> Option<T> {
    let mut connection = pin!(connection);
    let mut limit: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(Some(ended));
        }
        if !leaves.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let limit = limit.get_or_insert_with(|| Box::pin(sleep(LINGER_TIME)));
        limit.as_mut().poll(cx).map(|()| None)
    })
    .await
}

impl AsyncRead for Leaving {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Leaving {
    writes_to_inner!();

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.leaves.store(true, Ordering::Relaxed);
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::until_it_ends;
    use crate::net::LINGER_TIME;

    #[tokio::test(start_paused = true)]
    async fn what_is_being_closed_has_a_while_and_what_is_used_all_the_time_in_the_world() {
        const HOUR: Duration = Duration::from_secs(3600);
        let (leaves, began) = (AtomicBool::new(false), Instant::now());
        let used = async {
            sleep(HOUR).await;
            leaves.store(true, Ordering::Relaxed);
            pending::<()>().await;
        };
        assert_eq!(until_it_ends(used, &leaves).await, None);
        assert_eq!(began.elapsed(), HOUR + LINGER_TIME);
        assert_eq!(until_it_ends(async { 7 }, &leaves).await, Some(7));
    }
}
