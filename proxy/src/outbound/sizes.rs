//! What a connection of the app costs beside its buffers, as `inbound::sizes` has it for those of clients.

use std::rc::Rc;

use http::Request;
use outrigger_proxy_transport::body::ClientBody;
use outrigger_proxy_transport::net::{Io, Prefixed};
use outrigger_proxy_transport::room::Seat;
use outrigger_proxy_transport::server::HttpVersion;
use tokio::net::TcpStream;

use super::State;
use super::connect::EndpointDialer;
use super::target::WorkerTarget;
use crate::discovery::TargetKey;
use crate::identity::MeshProtocol;
use crate::sizes::{assert_bounded, size};

#[test]
fn of_connections_and_requests() {
    type Connection = (Rc<State>, TcpStream, TargetKey, Seat);
    let connection = size(|(state, stream, key, seat): Connection| super::carry(state, stream, key, seat));
    type Opaque = (&'static Rc<State>, Prefixed<Io>, &'static WorkerTarget);
    let opaque = size(|(state, io, target): Opaque| super::opaque::forward(state, io, target, None));

    type Call = (
        &'static Rc<State>,
        &'static Rc<WorkerTarget>,
        HttpVersion,
        Request<ClientBody>,
    );
    let request = size(|(state, target, version, request): Call| super::handle(state, target, version, request));
    let dial = size(|dialer: &'static EndpointDialer<'static>| dialer.connect_for(MeshProtocol::Http1));
    assert_bounded(&[
        ("a connection", connection, 2568),
        ("one of bytes", opaque, 1184),
        ("a request", request, 3960),
        ("a connection that is made", dial, 192),
    ]);
}
