//! Takes the money, over gRPC. Slow some of the time.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::Request;
use tokio::sync::Mutex;
use tonic::codegen::Service;
use tonic::service::Routes;
use tonic::{Response, Status};

use crate::dice::{Dice, probability};
use crate::http;
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::health_server::{Health, HealthServer};
use crate::proto::health::{HealthCheckRequest, HealthCheckResponse};
use crate::proto::payments::payments_server::{Payments, PaymentsServer};
use crate::proto::payments::{ChargeReply, ChargeRequest};

#[derive(clap::Args, Debug)]
pub(crate) struct Settings {
    /// Address to listen on.
    #[arg(long, env = "SHOP_LISTEN", default_value = "[::]:8080")]
    listen: SocketAddr,
    /// Share of the charges that take longer.
    #[arg(long, env = "SHOP_SLOW_RATE", default_value = "0.1", value_parser = probability)]
    slow_rate: f64,
    /// How much longer, in milliseconds.
    #[arg(long, env = "SHOP_SLOW_MS", default_value_t = 150)]
    slow_ms: u64,
    /// Makes the slowness the same in every run.
    #[arg(long, env = "SHOP_SEED")]
    seed: Option<u64>,
}

/// Receipts are remembered for this many charges, so that a charge that is tried again is made once.
const REMEMBERED: usize = 10_000;

pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let listen = settings.listen;
    let dice = Dice::new(settings.seed);
    let cashier = Cashier {
        settings,
        dice,
        receipts: Mutex::default(),
    };
    let routes = Routes::new(PaymentsServer::new(cashier))
        .add_service(HealthServer::new(Healthy))
        .prepare();
    http::serve("payments", listen, move |request: Request<hyper::body::Incoming>| {
        let mut routes = routes.clone();
        async move {
            let response: Result<_, Infallible> = routes.call(request).await;
            let Ok(response) = response;
            response
        }
    })
    .await
}

struct Cashier {
    settings: Settings,
    dice: Dice,
    receipts: Mutex<Receipts>,
}

#[derive(Default)]
struct Receipts {
    by_key: HashMap<String, String>,
    oldest_first: VecDeque<String>,
}

impl Receipts {
    /// The receipt of this key; `new` is its receipt if there was none.
    fn of(&mut self, key: String, new: String) -> String {
        if let Some(receipt) = self.by_key.get(&key) {
            return receipt.clone();
        }
        if self.oldest_first.len() == REMEMBERED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.by_key.remove(&oldest);
        }
        self.oldest_first.push_back(key.clone());
        self.by_key.insert(key, new.clone());
        new
    }
}

#[tonic::async_trait]
impl Payments for Cashier {
    async fn charge(&self, request: tonic::Request<ChargeRequest>) -> Result<Response<ChargeReply>, Status> {
        let charge = request.into_inner();
        if charge.idempotency_key.is_empty() || charge.idempotency_key.len() > 256 {
            return Err(Status::invalid_argument("idempotency_key must have 1 to 256 bytes"));
        }
        if self.dice.roll(self.settings.slow_rate) {
            tokio::time::sleep(Duration::from_millis(self.settings.slow_ms)).await;
        }
        let new = format!("r-{:016x}", self.dice.word());
        let receipt = self.receipts.lock().await.of(charge.idempotency_key, new);
        Ok(Response::new(ChargeReply { receipt }))
    }
}

struct Healthy;

#[tonic::async_trait]
impl Health for Healthy {
    async fn check(&self, _: tonic::Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse {
            status: ServingStatus::Serving.into(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::{REMEMBERED, Receipts};

    #[test]
    fn a_key_is_charged_once_and_memory_is_bounded() {
        let mut receipts = Receipts::default();
        assert_eq!(receipts.of("a".to_owned(), "1".to_owned()), "1");
        assert_eq!(receipts.of("a".to_owned(), "2".to_owned()), "1");
        for n in 0..2 * REMEMBERED {
            receipts.of(format!("key {n}"), n.to_string());
        }
        assert_eq!(receipts.by_key.len(), REMEMBERED);
        assert_eq!(receipts.oldest_first.len(), REMEMBERED);
    }
}
