//! `outrigger demo`: the shop, a sidecar beside each service, an issuer and customers, on this machine, without a
//! cluster and without root; and a page that shows the traces.
//!
//! The demo itself is the customers, the receiver of the spans and the page. Everything else is a process of its own: this
//! program again, with a hidden subcommand (`internal`).
//!
//! It is a crate and a program of its own, `outrigger-demo`, so that a first look at Outrigger compiles no Kubernetes client.

#![cfg_attr(test, allow(clippy::disallowed_methods, clippy::disallowed_types))]

mod internal;
mod mesh;
mod metrics;
mod page;
mod plan;
mod processes;
mod receiver;
mod report;
mod screen;
mod stats;
mod traces;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use outrigger_api::duration;
use outrigger_shop::load;
use parking_lot::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::mesh::Mesh;
use self::receiver::Forward;
use self::screen::{Facts, Screen};
use self::stats::{Edge, Stats};
use self::traces::Store;

/// The sidecars export their spans in batches; the demo waits until none has come for this long.
const LAST_SPANS: Duration = Duration::from_secs(4);

/// The demo's subcommands, for the programs `outrigger-demo` and `outrigger`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    Demo(Args),
    /// A sidecar of the demo.
    #[command(hide = true)]
    InternalProxy(internal::ProxyArgs),
    /// A service of the demo's shop.
    #[command(hide = true)]
    InternalShop(outrigger_shop::Args),
    /// The issuer of the demo.
    #[command(hide = true)]
    InternalIssuer(internal::IssuerArgs),
}

impl Command {
    /// Runs it, without a runtime around it.
    ///
    /// # Errors
    /// When it could not start. What goes wrong in the demo later is printed, and is in the exit code.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Demo(args) => demo(args),
            Self::InternalProxy(args) => internal::proxy(args),
            Self::InternalShop(args) => internal::shop(args),
            Self::InternalIssuer(args) => internal::issuer(args),
        }
    }
}

/// Starts a small shop with a sidecar beside each service, and shows what they do: no cluster, no root.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Ends by itself after this long, like "10s" or "1m30s"; else Ctrl-C ends it.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    run_for: Option<Duration>,
    /// Prints one JSON object at the end, and nothing else, to standard output.
    #[arg(long)]
    json: bool,
    /// Purchases a second.
    #[arg(long, value_name = "N", default_value = "50", value_parser = load::rate)]
    rate: f64,
    /// Also sends the traces to a collector or a Jaeger: the URL of its OTLP/gRPC port, like http://127.0.0.1:4317.
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// Port of the page on 127.0.0.1. 0: 8480, or another if that is taken.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    page_port: u16,
    /// Makes the shop's failures and the customers' choices the same in every run.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// What the demo has seen; shared by those who write it and those who show it.
#[derive(Clone)]
struct Observed {
    store: Arc<Mutex<Store>>,
    stats: Arc<Mutex<Stats>>,
}

fn demo(args: Args) -> anyhow::Result<ExitCode> {
    // One thread: the kernel ends the children with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let ending = CancellationToken::new();
        let demo = run(args, ending.clone());
        let mut demo = std::pin::pin!(demo);
        tokio::select! {
            result = &mut demo => return result,
            () = signals.next() => ending.cancel(),
        }
        tokio::select! {
            result = demo => result,
            // Who asks twice is in a hurry; the children are killed as their handles are dropped.
            () = signals.next() => Ok(ExitCode::from(130)),
        }
    })
}

async fn run(args: Args, ending: CancellationToken) -> anyhow::Result<ExitCode> {
    let mut screen = Screen::new(args.json);
    let forward = args.otlp.as_deref().map(Forward::start).transpose()?;
    let observed = Observed::new();
    let page = page::bind(args.page_port).await?;
    let page_url = format!("http://{}", page.local_addr()?);
    screen.say("Starting the shop, its sidecars and their issuer …");
    let receiver = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let otlp = receiver.local_addr()?;
    receiver::serve(receiver, Arc::clone(&observed.store), forward.clone());
    let mut mesh = tokio::select! {
        mesh = Mesh::start(args.seed, otlp) => mesh?,
        () = ending.cancelled() => return Ok(ExitCode::from(130)),
    };
    page::serve(page, observed.clone(), mesh.shop_url().to_owned());
    screen.banner(&page_url, mesh.shop_url(), args.otlp.as_deref());

    let load = load::Settings {
        web_url: mesh.shop_url().to_owned(),
        rate: args.rate,
        seed: args.seed,
    };
    let died = observe(&mut mesh, load, &args, &observed, &forward, &mut screen, &ending).await?;

    let mut problems = Vec::new();
    if let Some(ended) = died {
        problems.push(ended.to_string());
    } else {
        last_spans(&observed).await;
    }
    problems.extend(mesh.stop().await.iter().map(ToString::to_string));
    if let Some(forward) = &forward {
        forward.flush().await;
        problems.extend(forward.trouble());
    }
    Ok(finish(&args, &observed, problems, &mut screen))
}

impl Observed {
    fn new() -> Self {
        let edges = plan::CALLS.iter().map(|call| Edge {
            from: call.from,
            to: call.to,
        });
        let calls = plan::CALLS.iter().map(|call| (call.from, call.to));
        Self {
            store: Arc::new(Mutex::new(Store::new(calls.collect()))),
            stats: Arc::new(Mutex::new(Stats::new(edges.collect()))),
        }
    }

    fn facts(&self, forward: &Option<Forward>) -> Facts {
        let store = self.store.lock();
        Facts {
            traces: store.count(),
            spans: store.spans(),
            peers: store.peers().len(),
            trouble: forward.as_ref().and_then(Forward::trouble).or_else(|| {
                self.stats
                    .lock()
                    .totals()
                    .last_failure
                    .map(|last| format!("a request failed: {last}"))
            }),
        }
    }
}

/// The load, to its end; each second the sidecars are asked and the status is drawn. Gives the child that ended, if one
/// did.
async fn observe(
    mesh: &mut Mesh,
    load: load::Settings,
    args: &Args,
    observed: &Observed,
    forward: &Option<Forward>,
    screen: &mut Screen,
    ending: &CancellationToken,
) -> anyhow::Result<Option<processes::Ended>> {
    let counts = mesh.counts().await?;
    observed.stats.lock().begin(&counts);
    let stop = CancellationToken::new();
    let (stats, stopped) = (Arc::clone(&observed.stats), stop.clone());
    let mut customers = tokio::spawn(async move {
        load::buy(&load, stopped.cancelled(), move |outcome| stats.lock().record(outcome)).await
    });
    let end = args.run_for.map(|run_for| Instant::now() + run_for);
    let over = async {
        match end {
            Some(end) => tokio::time::sleep_until(end).await,
            None => std::future::pending().await,
        }
    };
    let mut over = std::pin::pin!(over);
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    seconds.tick().await;
    let died = loop {
        tokio::select! {
            _ = seconds.tick() => {
                let counts = mesh.counts().await;
                match counts {
                    Ok(counts) => observed.stats.lock().sample(&counts),
                    // A sidecar that ended is told by `ended`, with more to say.
                    Err(error) => screen.say(&format!("a sidecar does not tell its metrics: {error:#}")),
                }
                let now = observed.stats.lock().now();
                screen.status(&now, &observed.facts(forward));
            }
            ended = mesh.ended() => break Some(ended),
            customers = &mut customers => {
                customers.context("the load broke off")?;
                anyhow::bail!("the load ended before its time");
            }
            () = &mut over => break None,
            () = ending.cancelled() => break None,
        }
    };
    stop.cancel();
    if died.is_none() {
        customers.await.context("the load broke off")?;
        let counts = mesh.counts().await?;
        observed.stats.lock().sample(&counts);
    }
    Ok(died)
}

/// Waits until each request's spans are there, or no more come.
async fn last_spans(observed: &Observed) {
    let mut deadline = Instant::now() + LAST_SPANS;
    let mut seen = 0;
    let complete = || {
        let requests = observed.stats.lock().totals().requests;
        let store = observed.store.lock();
        store.count() >= requests && store.newest().all(|trace| store.check(trace).is_ok())
    };
    while !complete() && Instant::now() < deadline {
        let spans = observed.store.lock().spans();
        if spans > seen {
            seen = spans;
            deadline = Instant::now() + LAST_SPANS;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn finish(args: &Args, observed: &Observed, mut problems: Vec<String>, screen: &mut Screen) -> ExitCode {
    let totals = observed.stats.lock().totals();
    let store = observed.store.lock();
    problems.extend(report::problems(&totals, &store));
    if let Some(longest) = store.longest() {
        screen.say("");
        screen.say(&format!("The longest trace, {}:", longest.id));
        screen.say(&format!("\n{}", report::waterfall(longest)));
    }
    screen.say(&format!(
        "{} requests: {} would have succeeded with one attempt, {} did with {} retries.",
        totals.requests,
        screen::percent(totals.success_before),
        screen::percent(totals.success_after()),
        totals.retries,
    ));
    for problem in &problems {
        eprintln!("error: {problem}");
    }
    if args.json {
        match serde_json::to_string_pretty(&report::Report::new(&totals, &store)) {
            Ok(json) => println!("{json}"),
            Err(error) => problems.push(error.to_string()),
        }
    }
    if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What a person or a shell does to end the demo.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> std::io::Result<Self> {
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
