//! The health check of gRPC (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>), in plaintext, as kubelet
//! makes it.

use std::net::SocketAddr;

use http::StatusCode;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use outrigger_api::probes::GRPC_HEALTH;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::{Failure, Verdict, connect};

const SERVING: i32 = 1;
/// A response is a number.
const MAX_RESPONSE: usize = 64 * 1024;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks for the health of a service; of the server as a whole where it is empty.
pub(super) async fn check(service: &str, app: SocketAddr, agent: &str) -> Verdict {
    // A refused connection is told as such; tonic would hide it.
    let mut tcp = Some(connect(app).await?);
    let failed = |why: String| Failure {
        status: StatusCode::SERVICE_UNAVAILABLE,
        why: format!("the gRPC health check of {service:?} at {app} failed: {why}"),
    };
    let endpoint = Endpoint::from_shared(format!("http://{app}")).and_then(|endpoint| endpoint.user_agent(agent));
    let endpoint = endpoint.map_err(|error| failed(error.to_string()))?;
    let connector = tower::service_fn(move |_| {
        let tcp = tcp.take().ok_or_else(|| std::io::Error::other("the connection broke"));
        async { tcp.map(TokioIo::new) }
    });
    let channel = endpoint.connect_with_connector(connector).await;
    let channel = channel.map_err(|error| failed(error.to_string()))?;
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_RESPONSE);
    client.ready().await.map_err(|error| failed(error.to_string()))?;
    let request = Request::new(HealthCheckRequest {
        service: service.to_owned(),
    });
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let answer = client
        .unary(request, PathAndQuery::from_static(GRPC_HEALTH), codec)
        .await;
    match answer.map(|answer| answer.into_inner().status) {
        Ok(SERVING) => Ok(StatusCode::OK),
        Ok(status) => Err(failed(format!("its status is {}", name(status)))),
        Err(error) if error.code() == Code::Unimplemented => {
            Err(failed("the server does not have grpc.health.v1.Health".to_owned()))
        }
        Err(error) => Err(failed(format!("{:?}: {}", error.code(), error.message()))),
    }
}

fn name(status: i32) -> &'static str {
    match status {
        0 => "UNKNOWN",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "none that gRPC knows",
    }
}
