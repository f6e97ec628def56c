//! What the customer sees: a page, and `POST /buy`.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;

use crate::dice::Dice;
use crate::http::{self, Upstream};
use crate::orders::Order;

#[derive(clap::Args, Debug)]
pub(crate) struct Settings {
    /// Address to listen on.
    #[arg(long, env = "SHOP_LISTEN", default_value = "[::]:8080")]
    listen: SocketAddr,
    /// URL of orders.
    #[arg(long, env = "SHOP_ORDERS_URL", default_value = "http://orders:8080")]
    orders_url: String,
}

/// The body of `POST /buy`.
#[derive(Debug, Deserialize)]
struct Purchase {
    item: String,
}

pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let counter = Arc::new(Counter {
        orders: Upstream::new(&settings.orders_url),
        dice: Dice::new(None),
    });
    http::serve("web", settings.listen, move |request| {
        let counter = Arc::clone(&counter);
        async move { counter.answer(request).await }
    })
    .await
}

struct Counter {
    orders: Upstream,
    dice: Dice,
}

impl Counter {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/") => http::respond(StatusCode::OK, "text/html; charset=utf-8", include_str!("web.html")),
            (&Method::GET, "/healthz") => http::respond(StatusCode::OK, "text/plain", "ok\n"),
            (&Method::POST, "/buy") => self.buy(request).await,
            _ => http::failure(StatusCode::NOT_FOUND, "try GET / or POST /buy"),
        }
    }

    async fn buy(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let purchase: Result<Purchase, String> = match http::read(body).await {
            Ok(body) => serde_json::from_slice(&body).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let item = match purchase {
            Ok(Purchase { item }) => item,
            Err(message) => return http::failure(StatusCode::BAD_REQUEST, &message),
        };
        let mut headers = http::forwarded(&head.headers);
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        headers.insert("idempotency-key", self.key(&head.headers));
        let order = serde_json::to_vec(&Order { item }).unwrap_or_default();
        match self.orders.send(Method::POST, "/orders", headers, order).await {
            Ok((status, body)) => {
                let mut response = http::respond(status, "application/json", body);
                // The page shows it, so that the trace of a purchase can be looked up.
                if let Some(trace) = head.headers.get("traceparent") {
                    response.headers_mut().insert("x-shop-traceparent", trace.clone());
                }
                response
            }
            Err(error) => http::failure(StatusCode::BAD_GATEWAY, &format!("orders: {error:#}")),
        }
    }

    /// The customer's own key, so that a purchase that is sent twice is made once; else a new one.
    fn key(&self, request: &HeaderMap) -> HeaderValue {
        let own = request.get("idempotency-key").cloned();
        own.or_else(|| HeaderValue::try_from(format!("{:016x}", self.dice.word())).ok())
            // Hexadecimal digits are a header value.
            .unwrap_or(HeaderValue::from_static("0"))
    }
}
