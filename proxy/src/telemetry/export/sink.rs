//! The collector, spoken to by OTLP over gRPC or HTTP.

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::dial::Dial;
use crate::dns::Resolver;
use crate::telemetry::{TracingConfig, TracingProtocol};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read of a collector's answer.
const MAX_ANSWER: usize = 64 * 1024;

/// Where batches go.
pub(super) enum Sink {
    Grpc(TraceServiceClient<Channel>),
    Http(Http),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SinkError {
    /// Another attempt may work.
    #[error("{0}")]
    Unavailable(String),
    /// The collector will never take this batch.
    #[error("the collector refused the spans: {0}")]
    Refused(String),
}

impl Sink {
    /// Nothing is resolved or connected yet.
    pub(super) fn new(config: &TracingConfig, resolver: Resolver) -> Result<Self, String> {
        let endpoint = &config.endpoint;
        let dial = Dial::new(config, resolver)?;
        Ok(match config.protocol {
            TracingProtocol::Grpc => {
                let connector = tower::service_fn(move |_: Uri| {
                    let dial = dial.clone();
                    async move { dial.connect().await.map(TokioIo::new) }
                });
                // The connector begins TLS, and requests say the scheme that the user sees (RFC 9113 section 8.3.1).
                let channel = Endpoint::from_static("http://collector")
                    .origin(endpoint.clone())
                    .timeout(REQUEST_TIMEOUT)
                    .connect_timeout(CONNECT_TIMEOUT)
                    .connect_with_connector_lazy(connector);
                Sink::Grpc(TraceServiceClient::new(channel))
            }
            TracingProtocol::Http => Sink::Http(Http {
                dial,
                target: format!("{}/v1/traces", endpoint.path().trim_end_matches('/')),
                host: HeaderValue::from_str(endpoint.authority().map_or("", |authority| authority.as_str()))
                    .map_err(|_| format!("the tracing endpoint {endpoint} has no usable host"))?,
                connection: None,
            }),
        })
    }

    /// Sends one batch, and says how many of its spans the collector did not want.
    pub(super) async fn send(&mut self, request: &ExportTraceServiceRequest) -> Result<usize, SinkError> {
        let answer = match self {
            Sink::Grpc(client) => match client.export(request.clone()).await {
                Ok(answer) => answer.into_inner(),
                Err(status) => return Err(grpc_error(&status)),
            },
            Sink::Http(http) => timeout(REQUEST_TIMEOUT, http.send(request))
                .await
                .map_err(|_| SinkError::Unavailable("no answer in time".into()))
                .flatten()
                .inspect_err(|_| http.connection = None)?,
        };
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(usize::try_from(rejected).unwrap_or(0))
    }
}

/// Retryable or not, as OTLP says (specification, "Failures").
fn grpc_error(status: &tonic::Status) -> SinkError {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    // Why there is no connection is behind that.
    let mut source = status.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::Unknown
        | Code::DataLoss => SinkError::Unavailable(text),
        _ => SinkError::Refused(text),
    }
}

/// OTLP over HTTP/1.1 with one connection that is kept.
pub(super) struct Http {
    dial: Dial,
    target: String,
    host: HeaderValue,
    connection: Option<http1::SendRequest<Full<Bytes>>>,
}

impl Http {
    async fn send(&mut self, batch: &ExportTraceServiceRequest) -> Result<ExportTraceServiceResponse, SinkError> {
        let unavailable = |error: &dyn std::fmt::Display| SinkError::Unavailable(error.to_string());
        let kept = match self.connection.take() {
            Some(mut kept) => kept.ready().await.is_ok().then_some(kept),
            None => None,
        };
        let mut connection = match kept {
            Some(kept) => kept,
            None => self.connect().await.map_err(|error| unavailable(&error))?,
        };
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.target)
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(Full::new(Bytes::from(batch.encode_to_vec())))
            .map_err(|error| SinkError::Refused(error.to_string()))?;
        let answer = connection
            .send_request(request)
            .await
            .map_err(|error| unavailable(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| unavailable(&error))?.to_bytes();
        self.connection = Some(connection);
        match status {
            // What an odd collector answers beside its 200 is no reason to send the spans again.
            _ if status.is_success() => Ok(ExportTraceServiceResponse::decode(body).unwrap_or_default()),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Err(unavailable(&status)),
            _ => Err(SinkError::Refused(status.to_string())),
        }
    }

    async fn connect(&self) -> io::Result<http1::SendRequest<Full<Bytes>>> {
        let stream = timeout(CONNECT_TIMEOUT, self.dial.connect())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the collector ended");
            }
        });
        Ok(sender)
    }
}
