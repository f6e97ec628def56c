//! How fast somebody may speak.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A connection ends that is not read at its peer's speed for so long on end. It may be one whose peer is gone, too.
const PATIENCE: Duration = Duration::from_secs(30);

/// So many bytes at once, and so many in a second in the long run.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Bytes at once.
    pub burst: u64,
    /// Bytes in a second; 1 at least.
    pub per_second: u64,
}

impl Rate {
    fn time(self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.per_second.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What one has said, in all connections together (the generic cell rate algorithm, ITU-T I.371).
#[derive(Debug)]
pub struct Pace {
    rate: Rate,
    /// When all that was said would have come at the rate.
    due: Mutex<Instant>,
    pauses: Arc<AtomicU64>,
}

impl Pace {
    /// Nothing was said yet.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            due: Mutex::new(now),
            pauses: Arc::default(),
        }
    }

    /// It has said this.
    pub fn say(&self, bytes: u64, now: Instant) {
        let mut due = self.due.lock();
        *due = (*due).max(now) + self.rate.time(bytes);
    }

    /// Until when it must not be heard, if it has said too much.
    pub fn pause(&self, now: Instant) -> Option<Instant> {
        let ahead = self.due.lock().saturating_duration_since(now);
        let pause = ahead.checked_sub(self.rate.time(self.rate.burst))?;
        (!pause.is_zero()).then(|| now + pause)
    }

    /// The stream, read at this pace.
    pub fn apply<S>(self: &Arc<Self>, stream: S) -> Paced<S> {
        Paced {
            stream,
            pace: Arc::clone(self),
            pause: None,
        }
    }

    fn is_quiet(&self, now: Instant) -> bool {
        *self.due.lock() <= now
    }
}

/// The paces of all who speak. One that goes away and comes back is where it was.
#[derive(Debug)]
pub struct Paces<K> {
    rate: Rate,
    speakers: Mutex<Speakers<K>>,
    pauses: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Speakers<K> {
    all: HashMap<K, Arc<Pace>>,
    /// How many there may be before it is looked which of them are still needed.
    look: usize,
}

impl<K: Eq + Hash> Paces<K> {
    /// Nobody has said anything yet.
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            speakers: Mutex::new(Speakers {
                all: HashMap::new(),
                look: 64,
            }),
            pauses: Arc::default(),
        }
    }

    /// The pace of one of them.
    pub fn of(&self, speaker: K, now: Instant) -> Arc<Pace> {
        let mut speakers = self.speakers.lock();
        if speakers.all.len() >= speakers.look {
            speakers
                .all
                .retain(|_, pace| Arc::strong_count(pace) > 1 || !pace.is_quiet(now));
            speakers.look = 64.max(2 * speakers.all.len());
        }
        let pace = speakers.all.entry(speaker).or_insert_with(|| {
            Arc::new(Pace {
                pauses: Arc::clone(&self.pauses),
                ..Pace::new(self.rate, now)
            })
        });
        Arc::clone(pace)
    }

    /// How often one of them had to pause, since the start.
    pub fn pauses(&self) -> u64 {
        self.pauses.load(Relaxed)
    }
}

/// A stream that is not read while it is ahead of its pace, so that its peer's window fills up and it waits. Reads fail where that
/// lasts.
#[derive(Debug)]
pub struct Paced<S> {
    stream: S,
    pace: Arc<Pace>,
    pause: Option<Pause>,
}

#[derive(Debug)]
struct Pause {
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<S> Paced<S> {
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(until) = self.pace.pause(Instant::now()) {
            let pause = self.pause.get_or_insert_with(|| {
                self.pace.pauses.fetch_add(1, Relaxed);
                Pause {
                    since: Instant::now(),
                    timer: Box::pin(tokio::time::sleep_until(until)),
                }
            });
            let end = until.min(pause.since + PATIENCE);
            if pause.timer.deadline() != end {
                pause.timer.as_mut().reset(end);
            }
            ready!(pause.timer.as_mut().poll(cx));
            if pause.since.elapsed() >= PATIENCE {
                let why = "the peer says more than it may";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pause(cx))?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        let now = Instant::now();
        if bytes > 0 {
            self.pace.say(bytes as u64, now);
        }
        if self.pace.pause(now).is_none() {
            self.pause = None;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const RATE: Rate = Rate {
        burst: 1000,
        per_second: 100,
    };
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_is_free_and_what_is_beyond_waits() {
        let now = Instant::now();
        let pace = Pace::new(RATE, now);
        pace.say(1000, now);
        assert_eq!(pace.pause(now), None);
        pace.say(200, now);
        assert_eq!(pace.pause(now), Some(now + 2 * SECOND));
        assert_eq!(pace.pause(now + SECOND), Some(now + 2 * SECOND));
        assert_eq!(pace.pause(now + 2 * SECOND), None);
        // Who says nothing has the burst again, and no more than that.
        let later = now + 100 * SECOND;
        pace.say(1100, later);
        assert_eq!(pace.pause(later), Some(later + SECOND));
        pace.say(u64::MAX, later);
        assert!(pace.pause(later).is_some());
    }

    #[test]
    fn who_comes_back_is_where_it_was_and_who_is_quiet_is_forgotten() {
        let paces = Paces::new(RATE);
        let now = Instant::now();
        paces.of(0, now).say(1100, now);
        for n in 1..1000 {
            paces.of(n, now).say(100, now);
        }
        assert!(paces.of(0, now).pause(now).is_some());
        let held = paces.of(1, now);
        paces.speakers.lock().look = 0;
        paces.of(0, now + 2 * SECOND);
        assert_eq!(paces.speakers.lock().all.len(), 2, "the others are quiet");
        assert!(Arc::ptr_eq(&held, &paces.of(1, now)));
    }

    #[tokio::test(start_paused = true)]
    async fn two_streams_of_one_are_read_at_its_pace_together() {
        let paces = Paces::new(RATE);
        let start = Instant::now();
        let mut peers = Vec::new();
        let mut reading = Vec::new();
        for _ in 0..2 {
            let (mut peer, server) = duplex(10_000);
            peer.write_all(&[0; 1500]).await.unwrap();
            peers.push(peer);
            let mut stream = paces.of("pod", start).apply(server);
            reading.push(tokio::spawn(async move {
                for _ in 0..15 {
                    stream.read_exact(&mut [0; 100]).await.unwrap();
                }
            }));
        }
        for read in reading {
            read.await.unwrap();
        }
        // 3,000 bytes, the last of which may be read as soon as those before it are paid.
        let took = start.elapsed();
        assert!((19 * SECOND..=20 * SECOND).contains(&took), "{took:?}");
        assert!(paces.pauses() > 0);
        // Another one does not wait.
        let (mut peer, server) = duplex(10_000);
        peer.write_all(&[0; 1000]).await.unwrap();
        let start = Instant::now();
        let mut other = paces.of("another", start).apply(server);
        other.read_exact(&mut [0; 1000]).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_ahead_for_long_loses_the_connection_and_a_moment_is_forgiven() {
        let paces = Paces::new(RATE);
        let start = Instant::now();
        let (mut peer, server) = duplex(100_000);
        let mut stream = paces.of("pod", start).apply(server);
        for _ in 0..10 {
            // A pause of ten seconds each.
            peer.write_all(&[0; 2000]).await.unwrap();
            stream.read_exact(&mut [0; 2000]).await.unwrap();
            stream.pace.pause(Instant::now()).expect("it is ahead");
            tokio::time::sleep(20 * SECOND).await;
        }
        peer.write_all(&[0; 100_000]).await.unwrap();
        let start = Instant::now();
        let error = loop {
            match stream.read(&mut [0; 1000]).await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), start.elapsed()), (io::ErrorKind::TimedOut, PATIENCE));
        // The next connection of the same pod begins where this one was.
        let (mut peer, server) = duplex(10);
        peer.write_all(&[0; 10]).await.unwrap();
        let mut stream = paces.of("pod", start).apply(server);
        assert!(tokio::time::timeout(SECOND, stream.read_u8()).await.is_err());
    }
}
