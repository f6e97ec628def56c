//! The connection of one worker to one store.
//!
//! All requests of a worker share it: what they ask is written one behind the other, and answered in that order, so that nobody waits for a
//! connection or for another one's answer. A worker has its own, so that none waits for another worker's thread; a store sees one
//! connection for each worker of each pod.
//!
//! **Who waits for a store that is not well: nobody.** Without a connection all that is asked fails at once. A connection is given up where it
//! breaks, where the store answers an error (it is full, a replica, or wants a password), and where three answers in a row were late, each to a
//! question that was asked after the one before was late. After that it is made anew with longer and longer waits in between, of at most 5 s, and is
//! used only when the very script that decides about requests was answered in time: so no request has to find out whether the store is back, but
//! for those of three times the time that asking it may take.
//! Only while nothing is known of a store yet, requests wait for its first connection, for the time that asking it may take.
//!
//! Memory is bounded, whatever the store does: what is written and not taken, what is asked and not answered, and what
//! is answered.

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use outrigger_limits::store::{Entry, SCRIPT, State};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::resp::{self, Reply, Writer};
use crate::backoff::Backoff;
use crate::dns::{HostPort, Known, Resolver};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Asked, StoreLink};

/// What waits to be written, in questions.
const QUEUE: usize = 256;
/// What was written and is not answered, in questions.
const MOST_PENDING: usize = 1024;
/// What is to be written, in bytes; and so the longest question.
const MOST_OUT: usize = 64 * 1024;
/// All questions that are not answered, in bytes.
const MOST_BYTES: usize = 1024 * 1024;
/// The name, the connection, and that the store knows the script.
const CONNECT: Duration = Duration::from_secs(1);
/// All that connecting may take of it: one address after the other, each for its part.
const DIAL: Duration = Duration::from_millis(750);
/// Addresses of a name that are tried, and the next ones the next time.
const MOST_TRIED: usize = 4;
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// At once.
const READ: usize = 4096;
/// Answers in a row.
const MOST_LATE: u32 = 3;
/// Of what a store says, in a log.
const LONGEST_WORD: usize = 200;

/// Whether a policy may have an address called; else why not.
pub(crate) type Permitted = Rc<dyn Fn(IpAddr) -> Result<(), &'static str>>;

/// See the module. Its connection is closed when this is dropped.
pub(super) struct Link {
    questions: mpsc::Sender<Question>,
    state: Rc<Shared>,
    metrics: Arc<Metrics>,
    task: AbortHandle,
}

/// What those who ask and the connection share.
struct Shared {
    phase: watch::Sender<Phase>,
    health: Health,
    /// What asking may take.
    patience: Cell<Duration>,
    /// Of questions that are not answered.
    bytes: Cell<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing is known yet.
    First,
    Up,
    Away,
}

/// How many answers in a row were late.
#[derive(Default)]
struct Health {
    late: Cell<u32>,
    /// The last one that counted.
    last: Cell<Option<Instant>>,
    given_up: Notify,
}

struct Question {
    /// The keys and arguments of the script, as they are sent.
    rest: Bytes,
    /// What it takes of [`MOST_BYTES`]. `None`: it is the connection's own.
    _room: Option<Room>,
    /// How many keys those are, each with five arguments.
    entries: usize,
    answer: oneshot::Sender<Vec<State>>,
}

/// Bytes that are counted until this is dropped.
struct Room {
    state: Rc<Shared>,
    bytes: usize,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Away,
    Late,
    Error,
    Full,
}

impl Link {
    pub(super) fn start(
        address: &str,
        patience: Duration,
        resolver: Resolver,
        permitted: Permitted,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (questions, receiver) = mpsc::channel(QUEUE);
        let state = Rc::new(Shared {
            phase: watch::Sender::new(Phase::First),
            health: Health::default(),
            patience: Cell::new(patience),
            bytes: Cell::new(0),
        });
        let keeper = Keeper {
            address: address.to_owned(),
            resolver,
            permitted,
            state: Rc::clone(&state),
            questions: receiver,
            counted: metrics.store_link(),
            tried: Cell::new(0),
        };
        let task = tokio::task::spawn_local(keeper.run()).abort_handle();
        Self {
            questions,
            state,
            metrics,
            task,
        }
    }

    pub(super) fn set_patience(&self, patience: Duration) {
        self.state.patience.set(patience);
    }

    pub(super) fn is_up(&self) -> bool {
        *self.state.phase.borrow() == Phase::Up
    }

    /// How each entry is, after one round trip.
    pub(super) async fn ask(&self, entries: &[Entry], patience: Duration) -> Option<Vec<State>> {
        let asked = self.state.health.late.get();
        let answer = timeout(patience, self.answer(entries)).await;
        let answer = answer.unwrap_or_else(|_| {
            if self.is_up() {
                self.state.health.was_late(asked);
            }
            Err(Failure::Late)
        });
        // Where all that may wait does, nothing else would find out that it is never answered.
        if answer.as_ref().is_err_and(|failure| *failure == Failure::Full)
            && self.state.health.has_been_late_for(patience)
        {
            self.state.health.was_late(asked);
        }
        self.metrics.store_asked(match answer {
            Ok(_) => Asked::Answered,
            Err(Failure::Away) => Asked::Away,
            Err(Failure::Late) => Asked::Late,
            Err(Failure::Error) => Asked::Error,
            Err(Failure::Full) => Asked::Full,
        });
        answer.ok()
    }

    /// The same, where nobody waits for the answer.
    pub(super) fn tell(&self, entries: &[Entry]) {
        if self.is_up() {
            // Where there is no room, what was taken stays taken.
            let _ = self.send(entries, oneshot::channel().0);
        }
    }

    async fn answer(&self, entries: &[Entry]) -> Result<Vec<State>, Failure> {
        if *self.state.phase.borrow() == Phase::First {
            // It lives as long as this.
            let _ = self
                .state
                .phase
                .subscribe()
                .wait_for(|phase| *phase != Phase::First)
                .await;
        }
        if !self.is_up() {
            return Err(Failure::Away);
        }
        let (sender, answer) = oneshot::channel();
        self.send(entries, sender)?;
        let states = answer.await.map_err(|_| Failure::Error)?;
        self.state.health.was_in_time();
        Ok(states)
    }
}

impl Link {
    fn send(&self, entries: &[Entry], answer: oneshot::Sender<Vec<State>>) -> Result<(), Failure> {
        let mut question = question(entries, answer);
        let bytes = question.rest.len();
        let all = self.state.bytes.get() + bytes;
        if bytes > MOST_OUT || all > MOST_BYTES {
            return Err(Failure::Full);
        }
        self.state.bytes.set(all);
        let state = Rc::clone(&self.state);
        question._room = Some(Room { state, bytes });
        self.questions.try_send(question).map_err(|_| Failure::Full)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.state.bytes.set(self.state.bytes.get() - self.bytes);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Health {
    fn was_in_time(&self) {
        self.late.set(0);
        self.last.set(None);
    }

    fn has_been_late_for(&self, time: Duration) -> bool {
        self.last.get().is_some_and(|last| last.elapsed() >= time)
    }

    /// Of a question that was asked when so many had been late. What was asked at one time counts once: one pause of the store, or of this
    /// sidecar, makes all of it late.
    fn was_late(&self, asked: u32) {
        if asked != self.late.get() {
            return;
        }
        self.late.set(asked + 1);
        self.last.set(Some(Instant::now()));
        if self.late.get() >= MOST_LATE {
            self.given_up.notify_one();
        }
    }

    /// Waits until a connection has to be given up.
    async fn given_up(&self) {
        while self.late.get() < MOST_LATE {
            self.given_up.notified().await;
        }
    }
}

fn question(entries: &[Entry], answer: oneshot::Sender<Vec<State>>) -> Question {
    let mut rest = Vec::with_capacity(entries.len() * 512);
    let mut writer = Writer(&mut rest);
    writer.number(entries.len());
    entries.iter().for_each(|entry| writer.string(entry.key.as_bytes()));
    for entry in entries {
        writer.number(entry.group);
        writer.number(entry.units);
        writer.number(entry.token);
        writer.number(entry.gives);
        writer.number(entry.holds);
    }
    Question {
        rest: rest.into(),
        _room: None,
        entries: entries.len(),
        answer,
    }
}

/// `None`: these are not what the script answers.
fn states(numbers: &[i64], entries: usize) -> Option<Vec<State>> {
    let number = |number: i64| u64::try_from(number).ok();
    let (threes, rest) = numbers.as_chunks();
    let states = threes.iter().map(|&[wait, remaining, full]| {
        Some(State {
            wait: number(wait)?,
            remaining: number(remaining)?,
            full: number(full)?,
        })
    });
    let states: Vec<State> = states.collect::<Option<_>>()?;
    (rest.is_empty() && states.len() == entries).then_some(states)
}

/// Makes the connection, again and again.
struct Keeper {
    address: String,
    resolver: Resolver,
    permitted: Permitted,
    state: Rc<Shared>,
    questions: mpsc::Receiver<Question>,
    counted: StoreLink,
    /// Addresses of its name, so far.
    tried: Cell<usize>,
}

impl Keeper {
    async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1, SmallRng::from_os_rng());
        let mut is_told = false;
        loop {
            let began = Instant::now();
            let why = match self.connect().await {
                Ok(mut connection) => {
                    is_told = false;
                    if self.counted.answers(true) {
                        tracing::info!(store = self.address, "the store of rate limits answers");
                    }
                    self.state.health.was_in_time();
                    self.state.phase.send_replace(Phase::Up);
                    connection.serve(&mut self.questions, &self.state.health).await
                }
                Err(why) => why,
            };
            self.state.phase.send_replace(Phase::Away);
            self.counted.answers(false);
            if !std::mem::replace(&mut is_told, true) {
                tracing::warn!(
                    store = self.address,
                    why,
                    "the store of rate limits does not answer: its limits do what `onFailure` says"
                );
            }
            // They are told so.
            while self.questions.try_recv().is_ok() {}
            sleep(backoff.ended(began.elapsed())).await;
        }
    }

    /// A connection over which a question was answered in time.
    async fn connect(&self) -> Result<Connection, String> {
        let late = |_| format!("it did not take a connection and a script in {CONNECT:?}");
        let connection = timeout(CONNECT, async {
            let stream = self.dial().await?;
            // It is a question and its answer: nothing else comes that a packet could wait for.
            let _ = stream.set_nodelay(true);
            let mut connection = Connection::new(stream);
            connection.load().await?;
            Ok::<_, String>(connection)
        });
        let mut connection = connection.await.map_err(late)??;
        let patience = self.state.patience.get();
        let tried = timeout(patience, connection.try_it()).await;
        tried.map_err(|_| format!("an answer took longer than {patience:?}"))??;
        Ok(connection)
    }

    async fn dial(&self) -> Result<TcpStream, String> {
        let mut wrong = format!("{} is no host and port", self.address);
        let host: HostPort = self.address.parse().map_err(|_| wrong.clone())?;
        let addresses = match host.host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, host.port)],
            Err(_) => {
                let mut known = self.resolver.watch(&host.host, host.port)?;
                let known = known.wait_for(|known| *known != Known::NotYet).await;
                match &*known.map_err(|_| "the resolver has ended")? {
                    Known::Addresses(addresses) => addresses.to_vec(),
                    Known::Failed(why) => return Err(format!("its name cannot be resolved: {why}")),
                    Known::Nothing | Known::NotYet => return Err("its name has no address in DNS".to_owned()),
                }
            }
        };
        let mut permitted = Vec::with_capacity(addresses.len());
        for address in addresses {
            match (self.permitted)(address.ip()) {
                Ok(()) => permitted.push(address),
                Err(why) => wrong = format!("{} is {why}: it is never called for a policy", address.ip()),
            }
        }
        let tried = self.tried.replace(self.tried.get().wrapping_add(MOST_TRIED));
        let (addresses, each) = in_turn(permitted, tried);
        for address in addresses {
            match timeout(each, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => wrong = format!("{address}: {error}"),
                Err(_) => wrong = format!("{address}: no connection within {each:?}"),
            }
        }
        Err(wrong)
    }
}

/// Those that are tried after so many have been, and how long each. One that does not answer takes no other's time.
fn in_turn(mut addresses: Vec<SocketAddr>, tried: usize) -> (Vec<SocketAddr>, Duration) {
    let all = addresses.len().max(1);
    if all > MOST_TRIED {
        addresses.rotate_left(tried % all);
        addresses.truncate(MOST_TRIED);
    }
    // Never more than a few.
    let parts = u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    (addresses, DIAL / parts)
}

struct Connection {
    stream: TcpStream,
    /// What the store calls the script.
    name: Bytes,
    out: BytesMut,
    input: BytesMut,
    reader: resp::Reader,
    pending: VecDeque<Pending>,
}

struct Pending {
    question: Question,
    /// The script itself was sent with it.
    whole: bool,
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            name: Bytes::new(),
            out: BytesMut::new(),
            input: BytesMut::new(),
            reader: resp::Reader::default(),
            pending: VecDeque::new(),
        }
    }

    /// Makes the script known, so that it is sent once.
    async fn load(&mut self) -> Result<(), String> {
        let mut command = Vec::new();
        let mut writer = Writer(&mut command);
        writer.begin(3);
        writer.string(b"SCRIPT");
        writer.string(b"LOAD");
        writer.string(SCRIPT.as_bytes());
        match self.exchange(&command).await? {
            Reply::Text(name) => self.name = name,
            Reply::Error(error) => return Err(shown(&error)),
            Reply::Numbers(_) => return Err(resp::Malformed.to_string()),
        }
        Ok(())
    }

    /// Asks as for a request: a bucket that is nobody's, and is gone after a millisecond or two.
    async fn try_it(&mut self) -> Result<(), String> {
        let entry = Entry {
            key: "outrigger:limit:".to_owned(),
            group: 0,
            units: 1,
            token: 1,
            gives: 1,
            holds: 1_000_000,
        };
        let question = question(&[entry], oneshot::channel().0);
        let mut command = Vec::new();
        write(&mut command, &question, b"EVALSHA", &self.name);
        match self.exchange(&command).await? {
            Reply::Numbers(numbers) if states(&numbers, 1).is_some() => Ok(()),
            Reply::Error(error) => Err(shown(&error)),
            Reply::Numbers(_) | Reply::Text(_) => Err(resp::Malformed.to_string()),
        }
    }

    async fn exchange(&mut self, command: &[u8]) -> Result<Reply, String> {
        self.stream
            .write_all(command)
            .await
            .map_err(|error| error.to_string())?;
        loop {
            if let Some(reply) = self.reader.read(&mut self.input).map_err(|wrong| wrong.to_string())? {
                return Ok(reply);
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => return Err("it closed the connection".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Carries questions and answers. Returns why it has ended.
    async fn serve(&mut self, questions: &mut mpsc::Receiver<Question>, health: &Health) -> String {
        loop {
            let has_room = self.out.len() < MOST_OUT && self.pending.len() < MOST_PENDING;
            self.input.reserve(READ);
            let (mut reader, mut writer) = self.stream.split();
            tokio::select! {
                Some(question) = questions.recv(), if has_room => self.send(question, false),
                read = reader.read_buf(&mut self.input) => {
                    match read {
                        Ok(0) => return "it closed the connection".to_owned(),
                        Ok(_) => {}
                        Err(error) => return error.to_string(),
                    }
                    if let Err(why) = self.receive() {
                        return why;
                    }
                }
                written = writer.write_buf(&mut self.out), if !self.out.is_empty() => {
                    if let Err(error) = written {
                        return error.to_string();
                    }
                }
                () = health.given_up() => return format!("{MOST_LATE} answers in a row were late"),
            }
        }
    }

    fn send(&mut self, question: Question, whole: bool) {
        let mut command = Vec::with_capacity(question.rest.len() + 64);
        match whole {
            true => write(&mut command, &question, b"EVAL", SCRIPT.as_bytes()),
            false => write(&mut command, &question, b"EVALSHA", &self.name),
        }
        self.out.extend_from_slice(&command);
        self.pending.push_back(Pending { question, whole });
    }

    fn receive(&mut self) -> Result<(), String> {
        while let Some(reply) = self.reader.read(&mut self.input).map_err(|wrong| wrong.to_string())? {
            let Some(Pending { question, whole }) = self.pending.pop_front() else {
                return Err(resp::Malformed.to_string());
            };
            match reply {
                Reply::Numbers(numbers) => {
                    let states = states(&numbers, question.entries);
                    let states = states.ok_or_else(|| resp::Malformed.to_string())?;
                    // Whoever asked may have gone.
                    let _ = question.answer.send(states);
                }
                // Its scripts were flushed.
                Reply::Error(error) if error.starts_with("NOSCRIPT") && !whole => self.send(question, true),
                Reply::Error(error) => return Err(shown(&error)),
                Reply::Text(_) => return Err(resp::Malformed.to_string()),
            }
        }
        Ok(())
    }
}

fn write(out: &mut Vec<u8>, question: &Question, command: &[u8], script: &[u8]) {
    let mut writer = Writer(out);
    writer.begin(3 + 6 * question.entries);
    writer.string(command);
    writer.string(script);
    out.extend_from_slice(&question.rest);
}

/// What a store says of an error.
fn shown(error: &str) -> String {
    format!("it says {:?}", &error[..error.floor_char_boundary(LONGEST_WORD)])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{CONNECT, MOST_TRIED, in_turn};
    use std::collections::HashSet;
    use std::net::SocketAddr;

    /// Of however many addresses each is tried at some time, and has a part of the time that the others cannot take.
    #[test]
    fn each_address_has_its_turn_and_its_time() {
        for all in [1, 2, 4, 5, 7, 100] {
            let addresses: Vec<SocketAddr> = (0..all).map(|n| ([10, 0, 0, n], 6379).into()).collect();
            let mut tried = HashSet::new();
            for round in 0..100 {
                let (now, each) = in_turn(addresses.clone(), round * MOST_TRIED);
                assert_eq!(now.len(), addresses.len().min(MOST_TRIED));
                assert!(each * u32::try_from(now.len()).unwrap() < CONNECT);
                tried.extend(now);
            }
            assert_eq!(tried.len(), addresses.len(), "{all}");
        }
        assert!(in_turn(Vec::new(), 3).0.is_empty());
    }
}
