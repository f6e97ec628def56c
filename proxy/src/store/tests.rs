//! Against a store that does what a test says, without waiting for a clock: what a real one does is in `tests/tests/limits/global.rs`.

#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use outrigger_limits::store::Entry;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::*;

const LONG: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_millis(20);
const NAME: &[u8] = b"$3\r\nsha\r\n";
const ADMITS: &[u8] = b"*3\r\n:0\r\n:7\r\n:1\r\n";

/// What it answers to a command. `None`: nothing.
type Says = Rc<dyn Fn(&[Vec<u8>]) -> Option<Vec<u8>>>;

/// A store in this thread.
struct Fake {
    address: SocketAddr,
    says: Rc<RefCell<Says>>,
    heard: Rc<RefCell<VecDeque<Vec<Vec<u8>>>>>,
}

impl Fake {
    async fn start(says: impl Fn(&[Vec<u8>]) -> Option<Vec<u8>> + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            address: listener.local_addr().unwrap(),
            says: Rc::new(RefCell::new(Rc::new(says))),
            heard: Rc::default(),
        };
        let (says, heard) = (Rc::clone(&fake.says), Rc::clone(&fake.heard));
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(serve(stream, Rc::clone(&says), Rc::clone(&heard)));
            }
        });
        fake
    }

    fn says(&self, says: impl Fn(&[Vec<u8>]) -> Option<Vec<u8>> + 'static) {
        *self.says.borrow_mut() = Rc::new(says);
    }

    fn heard(&self, command: &str) -> usize {
        let heard = self.heard.borrow();
        heard.iter().filter(|all| all[0] == command.as_bytes()).count()
    }

    fn store(&self) -> Store {
        Store {
            address: self.address.to_string().into(),
            timeout: PATIENCE,
        }
    }

    fn ask(&self, timeout: Duration) -> [Ask; 1] {
        let store = Store {
            timeout,
            ..self.store()
        };
        let entries = vec![entry()];
        [Ask { store, entries }]
    }
}

async fn serve(stream: TcpStream, says: Rc<RefCell<Says>>, heard: Rc<RefCell<VecDeque<Vec<Vec<u8>>>>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let Some(command) = command(&mut stream).await else {
            return;
        };
        heard.borrow_mut().push_back(command.clone());
        let says = Rc::clone(&says.borrow());
        if let Some(answer) = says(&command)
            && stream.write_all(&answer).await.is_err()
        {
            return;
        }
    }
}

async fn command(stream: &mut BufReader<TcpStream>) -> Option<Vec<Vec<u8>>> {
    let count = number(stream, '*').await?;
    let mut strings = Vec::new();
    for _ in 0..count {
        let length = number(stream, '$').await?;
        let mut string = vec![0; length + 2];
        stream.read_exact(&mut string).await.ok()?;
        assert!(string.ends_with(b"\r\n"));
        string.truncate(length);
        strings.push(string);
    }
    Some(strings)
}

async fn number(stream: &mut BufReader<TcpStream>, kind: char) -> Option<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    line.strip_prefix(kind)?.trim_end().parse().ok()
}

/// As a store that works.
fn works(command: &[Vec<u8>]) -> Option<Vec<u8>> {
    Some(match &*command[0] {
        b"SCRIPT" => NAME.to_vec(),
        b"EVALSHA" | b"EVAL" => ADMITS.to_vec(),
        _ => b"-ERR unknown command\r\n".to_vec(),
    })
}

/// A store that works for its own questions, and says this to others.
fn to_requests(answer: Option<&'static [u8]>) -> impl Fn(&[Vec<u8>]) -> Option<Vec<u8>> {
    move |command| match command[0] == b"EVALSHA" && command[3] == entry().key.as_bytes() {
        true => answer.map(<[u8]>::to_vec),
        false => works(command),
    }
}

fn entry() -> Entry {
    Entry {
        key: "outrigger:limit:shop/a:0:00".to_owned(),
        group: 0,
        units: 1,
        token: 1,
        gives: 1,
        holds: 10,
    }
}

fn stores(permitted: impl Fn(std::net::IpAddr) -> Result<(), &'static str> + 'static) -> (Stores, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let resolver = Resolver::start(Some(&[])).unwrap();
    (Stores::new(resolver, Rc::new(permitted), Arc::clone(&metrics)), metrics)
}

fn counted(metrics: &Arc<Metrics>, series: &str) -> u64 {
    let text = metrics.text();
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

fn asked(metrics: &Arc<Metrics>, result: &str) -> u64 {
    counted(
        metrics,
        &format!("outrigger_limit_store_asked_total{{result=\"{result}\"}}"),
    )
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

async fn answers(stores: &Stores, metrics: &Arc<Metrics>, fake: &Fake) {
    stores.follow(&[fake.store()]);
    is_back(metrics, 1).await;
}

async fn is_back(metrics: &Arc<Metrics>, links: u64) {
    until("it answers", || {
        counted(metrics, "outrigger_limit_store_connections{state=\"answers\"}") == links
    })
    .await;
}

#[tokio::test]
async fn the_first_requests_wait_for_the_connection_and_all_share_it() {
    LocalSet::new()
        .run_until(async {
            let fake = Fake::start(works).await;
            let (stores, metrics) = stores(|_| Ok(()));
            stores.follow(&[fake.store()]);
            let asks: Vec<_> = (0..100).map(|_| fake.ask(LONG)).collect();
            let all = join_all(asks.iter().map(|ask| stores.ask(ask))).await;
            for answer in all {
                let state = answer[0].as_ref().unwrap()[0];
                assert_eq!((state.wait, state.remaining, state.full), (0, 7, 1));
            }
            // And one of its own.
            assert_eq!(
                (fake.heard("EVALSHA"), fake.heard("SCRIPT"), fake.heard("EVAL")),
                (101, 1, 0)
            );
            assert_eq!(asked(&metrics, "answered"), 100);
            stores.tell(&fake.ask(LONG));
            until("it is told", || fake.heard("EVALSHA") == 102).await;
            // What no policy names any more is closed.
            stores.follow(&[]);
            assert!(stores.ask(&fake.ask(LONG)).await[0].is_none());
            is_back(&metrics, 0).await;
        })
        .await;
}

#[tokio::test]
async fn a_script_that_was_flushed_is_sent_again() {
    LocalSet::new()
        .run_until(async {
            let fake = Fake::start(to_requests(Some(b"-NOSCRIPT No matching script\r\n"))).await;
            let (stores, metrics) = stores(|_| Ok(()));
            answers(&stores, &metrics, &fake).await;
            assert!(stores.ask(&fake.ask(LONG)).await[0].is_some());
            assert_eq!(fake.heard("EVAL"), 1);
            let heard = fake.heard.borrow();
            let eval = heard.iter().find(|command| command[0] == b"EVAL").unwrap();
            assert_eq!(eval[1], outrigger_limits::store::SCRIPT.as_bytes());
            assert_eq!(
                eval[2..],
                heard.iter().rfind(|command| command[0] == b"EVALSHA").unwrap()[2..]
            );
            assert_eq!(asked(&metrics, "answered"), 1);
        })
        .await;
}

/// An error, what is no answer, and a connection that breaks: nobody waits for it, and nobody is asked until it is back.
#[tokio::test]
async fn what_goes_wrong_is_a_failure_at_once_until_the_store_works_again() {
    LocalSet::new()
        .run_until(async {
            for wrong in [
                &b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"[..],
                b"-NOAUTH Authentication required.\r\n",
                b"-READONLY You can't write against a read only replica.\r\n",
                b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
                b"-MOVED 3999 10.0.0.1:6381\r\n",
                b"+OK\r\n",
                b"*0\r\n",
                b"*3\r\n:-1\r\n:0\r\n:0\r\n",
                b"HTTP/1.1 400 Bad Request\r\n\r\n",
                b"*99999\r\n",
            ] {
                let shown = String::from_utf8_lossy(wrong);
                let fake = Fake::start(to_requests(Some(wrong))).await;
                let (stores, metrics) = stores(|_| Ok(()));
                answers(&stores, &metrics, &fake).await;
                assert!(stores.ask(&fake.ask(LONG)).await[0].is_none(), "{shown}");
                assert_eq!(asked(&metrics, "error"), 1, "{shown}");
                fake.says(works);
                is_back(&metrics, 0).await;
                is_back(&metrics, 1).await;
                assert!(stores.ask(&fake.ask(LONG)).await[0].is_some(), "{shown}");
            }
        })
        .await;
}

/// The store's own question fails as those of requests do: it is not used, and no request waits.
#[tokio::test]
async fn a_store_that_cannot_write_is_never_used() {
    LocalSet::new()
        .run_until(async {
            let full = |command: &[Vec<u8>]| match &*command[0] {
                b"SCRIPT" => Some(NAME.to_vec()),
                _ => Some(b"-OOM command not allowed\r\n".to_vec()),
            };
            let fake = Fake::start(full).await;
            let (stores, metrics) = stores(|_| Ok(()));
            stores.follow(&[fake.store()]);
            // Until it is known.
            assert!(stores.ask(&fake.ask(LONG)).await[0].is_none());
            assert_eq!(asked(&metrics, "away"), 1);
            until("it is tried again", || fake.heard("SCRIPT") >= 3).await;
            assert!(stores.ask(&fake.ask(LONG)).await[0].is_none());
            assert_eq!(asked(&metrics, "away"), 2);
            // Its own questions alone.
            let heard = fake.heard.borrow();
            let of_requests = heard
                .iter()
                .filter(|all| all.get(3).is_some_and(|key| key == entry().key.as_bytes()));
            assert_eq!(of_requests.count(), 0);
        })
        .await;
}

/// Three requests find out that it is slow, and no more.
#[tokio::test]
async fn a_slow_store_is_given_up_after_three_late_answers() {
    LocalSet::new()
        .run_until(async {
            let fake = Fake::start(works).await;
            let (stores, metrics) = stores(|_| Ok(()));
            answers(&stores, &metrics, &fake).await;
            fake.says(|_| None);
            for _ in 0..3 {
                assert!(stores.ask(&fake.ask(PATIENCE)).await[0].is_none());
            }
            is_back(&metrics, 0).await;
            for _ in 0..20 {
                assert!(stores.ask(&fake.ask(LONG)).await[0].is_none());
            }
            assert_eq!((asked(&metrics, "late"), asked(&metrics, "away")), (3, 20));
            fake.says(works);
            is_back(&metrics, 1).await;
            assert!(stores.ask(&fake.ask(LONG)).await[0].is_some());
        })
        .await;
}

/// It is one pause, however many have asked meanwhile.
#[tokio::test]
async fn what_was_asked_at_one_time_is_late_once() {
    LocalSet::new()
        .run_until(async {
            let fake = Fake::start(works).await;
            let (stores, metrics) = stores(|_| Ok(()));
            answers(&stores, &metrics, &fake).await;
            fake.says(|_| None);
            for late in [20, 40] {
                let asks = [(); 20].map(|()| fake.ask(PATIENCE));
                join_all(asks.iter().map(|ask| stores.ask(ask))).await;
                assert_eq!(asked(&metrics, "late"), late);
                assert!(stores.links.borrow().values().all(|link| link.is_up()));
            }
            let asks = [(); 20].map(|()| fake.ask(PATIENCE));
            join_all(asks.iter().map(|ask| stores.ask(ask))).await;
            is_back(&metrics, 0).await;
        })
        .await;
}

/// An answer in time between late ones: it goes on.
#[tokio::test]
async fn late_answers_that_are_not_in_a_row_change_nothing() {
    LocalSet::new()
        .run_until(async {
            let count = Cell::new(0);
            // What it owes comes with every third.
            let fake = Fake::start(move |command| match &*command[0] {
                b"EVALSHA" if command[3] == entry().key.as_bytes() => {
                    count.set(count.get() + 1);
                    (count.get() % 3 == 0).then(|| ADMITS.repeat(3))
                }
                _ => works(command),
            })
            .await;
            let (stores, metrics) = stores(|_| Ok(()));
            answers(&stores, &metrics, &fake).await;
            for _ in 0..3 {
                for patience in [PATIENCE, PATIENCE, LONG] {
                    let is_there = stores.ask(&fake.ask(patience)).await[0].is_some();
                    assert_eq!(is_there, patience == LONG);
                }
            }
            assert_eq!((asked(&metrics, "late"), asked(&metrics, "answered")), (6, 3));
            assert_eq!(fake.heard("SCRIPT"), 1);
        })
        .await;
}

/// More than may be on its way fails at once, and what is on its way is answered.
#[tokio::test]
async fn what_waits_is_bounded() {
    LocalSet::new()
        .run_until(async {
            let fake = Fake::start(works).await;
            let (stores, metrics) = stores(|_| Ok(()));
            answers(&stores, &metrics, &fake).await;
            fake.says(|_| None);
            let asks: Vec<_> = (0..3000).map(|_| fake.ask(Duration::from_millis(200))).collect();
            let all = join_all(asks.iter().map(|ask| stores.ask(ask))).await;
            assert!(all.iter().all(|answer| answer[0].is_none()));
            let full = asked(&metrics, "full");
            assert!((3000 - 1024 - 256..3000).contains(&full), "{full}");
            for _ in 0..2 {
                assert!(stores.ask(&fake.ask(PATIENCE)).await[0].is_none());
            }
            let full = asked(&metrics, "full");
            fake.says(works);
            is_back(&metrics, 0).await;
            is_back(&metrics, 1).await;
            // Large ones have as many bytes as all may have.
            fake.says(|_| None);
            let mut large = fake.ask(Duration::from_millis(200));
            large[0].entries = vec![entry(); 500];
            let all = join_all((0..100).map(|_| stores.ask(&large))).await;
            assert!(all.iter().all(|answer| answer[0].is_none()));
            let of_large = asked(&metrics, "full") - full;
            assert!((50..90).contains(&of_large), "{of_large}");
            let full = full + of_large;
            // One that is larger than all that may be written.
            fake.says(works);
            is_back(&metrics, 1).await;
            let mut large = fake.ask(LONG);
            large[0].entries = vec![entry(); 2000];
            assert!(stores.ask(&large).await[0].is_none());
            assert_eq!(asked(&metrics, "full"), full + 1);
        })
        .await;
}

/// All places are taken by what is never answered, so that nobody else could find out.
#[tokio::test]
async fn a_queue_that_stays_full_is_given_up() {
    LocalSet::new()
        .run_until(async {
            let fake = Fake::start(works).await;
            let (stores, metrics) = stores(|_| Ok(()));
            answers(&stores, &metrics, &fake).await;
            fake.says(|_| None);
            let stores = Rc::new(stores);
            let waits = |patience| {
                let (stores, ask) = (Rc::clone(&stores), fake.ask(patience));
                tokio::task::spawn_local(async move { stores.ask(&ask).await })
            };
            let late = waits(Duration::from_secs(1));
            let began = asked(&metrics, "full");
            until("all places are taken", || {
                (0..200).for_each(|_| drop(waits(LONG)));
                asked(&metrics, "full") > began + 20
            })
            .await;
            late.await.unwrap();
            let give_up = async {
                while stores.links.borrow().values().all(|link| link.is_up()) {
                    stores.ask(&fake.ask(PATIENCE)).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(LONG, give_up).await.unwrap();
        })
        .await;
}

#[tokio::test]
async fn an_address_that_no_policy_may_name_is_never_called() {
    LocalSet::new()
        .run_until(async {
            let fake = Fake::start(works).await;
            let (stores, metrics) = stores(|ip| match ip.is_loopback() {
                true => Err("a loopback address"),
                false => Ok(()),
            });
            stores.follow(&[fake.store()]);
            assert!(stores.ask(&fake.ask(LONG)).await[0].is_none());
            assert_eq!((asked(&metrics, "away"), fake.heard.borrow().len()), (1, 0));
            // However many are named.
            let many = (1..100).map(|port| Store {
                address: format!("127.0.0.1:{port}").into(),
                timeout: PATIENCE,
            });
            stores.follow(&many.collect::<Vec<_>>());
            assert_eq!(stores.links.borrow().len(), MOST_STORES);
        })
        .await;
}
