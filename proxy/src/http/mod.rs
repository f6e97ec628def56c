//! HTTP as both directions need it: serving, pooled client connections, bodies, headers, and the record of an exchange.

pub mod body;
pub mod cause;
pub mod dials;
pub mod exchange;
mod executor;
pub mod expect;
pub mod framing;
pub mod grpc;
pub mod guard;
pub mod half_close;
pub mod headers;
pub mod limits;
pub mod multiplex;
pub mod pool;
pub mod respond;
pub mod send;
pub mod server;
pub mod upgrade;
pub mod waiting;

pub use body::{RequestBody, ResponseBody};
pub use cause::BoxError;
pub use exchange::Exchange;
