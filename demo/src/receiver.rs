//! Receives the sidecars' spans (OTLP over gRPC), keeps them for the page, and passes them on to the user's collector.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use super::traces::Store;

/// Requests that wait for the user's collector; what goes beyond is dropped and counted.
const QUEUE: usize = 256;
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the spans go besides the page, and how that goes.
#[derive(Clone)]
pub(super) struct Forward {
    queue: mpsc::Sender<ExportTraceServiceRequest>,
    state: Arc<ForwardState>,
}

#[derive(Default)]
struct ForwardState {
    failed: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Forward {
    /// Passes spans on to the collector at `url`, in the background.
    pub(super) fn start(url: &str) -> anyhow::Result<Self> {
        anyhow::ensure!(
            url.starts_with("http://"),
            "--otlp takes the URL of a collector's OTLP/gRPC port, like http://127.0.0.1:4317, and not {url:?}"
        );
        let endpoint = Endpoint::from_shared(url.to_owned()).with_context(|| format!("--otlp {url:?} is not a URL"))?;
        let channel = endpoint
            .connect_timeout(FORWARD_TIMEOUT)
            .timeout(FORWARD_TIMEOUT)
            .connect_lazy();
        let (queue, requests) = mpsc::channel(QUEUE);
        let state = Arc::<ForwardState>::default();
        tokio::spawn(forward(TraceServiceClient::new(channel), requests, Arc::clone(&state)));
        Ok(Self { queue, state })
    }

    /// What is wrong, if anything is.
    pub(super) fn trouble(&self) -> Option<String> {
        let failed = self.state.failed.load(Ordering::Relaxed);
        let error = self.state.last_error.lock().clone().unwrap_or_default();
        (failed > 0).then(|| format!("{failed} batches of spans did not reach the collector: {error}"))
    }

    fn send(&self, request: ExportTraceServiceRequest) {
        if self.queue.try_send(request).is_err() {
            self.state.failed.fetch_add(1, Ordering::Relaxed);
            self.state
                .last_error
                .lock()
                .get_or_insert_with(|| "it is too slow".to_owned());
        }
    }

    /// Waits, not for long, until everything is sent.
    pub(super) async fn flush(&self) {
        let everything = async { drop(self.queue.reserve_many(QUEUE).await) };
        let _ = tokio::time::timeout(FORWARD_TIMEOUT, everything).await;
    }
}

async fn forward(
    mut collector: TraceServiceClient<Channel>,
    mut requests: mpsc::Receiver<ExportTraceServiceRequest>,
    state: Arc<ForwardState>,
) {
    while let Some(request) = requests.recv().await {
        if let Err(status) = collector.export(request).await {
            state.failed.fetch_add(1, Ordering::Relaxed);
            *state.last_error.lock() = Some(status.message().to_owned());
        }
    }
}

/// Serves OTLP/gRPC until the runtime ends.
pub(super) fn serve(listener: TcpListener, store: Arc<Mutex<Store>>, forward: Option<Forward>) {
    let service = TraceServiceServer::new(Receiver { store, forward });
    tokio::spawn(async move {
        let served = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        if let Err(error) = served.await {
            eprintln!("the receiver of spans ended: {error}");
        }
    });
}

struct Receiver {
    store: Arc<Mutex<Store>>,
    forward: Option<Forward>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let request = request.into_inner();
        self.store.lock().add(&request);
        if let Some(forward) = &self.forward {
            forward.send(request);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
