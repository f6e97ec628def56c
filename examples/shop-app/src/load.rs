//! Customers: buys at a constant rate, if the shop can keep up with it, and tells how it went.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::header::{HeaderMap, HeaderValue};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::dice::Dice;
use crate::http::{self, Upstream};

/// The shop holds as many customers at once as come in half a second, within these bounds. Who comes when it is full
/// waits at the door: a shop that is too slow for the rate gets a lower rate, and not a growing crowd.
const MIN_IN_FLIGHT: u32 = 16;
const MAX_IN_FLIGHT: u32 = 512;
const CATCH_UP: Duration = Duration::from_millis(250);
const MIN_RATE: f64 = 0.01;
const MAX_RATE: f64 = 10_000.0;
/// A customer's patience.
const TIMEOUT: Duration = Duration::from_secs(10);
const ITEMS: [&str; 4] = ["canoe", "float", "paddle", "sail"];

/// How the load is set.
#[derive(clap::Args, Clone, Debug)]
pub struct Settings {
    /// URL of web.
    #[arg(long, env = "SHOP_WEB_URL", default_value = "http://web:8080")]
    pub web_url: String,
    /// Requests a second, if the shop can keep up; 0.01 to 10,000.
    #[arg(long, env = "SHOP_RATE", default_value = "5", value_parser = rate)]
    pub rate: f64,
    /// Makes the customers' choices the same in every run.
    #[arg(long, env = "SHOP_SEED")]
    pub seed: Option<u64>,
}

/// How one purchase went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// From the request to the last byte of the response.
    pub latency: Duration,
    /// Why it failed, if it did.
    pub result: Result<(), String>,
}

/// Buys until `stop` completes, and then to the end of the purchases in flight.
pub async fn buy(settings: &Settings, stop: impl Future<Output = ()>, tell: impl Fn(Outcome) + Send + Sync + 'static) {
    let rate = settings.rate.clamp(MIN_RATE, MAX_RATE);
    let places = ((rate / 2.0) as u32).clamp(MIN_IN_FLIGHT, MAX_IN_FLIGHT);
    let customers = Arc::new(Customers {
        web: Upstream::new(&settings.web_url),
        dice: Dice::new(settings.seed),
        places: Arc::new(Semaphore::new(places as usize)),
        tell: Box::new(tell),
    });
    let period = Duration::from_secs_f64(1.0 / rate);
    let mut due = Instant::now();
    let mut stop = std::pin::pin!(stop);
    loop {
        let enter = async {
            tokio::time::sleep_until(due).await;
            Arc::clone(&customers.places).acquire_owned().await
        };
        let place = tokio::select! {
            place = enter => place,
            () = &mut stop => break,
        };
        // The rate is kept on average over a hiccup, and not over a long wait.
        due = (due + period).max(Instant::now() - CATCH_UP);
        let customers = Arc::clone(&customers);
        tokio::spawn(async move {
            (customers.tell)(customers.buy().await);
            drop(place);
        });
    }
    let _ = tokio::time::timeout(TIMEOUT, customers.places.acquire_many(places)).await;
}

/// Parses a number of requests a second.
///
/// # Errors
/// Says what it must be.
pub fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (MIN_RATE..=MAX_RATE).contains(&rate) => Ok(rate),
        _ => Err(format!(
            "the rate is a number from {MIN_RATE} to {MAX_RATE}, in requests a second"
        )),
    }
}

struct Customers {
    web: Upstream,
    dice: Dice,
    places: Arc<Semaphore>,
    tell: Box<dyn Fn(Outcome) + Send + Sync>,
}

impl Customers {
    async fn buy(&self) -> Outcome {
        let start = Instant::now();
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        if let Ok(key) = HeaderValue::try_from(format!("{:016x}", self.dice.word())) {
            headers.insert("idempotency-key", key);
        }
        let item = self.dice.pick(&ITEMS).copied().unwrap_or_default();
        let purchase = format!(r#"{{"item":"{item}"}}"#);
        let answer = tokio::time::timeout(TIMEOUT, self.web.send(Method::POST, "/buy", headers, purchase)).await;
        let result = match answer {
            Ok(Ok((status, _))) if status.is_success() => Ok(()),
            Ok(Ok((status, body))) => Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim())),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        Outcome {
            latency: start.elapsed(),
            result,
        }
    }
}

/// Prints a line every five seconds, until SIGTERM.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let (send, mut outcomes) = tokio::sync::mpsc::channel(2 * MAX_IN_FLIGHT as usize);
    let load = buy(&settings, http::terminated(), move |outcome| {
        let _ = send.try_send(outcome); // the printer below always keeps up
    });
    let print = async {
        let (mut total, mut failed) = (0_u64, 0_u64);
        let mut latencies = Latencies::default();
        let mut ticks = tokio::time::interval(Duration::from_secs(5));
        loop {
            tokio::select! {
                outcome = outcomes.recv() => match outcome {
                    Some(Outcome { latency, result }) => {
                        total += 1;
                        latencies.record(latency);
                        if let Err(reason) = result {
                            failed += 1;
                            tracing::warn!("a purchase failed: {reason}");
                        }
                    }
                    None => return,
                },
                _ = ticks.tick() => if total > 0 {
                    tracing::info!(
                        "{total} purchases, {failed} failed, {:.2} % succeeded; p50 {:.1} ms, p99 {:.1} ms",
                        100.0 * (total - failed) as f64 / total as f64,
                        latencies.percentile(50.0).as_secs_f64() * 1e3,
                        latencies.percentile(99.0).as_secs_f64() * 1e3,
                    );
                },
            }
        }
    };
    tokio::join!(load, print);
    Ok(())
}

/// Latencies in buckets that are 2 % wide, from 1 µs to beyond an hour: percentiles to 2 % in 10 KB, however many.
#[derive(Clone, Debug)]
pub struct Latencies {
    buckets: Vec<u64>,
    count: u64,
}

const GROWTH: f64 = 1.02;
const BUCKETS: usize = 1200;

impl Default for Latencies {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS],
            count: 0,
        }
    }
}

impl Latencies {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        let micros = (latency.as_secs_f64() * 1e6).max(1.0);
        let bucket = (micros.ln() / GROWTH.ln()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
        self.count += 1;
    }

    /// Counts all that `other` counted.
    pub fn add(&mut self, other: &Latencies) {
        self.buckets
            .iter_mut()
            .zip(&other.buckets)
            .for_each(|(mine, theirs)| *mine += theirs);
        self.count += other.count;
    }

    /// The latency that this share of the requests, 0 to 100, did not exceed. Zero while there are none.
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = (percent / 100.0 * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                // The middle of the bucket.
                return Duration::from_secs_f64(GROWTH.powf(bucket as f64 + 0.5) / 1e6);
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::Latencies;
    use std::time::Duration;

    #[test]
    fn percentiles_are_within_two_percent() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile(99.0), Duration::ZERO);
        for ms in 1..=1000 {
            latencies.record(Duration::from_millis(ms));
        }
        for (percent, ms) in [(50.0, 500.0), (99.0, 990.0), (100.0, 1000.0), (0.0, 1.0)] {
            let got = latencies.percentile(percent).as_secs_f64() * 1e3;
            assert!(
                (got / ms - 1.0).abs() < 0.02,
                "p{percent} is {got} ms instead of {ms} ms"
            );
        }
        latencies.record(Duration::ZERO);
        latencies.record(Duration::from_secs(1_000_000));
    }
}
