//! What is in stock, and what it costs. Fails some of the time, as services do.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::dice::{Dice, probability};
use crate::http;

#[derive(clap::Args, Debug)]
pub(crate) struct Settings {
    /// Address to listen on.
    #[arg(long, env = "SHOP_LISTEN", default_value = "[::]:8080")]
    listen: SocketAddr,
    /// Share of the requests that are answered 503, before any work is done.
    #[arg(long, env = "SHOP_FAILURE_RATE", default_value = "0.15", value_parser = probability)]
    failure_rate: f64,
    /// Makes the failures the same in every run.
    #[arg(long, env = "SHOP_SEED")]
    seed: Option<u64>,
}

/// What `GET /stock/<item>` answers.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Stock {
    pub(crate) item: String,
    pub(crate) cents: u64,
    pub(crate) in_stock: u32,
}

/// Item, price in cents, pieces in stock.
const CATALOGUE: [(&str, u64, u32); 4] = [
    ("canoe", 249_900, 4),
    ("float", 18_900, 12),
    ("paddle", 7_900, 40),
    ("sail", 64_900, 7),
];

pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let dice = Arc::new(Dice::new(settings.seed));
    http::serve("inventory", settings.listen, move |request| {
        let response = answer(&request, || dice.roll(settings.failure_rate));
        async { response }
    })
    .await
}

fn answer(request: &Request<Incoming>, fails: impl FnOnce() -> bool) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") => http::respond(StatusCode::OK, "text/plain", "ok\n"),
        (&Method::GET, path) if path.starts_with("/stock/") => {
            if fails() {
                return http::failure(StatusCode::SERVICE_UNAVAILABLE, "the warehouse does not answer");
            }
            match CATALOGUE
                .iter()
                .find(|(item, ..)| path.strip_prefix("/stock/") == Some(item))
            {
                Some(&(item, cents, in_stock)) => http::json(
                    StatusCode::OK,
                    &Stock {
                        item: item.to_owned(),
                        cents,
                        in_stock,
                    },
                ),
                None => http::failure(StatusCode::NOT_FOUND, "the shop does not have this item"),
            }
        }
        _ => http::failure(StatusCode::NOT_FOUND, "try GET /stock/paddle"),
    }
}
