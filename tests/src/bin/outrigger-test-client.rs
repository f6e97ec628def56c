//! A client that the cluster's tests run in pods: it sends requests at a constant rate for a time, and prints one JSON object
//! that says how they went. It ends by itself, so it is the app of a Job, too; or after SIGTERM, like an app that has something
//! to do before it goes. With `--serve` it is an app that kubelet asks instead.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use outrigger_tests::probed::{Probed, Speaks};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

const USAGE: &str = "usage: outrigger-test-client [--for SECONDS] [--rate PER_SECOND] [--method M] [--body TEXT] \
                     [--header NAME:VALUE]... [--watch RESPONSE_HEADER] [--trace yes] [--linger SECONDS] URL\n\
                     or:    outrigger-test-client --serve KIND=PORT[,KIND=PORT]... (http, https, grpc, nothing)";
/// Where kubelet reads a container's last words; they outlive the pod's logs.
const LAST_WORDS: &str = "/dev/termination-log";
/// Longer than any time limit of the mesh, so that the mesh is what answers.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|argument| argument == "--serve").is_some() {
        return serve(&arguments.next().context(USAGE)?).await;
    }
    let settings = Arc::new(Settings::parse(arguments)?);
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(10))
        .build_http();
    let report = Arc::new(Mutex::new(Report::default()));
    let mut ticks = tokio::time::interval(settings.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut tasks = tokio::task::JoinSet::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut end = pin!(async {
        terminate.recv().await;
        tokio::time::sleep(settings.linger).await;
    });
    let began = now_ms();
    for _ in 0..settings.requests {
        tokio::select! {
            _ = ticks.tick() => {}
            () = &mut end => break,
        }
        let (settings, client, report) = (Arc::clone(&settings), client.clone(), Arc::clone(&report));
        tasks.spawn(async move {
            let began = now_ms();
            let outcome = send(&settings, &client).await;
            if let Ok(mut report) = report.lock() {
                report.add(began, outcome);
            }
        });
    }
    let lasted_ms = now_ms() - began;
    tasks.join_all().await;
    let mut report = report.lock().map_err(|_| anyhow::anyhow!("a request panicked"))?;
    report.lasted_ms = lasted_ms;
    let report = serde_json::to_string(&*report)?;
    println!("{report}");
    // Outside a pod there is no such file, and none is made.
    if let Ok(mut file) = OpenOptions::new().write(true).open(LAST_WORDS) {
        file.write_all(report.as_bytes())?;
    }
    // Not by returning: that would wait for names that are still being resolved.
    std::process::exit(0)
}

/// Serves until SIGTERM.
async fn serve(list: &str) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut apps = Vec::new();
    for element in list.split(',') {
        let (kind, port) = element.split_once('=').context(USAGE)?;
        let speaks = match kind {
            "http" => Speaks::Http,
            "https" => Speaks::Https,
            "grpc" => Speaks::Grpc,
            "nothing" => Speaks::Nothing,
            _ => bail!(USAGE),
        };
        apps.push(Probed::start((Ipv4Addr::UNSPECIFIED, port.parse()?).into(), speaks).await);
    }
    terminate.recv().await;
    Ok(())
}

struct Settings {
    requests: u32,
    period: Duration,
    method: Method,
    body: Bytes,
    headers: Vec<(HeaderName, HeaderValue)>,
    watch: Option<HeaderName>,
    /// Each request is the beginning of a trace that is recorded.
    trace: bool,
    /// How long it goes on after SIGTERM.
    linger: Duration,
    url: String,
}

impl Settings {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let (mut seconds, mut rate) = (0.0, 1.0);
        let mut settings = Self {
            requests: 1,
            period: Duration::from_secs(1),
            method: Method::GET,
            body: Bytes::new(),
            headers: Vec::new(),
            watch: None,
            trace: false,
            linger: Duration::ZERO,
            url: String::new(),
        };
        while let Some(arg) = args.next() {
            if !arg.starts_with("--") {
                settings.url = arg;
                continue;
            }
            let value = args.next().with_context(|| format!("{arg} needs a value\n{USAGE}"))?;
            match arg.as_str() {
                "--for" => seconds = value.parse()?,
                "--rate" => rate = value.parse()?,
                "--method" => settings.method = value.parse()?,
                "--body" => settings.body = value.into(),
                "--watch" => settings.watch = Some(value.parse()?),
                "--linger" => settings.linger = Duration::from_secs_f64(value.parse()?),
                "--trace" => settings.trace = value == "yes",
                "--header" => {
                    let (name, value) = value.split_once(':').context(USAGE)?;
                    settings.headers.push((name.parse()?, value.trim().parse()?));
                }
                _ => bail!(USAGE),
            }
        }
        if settings.url.is_empty() || !(0.1..=1000.0).contains(&rate) || !(0.0..=600.0).contains(&seconds) {
            bail!(USAGE);
        }
        settings.requests = ((seconds * rate) as u32).max(1);
        settings.period = Duration::from_secs_f64(1.0 / rate);
        Ok(settings)
    }
}

/// How all the requests went.
#[derive(Default, Serialize)]
struct Report {
    requests: u64,
    /// Answered 2xx.
    succeeded: u64,
    /// Why the others failed, and how often.
    failures: BTreeMap<String, u64>,
    /// When the first and the last request that failed were sent (Unix time).
    failed: Option<(u64, u64)>,
    /// Each value of the watched response header: when the first and the last request that got it were sent (Unix time).
    seen: BTreeMap<String, (u64, u64)>,
    lasted_ms: u64,
    slowest_ms: u64,
}

impl Report {
    fn add(&mut self, began: u64, outcome: Result<Option<String>, String>) {
        self.requests += 1;
        if outcome.is_err() {
            let (first, last) = self.failed.unwrap_or((began, began));
            self.failed = Some((first.min(began), last.max(began)));
        }
        self.slowest_ms = self.slowest_ms.max(now_ms() - began);
        match outcome {
            Ok(seen) => {
                self.succeeded += 1;
                let times = self.seen.entry(seen.unwrap_or_default()).or_insert((began, began));
                *times = (times.0.min(began), times.1.max(began));
            }
            // As many reasons as a person would read.
            Err(reason) if self.failures.len() < 20 || self.failures.contains_key(&reason) => {
                *self.failures.entry(reason).or_default() += 1;
            }
            Err(_) => *self.failures.entry("other".to_owned()).or_default() += 1,
        }
    }
}

async fn send(settings: &Settings, client: &Client<HttpConnector, Full<Bytes>>) -> Result<Option<String>, String> {
    let mut request = Request::new(Full::new(settings.body.clone()));
    *request.method_mut() = settings.method.clone();
    *request.uri_mut() = settings.url.parse().map_err(|e| format!("{e}"))?;
    request.headers_mut().extend(settings.headers.iter().cloned());
    if settings.trace {
        let (trace, span) = (rand::random::<u128>() | 1, rand::random::<u64>() | 1);
        let context = format!("00-{trace:032x}-{span:016x}-01");
        let context = HeaderValue::try_from(context).map_err(|e| format!("{e}"))?;
        request.headers_mut().insert("traceparent", context);
    }
    let exchange = async {
        let (head, body) = client.request(request).await?.into_parts();
        anyhow::Ok((head, body.collect().await?.to_bytes()))
    };
    let (head, body) = match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(Ok(response)) => response,
        Ok(Err(e)) => return Err(format!("{e:#}")),
        Err(_) => return Err(format!("no answer within {PATIENCE:?}")),
    };
    let header = |name: &HeaderName| head.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    if head.status.is_success() {
        return Ok(settings.watch.as_ref().and_then(header));
    }
    let code = header(&HeaderName::from_static("outrigger-error")).unwrap_or_default();
    let body = String::from_utf8_lossy(&body).chars().take(160).collect::<String>();
    Err(format!("{} {code} {}", head.status.as_u16(), body.trim()))
}

fn now_ms() -> u64 {
    // Before 1970: not on a machine that has certificates that are valid.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}
