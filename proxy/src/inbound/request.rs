//! One request to the app: it begins, passes its rules, is sent, and is responded to.

mod plaintext;

use std::rc::Rc;

use http::request::Parts;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use outrigger_proxy_transport::body::{BodySource, ClientBody, RequestBody};
use outrigger_proxy_transport::client::{Checkout, Failure, Lease, Pool, send};
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::grpc;
use outrigger_proxy_transport::headers::{
    named_for_this_hop, strip_hop_by_hop, strip_ours, strip_response, wants_upgrade,
};
use outrigger_proxy_transport::server::{HttpVersion, ResponseBody, check, upgrade};

use super::access::{AccessRule, Beside, Subject};
use super::apps::AppDialer;
use super::limits::{Left, LimitRule};
use super::{Caller, State};
use crate::call::{Call, Callee, LocalReply, Remote};
use crate::context::Context;
use crate::telemetry::Peer;
use plaintext::PlaintextRule;

/// What is kept of a body while its connection to the app may turn out to be a stale one.
const REPLAY: usize = 64 * 1024;

/// What holds for every request to the app: each is a field here, and a line in [`apply_rules`].
pub(super) struct RequestRules {
    plaintext: PlaintextRule,
    /// For connections of bytes as well.
    pub(super) access: AccessRule,
    pub(super) limits: LimitRule,
}

impl RequestRules {
    /// As the configuration and the controller say.
    pub(super) fn new(context: &Context) -> Self {
        Self {
            plaintext: PlaintextRule::new(context.config()),
            access: AccessRule::new(context),
            limits: LimitRule::new(context),
        }
    }
}

/// Answers a request.
pub(super) async fn handle(
    state: &Rc<State>,
    caller: &Rc<Caller>,
    pool: &Rc<Pool>,
    version: HttpVersion,
    mut request: Request<ClientBody>,
) -> Response<ResponseBody> {
    let upgrade = wants_upgrade(request.method(), request.headers()).then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    let keeps_upgrade = upgrade.is_some() && version == HttpVersion::Http1;
    let is_bare = body.is_end_stream() && upgrade.is_none();
    let facts = Facts {
        caller,
        is_probe: state.rules.plaintext.is_probe(caller, &head, is_bare, keeps_upgrade),
        keeps_upgrade,
    };
    let mut call = begin(state, &facts, &mut head, &body);
    let (beside, left) = match apply_rules(&state.rules, &facts, &mut head, &mut call).await {
        Ok(admitted) => admitted,
        Err(reply) => return call.reply(reply),
    };
    let upgrade = upgrade.map(|client| {
        let begun = Box::new(Begun {
            head: head.clone(),
            beside,
        });
        Upgrade { client, begun }
    });

    // Behind all that removes what others say of it, and that looks at what they say.
    caller.introduction.write(&mut head.headers);
    call.propagate(&mut head.headers);
    match send_to_app(&state.rules.access, caller, pool, version, head, body, &call).await {
        Ok((response, lease)) => respond(state, caller, call, response, left, lease, upgrade),
        Err(error) => call.fail(&error),
    }
}

/// A request for another protocol.
struct Upgrade {
    client: OnUpgrade,
    begun: Box<Begun>,
}

/// What a tunnel began with: policies that change are asked about it again. It is what they were asked about before, without what the app
/// is told of its caller.
struct Begun {
    head: Parts,
    beside: Beside,
}

impl Begun {
    fn subject(&self) -> Subject<'_> {
        Subject::Request(&self.head, &self.beside)
    }
}

fn begin(state: &State, facts: &Facts<'_>, head: &mut Parts, body: &ClientBody) -> Call {
    let telemetry = &state.context.process.telemetry;
    let callee = Callee::App(facts.caller.app.port());
    let in_flight = state.context.activity.begin();
    let mut call = Call::begin(telemetry, callee, head, body.received(), in_flight);
    let context = &mut call.request.context;
    if context.parent.is_none() && facts.is_probe {
        // A trace every few seconds that nobody asked for would bury the others.
        context.sampled = false;
    }
    call.attempt(Rc::clone(facts.caller) as Rc<dyn Remote>);
    call
}

impl Remote for Caller {
    fn peer(&self) -> Peer<'_> {
        Peer {
            identity: self.peer.as_ref(),
            address: self.address,
        }
    }
}

/// What rules decide from, beside the head of the request.
struct Facts<'a> {
    caller: &'a Rc<Caller>,
    /// Kubelet's own, as far as anybody can tell.
    is_probe: bool,
    /// The request may become another protocol's connection.
    keeps_upgrade: bool,
}

/// All that may change or answer a request before it is sent, in its order. Gives what policies were asked about beside its head, and
/// what its response says of limits.
///
/// # Errors
/// What answers the request in place of the app.
async fn apply_rules(
    rules: &RequestRules,
    facts: &Facts<'_>,
    head: &mut Parts,
    call: &mut Call,
) -> Result<(Beside, Option<Box<Left>>), LocalReply> {
    let RequestRules {
        plaintext,
        access,
        limits,
    } = rules;
    check(head)?;
    plaintext.admit(facts)?;
    // Before policies look at headers: nobody forges what a sidecar says.
    strip_ours(&mut head.headers);
    let named = match limits.is_empty() {
        true => access.named(facts.caller, head),
        false => named_for_this_hop(&head.headers),
    };
    strip_hop_by_hop(&mut head.headers, facts.keeps_upgrade);
    let beside = access.admit(facts.caller, head, named, call)?;
    // Only who is let in takes anything.
    let left = limits.admit(facts.caller, head, &beside, call).await?;
    Ok((beside, left))
}

/// Sends the request to the app; once more if that does no harm: its connection was a stale one, or refused it.
async fn send_to_app(
    access: &AccessRule,
    caller: &Caller,
    pool: &Rc<Pool>,
    version: HttpVersion,
    mut head: Parts,
    body: ClientBody,
    call: &Call,
) -> Result<(Response<Incoming>, Lease), ProxyError> {
    let timeout = call.request.is_grpc().then(|| grpc::timeout(&head.headers)).flatten();
    let body = BodySource::new(body, REPLAY, None);
    let mut again = false;
    loop {
        let checkout = checkout(caller, pool, version).await?;
        if !again {
            access.count(caller, Some(&head.method));
        }
        if let Some(timeout) = timeout {
            grpc::set_timeout(&mut head.headers, timeout.saturating_sub(call.started.elapsed()));
        }
        // It is whole: there is no second time for a body that is not.
        let attempt = body.attempt().unwrap_or(RequestBody::Empty);
        let request = Request::from_parts(head.clone(), attempt);
        call.sent();
        let failure = match send(checkout, request, caller.app).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        if again || !is_harmless(&failure, &head) || !body.can_repeat() {
            return Err(failure.error);
        }
        again = true;
    }
}

/// Whether the app cannot have seen the request, or may see it twice: on a connection that it had closed, perhaps.
fn is_harmless(failure: &Failure, head: &Parts) -> bool {
    let refused = failure.unsent || failure.error.reason == Reason::UpstreamRefused;
    let stale = failure.reused && failure.error.reason == Reason::UpstreamReset;
    refused || (stale && head.method.is_idempotent())
}

async fn checkout(caller: &Caller, pool: &Rc<Pool>, version: HttpVersion) -> Result<Checkout, ProxyError> {
    let checkout = pool.checkout(version, &AppDialer(caller.app)).await;
    checkout.map_err(|error| match error.reason {
        // It takes connections and does nothing with them.
        Reason::ConnectTimeout => ProxyError::new(Reason::AppUnavailable, error.detail),
        _ => error,
    })
}

fn respond(
    state: &Rc<State>,
    caller: &Rc<Caller>,
    call: Call,
    mut response: Response<Incoming>,
    left: Option<Box<Left>>,
    lease: Lease,
    upgrade: Option<Upgrade>,
) -> Response<ResponseBody> {
    let (connect, activity) = (call.request.is_connect(), &state.context.activity);
    let (client, begun) = upgrade.map(|upgrade| (upgrade.client, upgrade.begun)).unzip();
    let until_cut = |_: &Lease| until_cut(Rc::clone(state), Rc::clone(caller), begun);
    let lease = upgrade::join_if_switched(&mut response, connect, client, until_cut, None, activity, lease);
    strip_response(&mut response);
    // Only a sidecar's own word may say that a request was not processed.
    strip_ours(response.headers_mut());
    if let Some(left) = left {
        left.say(response.headers_mut());
    }
    let grpc = call.request.is_grpc();
    let response = response.map(|body| ResponseBody::streaming(body, grpc, false).with_lease(lease));
    call.respond(response, ())
}

/// Until the peer's time is up, or policies do not let in any more what began with `head`.
async fn until_cut(state: Rc<State>, caller: Rc<Caller>, begun: Option<Box<Begun>>) {
    // A tunnel that nobody asked for is none.
    let Some(begun) = begun else { return };
    tokio::select! {
        () = caller.term.until_cut() => {}
        _ = state.rules.access.until_denied(&caller, begun.subject()) => {}
    }
}
