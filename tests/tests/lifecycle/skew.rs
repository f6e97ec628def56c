//! A sidecar of the version before: what it asked when it was recorded, asked of today's controller, and what it reads in the
//! answer. `tests/skew/run` does the same with the programs themselves.

use std::fs;
use std::marker::PhantomData;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use outrigger_controller::objects::policy::{Policy, PolicyKind};
use outrigger_controller::objects::route::{Route, RouteKind};
use outrigger_controller::objects::{Object, from_k8s};
use outrigger_tests::mesh::{Authority, TRUST_DOMAIN, id};
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::tcp::hostile::client;

include!("../../skew/cluster.rs");

fn policy(object: &DynamicObject) -> Object {
    Object::Policy(Box::new(Policy::read(PolicyKind::Traffic, object)))
}

/// The messages as that version knows them.
#[allow(clippy::all, clippy::pedantic, dead_code, unreachable_pub, missing_docs)] // generated
mod old {
    include!(concat!(env!("OUT_DIR"), "/outrigger.discovery.v1.rs"));
}

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn a_sidecar_of_the_version_before_reads_what_it_always_read() {
    let index = index(include_str!("../../skew/objects.yaml"), TRUST_DOMAIN);
    let authority = Authority::with_discovery(&[ACCOUNT], DAY, Some(index)).await;
    let channel = channel(&authority).await;
    for (name, address) in ADDRESSES {
        let request = recorded(&format!("{name}.request"));
        assert_eq!(old::WatchTargetRequest::decode(&request[..]).unwrap().address, address);
        let answer: old::Target = ask(&channel, "WatchTarget", request).await;
        let then = old::Target::decode(&recorded(&format!("{name}.target"))[..]).unwrap();
        assert_eq!(answer, then, "{name}");
    }
    let answer: old::Workload = ask(&channel, "WatchWorkload", recorded("workload.request")).await;
    assert_eq!(answer, old::Workload::decode(&recorded("workload")[..]).unwrap());
    assert_eq!(
        old::WatchWorkloadRequest::decode(&recorded("workload.request")[..])
            .unwrap()
            .pod,
        POD
    );
    assert_eq!(NAMESPACE, "shop");
}

fn recorded(name: &str) -> Bytes {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("skew/recorded").join(name);
    fs::read(file).unwrap().into()
}

/// The first answer to a request, both as they are on the wire.
async fn ask<M: Message + Default + 'static>(channel: &Channel, method: &str, request: Bytes) -> M {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::try_from(format!("/outrigger.discovery.v1.Discovery/{method}")).unwrap();
    let answers = client
        .server_streaming(Request::new(request), path, Recorded(PhantomData))
        .await;
    let answer = answers.unwrap().into_inner().message().await;
    answer.unwrap().unwrap()
}

/// Requests are bytes, and answers are read.
struct Recorded<M>(PhantomData<M>);

impl<M: Message + Default + 'static> Codec for Recorded<M> {
    type Encode = Bytes;
    type Decode = M;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(PhantomData)
    }

    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl<M> Encoder for Recorded<M> {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl<M: Message + Default> Decoder for Recorded<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        M::decode(bytes).map(Some).map_err(|e| Status::internal(e.to_string()))
    }
}

/// With the SVID of the pod that asks. Who the controller is, is another test's.
async fn channel(authority: &Authority) -> Channel {
    let svid = authority.ca().issue(&id(ACCOUNT), DAY).unwrap();
    let config = client(Some((svid.chain, svid.key)), &["h2"]);
    let (connector, address) = (tokio_rustls::TlsConnector::from(config), authority.address());
    let connect = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let name = ServerName::try_from("controller.invalid").unwrap();
            let stream = TcpStream::connect(address).await?;
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    let endpoint = Endpoint::from_static("http://controller.invalid");
    endpoint.connect_with_connector(connect).await.unwrap()
}
