//! What a connection of a client costs beside its buffers: the state of its task, and what that boxes. A future keeps room for
//! all that it may ever wait for, so what is rare or large is boxed, and these bounds tell when something is not.

use std::net::SocketAddr;
use std::rc::Rc;

use http::Request;
use outrigger_proxy_transport::body::ClientBody;
use outrigger_proxy_transport::client::Pool;
use outrigger_proxy_transport::drain::OpenConnection;
use outrigger_proxy_transport::net::{Io, Prefixed, Stream};
use outrigger_proxy_transport::room::Seat;
use outrigger_proxy_transport::server::HttpVersion;

use super::admit::{Admission, Carries};
use super::{Caller, State};
use crate::sizes::{assert_bounded, size};

type Open = &'static OpenConnection;

#[test]
fn of_connections_and_requests() {
    type Connection = (Rc<State>, Io, SocketAddr, Option<SocketAddr>, Seat);
    let connection = size(|(state, io, app, client, seat): Connection| super::carry(state, io, app, client, seat));

    type Admitted = (Rc<State>, Admission, Carries, Stream, Caller, Open);
    let admitted = size(|(state, admission, carries, stream, caller, open): Admitted| {
        super::serve_admitted(state, admission, carries, stream, caller, open)
    });
    type Silent = (&'static Rc<State>, Prefixed<Io>, &'static Caller, Open);
    let silent = size(|(state, io, caller, open): Silent| super::opaque::silent(state, io, caller, open));
    type Opaque = (&'static State, Stream, &'static Caller, Open);
    let opaque = size(|(state, stream, caller, open): Opaque| super::opaque::forward(state, stream, caller, open));
    type Handshake = (&'static State, Prefixed<Io>, Option<SocketAddr>, bool);
    let handshake =
        size(|(state, io, client, http_declared): Handshake| super::shake_hands(state, io, client, http_declared));

    type Call = (
        &'static Rc<State>,
        &'static Rc<Caller>,
        &'static Rc<Pool>,
        HttpVersion,
        Request<ClientBody>,
    );
    let request = size(|(state, caller, pool, version, request): Call| {
        super::request::handle(state, caller, pool, version, request)
    });
    assert_bounded(&[
        ("a connection", connection, 1344),
        ("one that is admitted", admitted, 2048),
        ("one that says nothing", silent, 1056),
        ("one of bytes", opaque, 960),
        ("a handshake", handshake, 3200),
        ("a request", request, 3088),
    ]);
}
