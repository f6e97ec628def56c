//! What a connection of a client costs beside its buffers: the state of its task, and what that boxes. A future keeps room for
//! all that it may ever wait for, so what is rare or large is boxed, and these bounds tell when something is not.

use std::net::SocketAddr;
use std::rc::Rc;

use http::Request;
use outrigger_proxy_transport::body::ClientBody;
use outrigger_proxy_transport::client::Pool;
use outrigger_proxy_transport::drain::OpenConnection;
use outrigger_proxy_transport::net::detect::Detected;
use outrigger_proxy_transport::net::{Io, Prefixed, Stream};
use outrigger_proxy_transport::room::Seat;
use outrigger_proxy_transport::server::HttpVersion;

use super::{Caller, Counted, State};

/// Bytes of the future that `make` gives, which nobody calls.
fn size<A, F: Future>(_make: impl FnOnce(A) -> F) -> usize {
    size_of::<F>()
}

type Open = &'static OpenConnection;

#[test]
fn of_connections_and_requests() {
    type Connection = (Rc<State>, Io, SocketAddr, Option<SocketAddr>, Seat);
    let connection = size(|(state, io, app, client, seat): Connection| super::carry(state, io, app, client, seat));

    type Peer = (Rc<State>, Prefixed<Io>, Caller, Open, Counted);
    let peer = size(|(state, io, caller, open, counted): Peer| super::terminate(state, io, caller, open, counted));
    type Plain = (Rc<State>, Prefixed<Io>, Detected, Caller, Open);
    let plain = size(|(state, io, detected, caller, open): Plain| super::plaintext(state, io, detected, caller, open));
    type Silent = (&'static Rc<State>, Prefixed<Io>, SocketAddr, Open);
    let silent = size(|(state, io, app, open): Silent| super::silent(state, io, app, open));
    type Opaque = (&'static Rc<State>, Stream, SocketAddr, Open);
    let opaque = size(|(state, stream, app, open): Opaque| super::forward(state, stream, app, open));
    type Handshake = (&'static State, Prefixed<Io>, Option<SocketAddr>);
    let handshake = size(|(state, io, client): Handshake| super::shake_hands(state, io, client));

    type Call = (
        &'static Rc<State>,
        &'static Caller,
        &'static Rc<Pool>,
        HttpVersion,
        Request<ClientBody>,
    );
    let request = size(|(state, caller, pool, version, request): Call| {
        super::request::handle(state, caller, pool, version, request)
    });
    for (what, size, most) in [
        ("a connection", connection, 1664),
        ("a peer's, in mutual TLS", peer, 2048),
        ("one in plaintext", plain, 1984),
        ("one that says nothing", silent, 960),
        ("one of bytes", opaque, 768),
        ("a handshake", handshake, 3200),
        ("a request", request, 3520),
    ] {
        // Far below it, the bound would let it grow.
        let room = most * 3 / 4..=most;
        assert!(
            room.contains(&size),
            "{what} takes {size} bytes, and {most} are written here"
        );
    }
}
