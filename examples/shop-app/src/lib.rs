//! A small shop: `web` takes a purchase, `orders` asks `inventory` (HTTP) what is in stock and has `payments` (gRPC) take
//! the money. `inventory` fails some of the time, and `payments` is slow some of the time.
//!
//! There is no retry, no TLS and no tracing library in here. All that the shop does for the mesh is what every app in
//! every mesh must do: it forwards the trace headers of the request that it works on ([`http::forwarded`]).

mod dice;
mod http;
mod inventory;
pub mod load;
mod orders;
mod payments;
mod web;

/// The protocol of `payments`.
#[allow(missing_docs, unreachable_pub, clippy::unwrap_used)] // generated; the documentation is in the .proto
mod proto {
    pub(crate) mod payments {
        include!("generated/shop.v1.rs");
    }
    pub(crate) mod health {
        include!("generated/grpc.health.v1.rs");
    }
}

/// One service of the shop, and how it is set.
#[derive(clap::Parser, Debug)]
#[command(
    name = "outrigger-shop",
    version,
    about = "The demo shop: small services that know nothing of the mesh."
)]
pub struct Args {
    #[command(subcommand)]
    service: Service,
}

#[derive(clap::Subcommand, Debug)]
enum Service {
    /// The page, and `POST /buy`. Calls orders.
    Web(web::Settings),
    /// `POST /orders`. Calls inventory, then payments.
    Orders(orders::Settings),
    /// `GET /stock/<item>`. Fails some of the time.
    Inventory(inventory::Settings),
    /// gRPC `shop.v1.Payments/Charge`. Slow some of the time.
    Payments(payments::Settings),
    /// Customers: buys at a constant rate, and prints how it went.
    Load(load::Settings),
}

/// Runs the service until SIGTERM or SIGINT, and then to the end of the requests in flight.
///
/// # Errors
/// A setting is wrong, or the address is taken.
pub async fn run(args: Args) -> anyhow::Result<()> {
    match args.service {
        Service::Web(settings) => web::run(settings).await,
        Service::Orders(settings) => orders::run(settings).await,
        Service::Inventory(settings) => inventory::run(settings).await,
        Service::Payments(settings) => payments::run(settings).await,
        Service::Load(settings) => load::run(settings).await,
    }
}
