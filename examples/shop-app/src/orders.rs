//! Takes an order: asks inventory for the price, and has payments take the money.

use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

use crate::http::{self, Upstream};
use crate::inventory::Stock;
use crate::proto::payments::ChargeRequest;
use crate::proto::payments::payments_client::PaymentsClient;

#[derive(clap::Args, Debug)]
pub(crate) struct Settings {
    /// Address to listen on.
    #[arg(long, env = "SHOP_LISTEN", default_value = "[::]:8080")]
    listen: SocketAddr,
    /// URL of inventory.
    #[arg(long, env = "SHOP_INVENTORY_URL", default_value = "http://inventory:8080")]
    inventory_url: String,
    /// URL of payments (gRPC).
    #[arg(long, env = "SHOP_PAYMENTS_URL", default_value = "http://payments:8080")]
    payments_url: String,
}

/// The body of `POST /orders`.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Order {
    pub(crate) item: String,
}

/// What `POST /orders` answers.
#[derive(Debug, Deserialize, Serialize)]
struct Confirmation {
    item: String,
    cents: u64,
    receipt: String,
}

pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let payments = Endpoint::from_shared(settings.payments_url).context("--payments-url is not a URL")?;
    let desk = Desk {
        inventory: Upstream::new(&settings.inventory_url),
        payments: PaymentsClient::new(payments.connect_lazy()),
    };
    http::serve("orders", settings.listen, move |request| {
        let desk = desk.clone();
        async move { desk.answer(request).await }
    })
    .await
}

#[derive(Clone)]
struct Desk {
    inventory: Upstream,
    payments: PaymentsClient<Channel>,
}

impl Desk {
    async fn answer(mut self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/healthz") => http::respond(StatusCode::OK, "text/plain", "ok\n"),
            (&Method::POST, "/orders") => self.order(request).await.unwrap_or_else(|failure| failure),
            _ => http::failure(StatusCode::NOT_FOUND, "try POST /orders"),
        }
    }

    async fn order(&mut self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        let bad_request = |message: String| http::failure(StatusCode::BAD_REQUEST, &message);
        let Some(key) = head.headers.get("idempotency-key").and_then(|key| key.to_str().ok()) else {
            return Err(bad_request("an order needs an Idempotency-Key".to_owned()));
        };
        let body = http::read(body).await.map_err(|error| bad_request(error.to_string()))?;
        let order: Order = serde_json::from_slice(&body).map_err(|error| bad_request(error.to_string()))?;
        let trace = http::forwarded(&head.headers);
        let stock = self.stock(&order.item, &trace).await?;
        let receipt = self.charge(key, stock.cents, trace).await?;
        Ok(http::json(
            StatusCode::OK,
            &Confirmation {
                item: stock.item,
                cents: stock.cents,
                receipt,
            },
        ))
    }

    async fn stock(&self, item: &str, trace: &HeaderMap) -> Result<Stock, Response<Full<Bytes>>> {
        let unavailable = |message: String| http::failure(StatusCode::SERVICE_UNAVAILABLE, &message);
        if !item.bytes().all(|b| b.is_ascii_lowercase()) {
            return Err(http::failure(StatusCode::BAD_REQUEST, "an item is a word of a to z"));
        }
        let answer = self
            .inventory
            .send(Method::GET, &format!("/stock/{item}"), trace.clone(), "")
            .await;
        match answer {
            Ok((StatusCode::OK, body)) => {
                serde_json::from_slice(&body).map_err(|error| unavailable(format!("inventory: {error}")))
            }
            Ok((StatusCode::NOT_FOUND, _)) => Err(http::failure(StatusCode::NOT_FOUND, "there is no such item")),
            Ok((status, _)) => Err(unavailable(format!("inventory answered {status}"))),
            Err(error) => Err(unavailable(format!("inventory: {error:#}"))),
        }
    }

    async fn charge(&mut self, key: &str, cents: u64, trace: HeaderMap) -> Result<String, Response<Full<Bytes>>> {
        let charge = ChargeRequest {
            idempotency_key: key.to_owned(),
            cents,
        };
        let mut request = tonic::Request::new(charge);
        *request.metadata_mut() = MetadataMap::from_headers(trace);
        match self.payments.charge(request).await {
            Ok(reply) => Ok(reply.into_inner().receipt),
            Err(status) => {
                let message = format!("payments: {:?}: {}", status.code(), status.message());
                Err(http::failure(StatusCode::SERVICE_UNAVAILABLE, &message))
            }
        }
    }
}
