//! When something last moved: of a request and its response, or of a connection of bytes. Kept only where a policy asks how long
//! nothing has.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::copy::Meter;

/// See the module.
pub struct Quiet {
    last: Cell<Instant>,
    sent: Cell<Option<Instant>>,
}

impl Quiet {
    /// Something has moved just now.
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            last: Cell::new(Instant::now()),
            sent: Cell::new(None),
        })
    }

    /// A byte moves now, in either direction.
    pub fn moved(&self) {
        self.last.set(Instant::now());
    }

    /// The last byte of the request has come from the client.
    pub fn sent(&self) {
        self.moved();
        self.sent.set(Some(self.last.get()));
    }

    /// When something moved last.
    pub fn last(&self) -> Instant {
        self.last.get()
    }

    /// When the last byte of the request had come. `None`: it has not.
    pub fn all_sent(&self) -> Option<Instant> {
        self.sent.get()
    }
}

/// Is ready when nothing has moved for so long. What moves costs a look at the clock: the timer is set again when it goes off.
pub struct Idle {
    quiet: Rc<Quiet>,
    limit: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl Idle {
    /// From what has moved last.
    pub fn new(quiet: Rc<Quiet>, limit: Duration) -> Self {
        let sleep = Box::pin(sleep_until(quiet.last() + limit));
        Self { quiet, limit, sleep }
    }

    /// A byte moves now.
    pub fn moved(&self) {
        self.quiet.moved();
    }
}

impl Future for Idle {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            ready!(this.sleep.as_mut().poll(cx));
            let until = this.quiet.last() + this.limit;
            if until <= Instant::now() {
                return Poll::Ready(());
            }
            this.sleep.as_mut().reset(until);
        }
    }
}

/// A tunnel's limit, if it has one: ready when nothing has moved for so long.
pub(crate) struct TunnelLimit(Option<Box<Idle>>);

impl TunnelLimit {
    /// From now on; and what counts that something moves, and how much, for `meter`.
    pub(crate) fn new<M>(limit: Option<Duration>, meter: &M) -> (Self, Watched<'_, M>) {
        let quiet = limit.map(|limit| (Quiet::new(), limit));
        let idle = quiet
            .as_ref()
            .map(|(quiet, limit)| Box::new(Idle::new(Rc::clone(quiet), *limit)));
        (Self(idle), Watched(meter, quiet.map(|(quiet, _)| quiet)))
    }
}

impl Future for TunnelLimit {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.get_mut().0 {
            Some(idle) => Pin::new(idle.as_mut()).poll(cx),
            None => Poll::Pending,
        }
    }
}

/// Counts what a tunnel moves, and that it does.
pub(crate) struct Watched<'a, M>(&'a M, Option<Rc<Quiet>>);

impl<M: Meter> Meter for Watched<'_, M> {
    fn moved(&self, sent: u64, received: u64) {
        self.0.moved(sent, received);
        self.1.iter().for_each(|quiet| quiet.moved());
    }
}

#[cfg(test)]
mod tests {
    use super::{Idle, Quiet};
    use std::rc::Rc;
    use std::time::Duration;
    use tokio::time::{Instant, sleep};

    #[tokio::test(start_paused = true)]
    async fn what_moves_puts_the_end_off() {
        let limit = Duration::from_secs(10);
        let quiet = Quiet::new();
        let began = Instant::now();
        let idle = Idle::new(Rc::clone(&quiet), limit);
        let moves = async {
            for _ in 0..3 {
                sleep(Duration::from_secs(9)).await;
                quiet.moved();
            }
        };
        tokio::join!(idle, moves);
        assert_eq!(began.elapsed(), Duration::from_secs(37));
    }
}
