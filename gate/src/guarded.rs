//! A connection that ends when its time is over, or when its place is needed by another.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::book::State;
use crate::place::Place;

/// How long a connection may take for each part of its life.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From its first byte, or from the first of a later request, until a request is whole: handshake, head and body.
    pub input: Duration,
    /// From there until the answer is written.
    pub work: Duration,
    /// Between the end of an answer and the next request.
    pub idle: Duration,
}

impl Times {
    /// Of an admin port, whose answers are at hand.
    pub const ADMIN: Self = Self {
        input: Duration::from_secs(3),
        work: Duration::from_secs(10),
        idle: Duration::from_secs(60),
    };
}

/// A connection with a [`Place`]. Reads and writes fail once the place is needed or a time is over, so whatever serves the
/// connection ends.
#[derive(Debug)]
pub struct Guarded<S> {
    stream: S,
    work: Work,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    timer: Pin<Box<Sleep>>,
}

/// Says how far the requests of a connection are. For whoever answers them.
#[derive(Clone, Debug)]
pub struct Work(Arc<Shared>);

/// A request that is whole and has no answer yet. When it is dropped, the answer has been made.
#[derive(Debug)]
pub struct Working(Work);

#[derive(Debug)]
struct Shared {
    place: Place,
    times: Times,
    phase: Mutex<Phase>,
}

#[derive(Clone, Copy, Debug)]
struct Phase {
    now: Now,
    until: Instant,
    /// Requests that are worked on: HTTP/2 has several.
    working: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Now {
    Input,
    Working,
    /// Answered, and not all written.
    Answered,
    Idle,
}

impl Work {
    /// The times of a connection begin. The handshake belongs to its first input.
    pub fn begin(place: Place, times: Times) -> Self {
        let phase = Phase {
            now: Now::Input,
            until: Instant::now() + times.input,
            working: 0,
        };
        Self(Arc::new(Shared {
            place,
            times,
            phase: Mutex::new(phase),
        }))
    }

    /// The stream of this connection.
    pub fn guard<S>(&self, stream: S) -> Guarded<S> {
        Guarded {
            stream,
            closed: Box::pin(self.0.place.closed()),
            timer: Box::pin(tokio::time::sleep_until(self.until())),
            work: self.clone(),
        }
    }

    /// Waits until the connection must end: for what is done before there is a [`Guarded`] stream, such as a handshake.
    pub async fn over(&self) {
        tokio::select! {
            () = self.0.place.closed() => {}
            () = async {
                // The end may move while this waits.
                while Instant::now() < self.until() {
                    tokio::time::sleep_until(self.until()).await;
                }
            } => {}
        }
    }

    /// A request is whole: the connection is not closed for another until there is an answer.
    #[must_use]
    pub fn complete(&self) -> Working {
        self.complete_within(self.0.times.work)
    }

    /// The same, where the answer may take another time than [`Times::work`]. To be written it has that one at most.
    #[must_use]
    pub fn complete_within(&self, time: Duration) -> Working {
        self.work_within(time, State::Busy)
    }

    /// The same for a request that anybody may make and that may take long: where all others are busy too, the connection is
    /// closed for another. Only for connections that carry one request at a time.
    #[must_use]
    pub fn wait_within(&self, time: Duration) -> Working {
        self.work_within(time, State::Waiting)
    }

    fn work_within(&self, time: Duration, state: State) -> Working {
        let mut phase = self.0.phase.lock();
        phase.working += 1;
        self.enter(&mut phase, Now::Working, time, state);
        Working(self.clone())
    }

    fn until(&self) -> Instant {
        self.0.phase.lock().until
    }

    fn answered(&self) {
        let mut phase = self.0.phase.lock();
        phase.working -= 1;
        if phase.working == 0 {
            // The time for work goes on: it includes the writing. Whoever does not take the answer gives way to others.
            phase.now = Now::Answered;
            phase.until = phase.until.min(Instant::now() + self.0.times.work);
            self.0.place.set(State::Waiting);
        }
    }

    /// Bytes came from the peer.
    fn read(&self) {
        let mut phase = self.0.phase.lock();
        if matches!(phase.now, Now::Idle | Now::Answered) {
            // It has brought a whole request before.
            self.enter(&mut phase, Now::Input, self.0.times.input, State::Reading);
        }
    }

    /// All that was to be written is written.
    fn written(&self) {
        let mut phase = self.0.phase.lock();
        if phase.now == Now::Answered {
            self.enter(&mut phase, Now::Idle, self.0.times.idle, State::Idle);
        }
    }

    fn enter(&self, phase: &mut Phase, now: Now, time: Duration, state: State) {
        phase.now = now;
        phase.until = Instant::now() + time;
        self.0.place.set(state);
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.answered();
    }
}

impl<S> Guarded<S> {
    /// The stream itself.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.closed.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "closed to make room for other connections",
            ));
        }
        let until = self.work.until();
        if self.timer.deadline() != until {
            self.timer.as_mut().reset(until);
        }
        match self.timer.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "the peer took too long")),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() && buf.filled().len() > before {
            self.work.read();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.work.written();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::timeout;

    use super::*;
    use crate::{Gate, Limits};

    const SECOND: Duration = Duration::from_secs(1);
    const TIMES: Times = Times {
        input: Duration::from_secs(3),
        work: Duration::from_secs(10),
        idle: Duration::from_secs(60),
    };

    async fn connection(gate: &Arc<Gate>) -> (DuplexStream, Guarded<DuplexStream>, Work) {
        let work = Work::begin(gate.enter(IpAddr::from([10, 0, 0, 1])).await, TIMES);
        let (client, server) = duplex(1024);
        (client, work.guard(server), work)
    }

    fn gate() -> Arc<Gate> {
        Gate::new(Limits {
            incomplete: 1,
            total: 2,
            grace: SECOND,
        })
    }

    async fn ends_with(stream: &mut Guarded<DuplexStream>) -> io::ErrorKind {
        loop {
            match stream.read_u8().await {
                Ok(_) => {}
                Err(e) => return e.kind(),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_does_not_move_the_end_of_the_input() {
        let (mut client, mut server, _) = connection(&gate()).await;
        let start = Instant::now();
        let trickle = async {
            while client.write_u8(b'x').await.is_ok() {
                tokio::time::sleep(SECOND / 2).await;
            }
        };
        let kind = tokio::select! { () = trickle => unreachable!(), kind = ends_with(&mut server) => kind };
        assert_eq!((kind, start.elapsed()), (io::ErrorKind::TimedOut, TIMES.input));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_long_and_is_written_in_the_usual_time() {
        let (mut client, mut server, work) = connection(&gate()).await;
        client.write_u8(b'x').await.unwrap();
        server.read_u8().await.unwrap();
        let working = work.complete_within(3600 * SECOND);
        tokio::time::sleep(100 * SECOND).await;
        server.write_u8(b'y').await.unwrap();
        drop(working);
        let start = Instant::now();
        let unread = server.write_all(&[b'y'; 4096]).await.unwrap_err();
        assert_eq!((unread.kind(), start.elapsed()), (io::ErrorKind::TimedOut, TIMES.work));
    }

    #[tokio::test(start_paused = true)]
    async fn each_part_of_a_request_has_its_own_time_and_the_next_request_begins_anew() {
        let (mut client, mut server, work) = connection(&gate()).await;
        for _ in 0..2 {
            tokio::time::sleep(2 * SECOND).await;
            client.write_u8(b'x').await.unwrap();
            server.read_u8().await.unwrap();
            let working = work.complete();
            tokio::time::sleep(9 * SECOND).await;
            drop(working);
            server.write_u8(b'y').await.unwrap();
            server.flush().await.unwrap();
            tokio::time::sleep(57 * SECOND).await;
        }
        // And one that begins and does not end.
        client.write_u8(b'x').await.unwrap();
        let start = Instant::now();
        assert_eq!(ends_with(&mut server).await, io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), TIMES.input);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_take_its_answers_gives_way() {
        let gate = gate();
        let mut deaf = Vec::new();
        for _ in 0..2 {
            let (client, mut server, work) = connection(&gate).await;
            drop(work.complete());
            server.write_all(&[0; 1024]).await.unwrap();
            assert!(timeout(SECOND / 10, server.write_all(b"more")).await.is_err());
            deaf.push((client, server));
        }
        let other = timeout(SECOND / 10, gate.enter(IpAddr::from([10, 0, 0, 2]))).await;
        assert!(other.is_ok(), "it waits for their answers to be taken");
        let refused = deaf[0].1.write_all(b"more").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionAborted);
        assert!(timeout(SECOND, deaf[1].1.write_all(b"more")).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_and_so_does_one_that_does_not_take_its_answer() {
        let gate = gate();
        let (_client, mut server, work) = connection(&gate).await;
        drop(work.complete());
        server.flush().await.unwrap();
        let start = Instant::now();
        assert_eq!(ends_with(&mut server).await, io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), TIMES.idle);

        let (_client, mut server, work) = connection(&gate).await;
        drop(work.complete());
        let start = Instant::now();
        let written = server.write_all(&[0; 4096]).await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), TIMES.work);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_displaced_ends_at_once_and_one_that_works_is_not() {
        let gate = gate();
        let (_first_client, mut first, _) = connection(&gate).await;
        let (_second_client, mut second, second_work) = connection(&gate).await;
        assert_eq!(ends_with(&mut first).await, io::ErrorKind::ConnectionAborted);
        let working = second_work.complete();
        let (_third_client, _third, _) = connection(&gate).await;
        let start = Instant::now();
        assert_eq!(ends_with(&mut second).await, io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), TIMES.work);
        drop(working);
    }

    #[tokio::test(start_paused = true)]
    async fn before_there_is_a_stream_the_same_times_hold() {
        let gate = gate();
        let place = gate.enter(IpAddr::from([10, 0, 0, 1])).await;
        let work = Work::begin(place, TIMES);
        let start = Instant::now();
        work.over().await;
        assert_eq!(start.elapsed(), TIMES.input);
        let _other = gate.enter(IpAddr::from([10, 0, 0, 1])).await;
        work.over().await;
        assert_eq!(start.elapsed(), TIMES.input);
    }
}
