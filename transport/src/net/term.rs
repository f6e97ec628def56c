//! How long a connection between two sidecars may be used: as long as the other one is whom its certificate names.
//!
//! Who knows of certificates holds a [`Notice`], and tells by it when the time is up. Who uses the connection asks its
//! [`Term`]; and the connection itself is [`Termed`], so that nothing passes on one that is cut, whoever holds it by then.

use std::future::pending;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// How far the end of a connection is. It only goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It is used.
    #[default]
    Good,
    /// No request is sent on it any more, and whoever sends some is told so: by GOAWAY, by `Connection: close`. What is in
    /// flight goes on.
    Ending,
    /// The same, and who sends requests had the time to hear of it: idle, it is closed; with a new request, too.
    Over,
    /// It is closed, whatever it carries.
    Cut,
}

impl Standing {
    const ALL: [Standing; 4] = [Standing::Good, Standing::Ending, Standing::Over, Standing::Cut];
}

/// What those who use a connection know of its end; cheap to clone. The default is one without an end.
#[derive(Clone, Debug, Default)]
pub struct Term(Option<Arc<State>>);

/// Tells a connection of its end, and does not keep it.
#[derive(Debug)]
pub struct Notice(Weak<State>);

#[derive(Debug)]
struct State {
    /// A place in [`Standing::ALL`].
    standing: AtomicU8,
    /// Of the task that reads from the connection.
    waker: AtomicWaker,
    /// For all others.
    cut: Notify,
}

/// A connection that reads and writes until it is cut.
#[derive(Debug)]
pub struct Termed<IO> {
    io: IO,
    term: Term,
}

impl Term {
    /// One that begins, and what ends it.
    pub fn begin() -> (Self, Notice) {
        let state = Arc::new(State {
            standing: AtomicU8::new(Standing::Good as u8),
            waker: AtomicWaker::new(),
            cut: Notify::new(),
        });
        let notice = Notice(Arc::downgrade(&state));
        (Self(Some(state)), notice)
    }

    /// How far the end is. The task that reads from the connection is woken when that changes.
    pub fn standing(&self) -> Standing {
        self.0.as_ref().map_or(Standing::Good, |state| state.standing())
    }

    /// Whether requests may be sent on it.
    pub fn is_good(&self) -> bool {
        self.standing() == Standing::Good
    }

    /// Cuts the connection. The caller is a task of it.
    pub fn cut(&self) {
        if let Some(state) = &self.0 {
            state.go_on(Standing::Cut);
        }
    }

    /// Waits until it is cut. Any number of tasks may: an HTTP/2 connection has a task of its own, and each of its tunnels too.
    pub async fn until_cut(&self) {
        let Some(state) = &self.0 else { return pending().await };
        let mut cut = pin!(state.cut.notified());
        // From here on it hears of it.
        cut.as_mut().enable();
        if state.standing() != Standing::Cut {
            cut.await;
        }
    }

    /// Ready when it is cut. The task is the one that reads from the connection; it is woken at every change of the standing.
    pub fn poll_cut(&self, cx: &Context<'_>) -> Poll<()> {
        let Some(state) = &self.0 else { return Poll::Pending };
        state.waker.register(cx.waker());
        match state.standing() {
            Standing::Cut => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}

impl Notice {
    /// Whether the connection is still there.
    pub fn is_heard(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Tells the connection. Gives how it stood before, if it is still there. One that is over is woken each time, so that it
    /// looks whether it is idle.
    pub fn give(&self, standing: Standing) -> Option<Standing> {
        Some(self.0.upgrade()?.go_on(standing))
    }
}

impl State {
    fn standing(&self) -> Standing {
        Standing::ALL[usize::from(self.standing.load(Ordering::Relaxed))]
    }

    fn go_on(&self, standing: Standing) -> Standing {
        let before = self.standing.fetch_max(standing as u8, Ordering::Relaxed);
        if before < standing as u8 || standing == Standing::Over {
            self.waker.wake();
        }
        if standing == Standing::Cut {
            self.cut.notify_waiters();
        }
        Standing::ALL[usize::from(before)]
    }
}

impl<IO> Termed<IO> {
    /// Ends with `term`.
    pub fn new(io: IO, term: Term) -> Self {
        Self { io, term }
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// When it ends.
    pub fn term(&self) -> &Term {
        &self.term
    }

    fn check(&self) -> io::Result<()> {
        match self.term.standing() {
            Standing::Cut => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the peer's certificate has ended, or its root is not trusted any more",
            )),
            _ => Ok(()),
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Termed<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check()?;
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if read.is_pending() && this.term.poll_cut(cx).is_ready() {
            this.check()?;
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Termed<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check()?;
        Pin::new(&mut this.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check()?;
        Pin::new(&mut this.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check()?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check()?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Standing, Term, Termed};
    use futures_util::FutureExt;
    use std::io::ErrorKind;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_waits_for_bytes_hears_that_it_is_cut() {
        let (mut far, near) = duplex(64);
        let (term, notice) = Term::begin();
        let mut near = Termed::new(near, term.clone());
        let reading = tokio::spawn(async move {
            let byte = near.read_u8().await.unwrap();
            (byte, near.read_u8().await.unwrap_err(), near)
        });
        tokio::task::yield_now().await;
        for standing in [Standing::Ending, Standing::Over] {
            notice.give(standing).unwrap();
            tokio::task::yield_now().await;
        }
        far.write_u8(7).await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(notice.give(Standing::Cut), Some(Standing::Over));
        let woken = timeout(Duration::from_secs(1), reading).await;
        let (byte, error, mut near) = woken.expect("it is not woken").unwrap();
        assert_eq!((byte, error.kind()), (7, ErrorKind::ConnectionAborted));
        assert!(near.write_u8(1).await.is_err() && near.flush().await.is_err());
        assert!(term.until_cut().now_or_never().is_some());
        drop((near, term));
        assert!(!notice.is_heard());
        assert_eq!(notice.give(Standing::Cut), None);
    }

    /// A connection of HTTP/2 has one task that reads, and each of its tunnels another one that does not.
    #[tokio::test(start_paused = true)]
    async fn all_who_wait_hear_of_the_end() {
        let (_far, near) = duplex(64);
        let (term, notice) = Term::begin();
        let mut near = Termed::new(near, term.clone());
        let mut waiting: Vec<_> = (0..3)
            .map(|_| {
                let term = term.clone();
                tokio::spawn(async move { term.until_cut().await })
            })
            .collect();
        waiting.push(tokio::spawn(async move { drop(near.read_u8().await) }));
        for standing in [Standing::Over, Standing::Cut] {
            tokio::task::yield_now().await;
            assert!(waiting.iter().all(|task| !task.is_finished()));
            notice.give(standing).unwrap();
        }
        for task in waiting {
            timeout(Duration::from_secs(1), task)
                .await
                .expect("one is not woken")
                .unwrap();
        }
    }

    #[test]
    fn a_term_goes_on_and_never_back() {
        let (term, notice) = Term::begin();
        for (told, stands) in [
            (Standing::Good, Standing::Good),
            (Standing::Over, Standing::Over),
            (Standing::Ending, Standing::Over),
            (Standing::Cut, Standing::Cut),
            (Standing::Good, Standing::Cut),
        ] {
            notice.give(told).unwrap();
            assert_eq!((term.standing(), term.is_good()), (stands, stands == Standing::Good));
        }
        let endless = Term::default();
        endless.cut();
        assert!(endless.is_good() && endless.until_cut().now_or_never().is_none());
    }
}
