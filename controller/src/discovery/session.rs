//! `Session`: all that one sidecar is told.
//!
//! A session asks for what it sends next only when the sidecar has taken what it was sent last, and hears the sidecar's next
//! word only then. So whoever does not read is not heard either, and nothing piles up: what changes meanwhile is remembered as
//! a mark on each thing that was wanted, and its newest state is sent when its turn comes.
//!
//! What is wanted is charged to the sidecar, with the sets of endpoints that are told with it, and so is each message until it is
//! taken; a sidecar that has as much as it may is refused one address, and keeps the others. How large an answer is, somebody else
//! pays for (`room.rs`). So a session holds on to none: what a sidecar that does not read has kept alive would be charged to him.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::{self, Stream};
use outrigger_api::discovery::{Feature, FromSidecar, Hello, Refused, Trust, from_sidecar, to_sidecar};
use outrigger_issuer::ca::Ca;
use outrigger_issuer::share::Held;
use slab::Slab;
use tokio::sync::watch;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until};
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};

use super::service::{self, DiscoveryService, Member, Messages, address, respond};
use super::{Discover, Known, Limits};
use crate::access::Access;
use crate::metrics::{AnswerKind, StreamKind, Wanted};
use crate::room::Refusal;
use crate::split::{EndpointViews, Routes, SetName, Understands, encoded};
use crate::topic::{Followed, Inbox, Reader};
use crate::topology::Place;

impl StreamingService<FromSidecar> for DiscoveryService {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = std::future::Ready<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Streaming<FromSidecar>>) -> Self::Future {
        let session = self.member(StreamKind::Session, request).map(|(member, requests)| {
            let unread = member.unread();
            let messages = stream::once(begin(member, requests)).try_flatten();
            respond(self, unread, messages)
        });
        std::future::ready(session)
    }
}

/// Waits for the sidecar's Hello.
async fn begin(
    mut member: Member,
    mut requests: Streaming<FromSidecar>,
) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status> {
    let hello = loop {
        match requests.message().await?.ok_or_else(ended)?.kind {
            Some(from_sidecar::Kind::Hello(hello)) => break hello,
            Some(_) => return Err(Status::invalid_argument("a session begins with Hello")),
            None => {}
        }
    };
    member.says(&hello.namespace, &hello.pod)?;
    let index = Arc::clone(&member.service.index);
    // The sender of `synced` is the index itself, which lives as long as the service.
    let _ = index.synced().wait_for(|&synced| synced).await;
    let session = Session::new(member, &*index, &hello);
    Ok(stream::try_unfold(
        (session, requests),
        |(mut session, mut requests)| async move {
            let message = session.next(&mut requests).await?;
            Ok(Some((message, (session, requests))))
        },
    ))
}

fn ended() -> Status {
    Status::cancelled("the sidecar has ended its session")
}

struct Session {
    member: Member,
    /// The sidecar understands changes of a set.
    takes_changes: bool,
    /// It understands who may call it. What it is told is followed all the same: so it is known that it does not.
    takes_access: bool,
    /// It verifies tokens.
    takes_tokens: bool,
    /// It understands how much it takes.
    takes_limits: bool,
    /// Which endpoints it takes.
    understands: Understands,
    access: Followed<Access>,
    /// When it is tried again to tell it.
    access_again: Option<Instant>,
    place: watch::Receiver<Arc<Place>>,
    workload: watch::Receiver<Arc<Known>>,
    limits: watch::Receiver<Arc<Limits>>,
    ca: watch::Receiver<Arc<Ca>>,
    targets: HashMap<SocketAddr, Target>,
    /// Those that `targets` name.
    sets: HashMap<SetName, Set>,
    /// What is to be sent, in this order. It is empty whenever the sidecar is heard.
    queue: VecDeque<Next>,
    /// What has changed, by its number.
    inbox: Arc<Inbox>,
    numbers: Slab<Key>,
}

/// An address that is wanted.
struct Target {
    routes: Followed<Routes>,
    /// What was put into the queue last.
    told: Option<Told>,
    _held: Held,
    _wanted: Wanted,
}

/// Which routes they were.
struct Told {
    routes: Weak<Routes>,
    sets: Arc<[SetName]>,
}

/// Endpoints that the sidecar has, or gets next.
struct Set {
    views: Followed<EndpointViews>,
    /// The version that the sidecar has.
    sent: Option<u64>,
    /// How many targets name it.
    named: usize,
    _held: Held,
}

/// Between attempts to tell what there was no room for.
const RETRY: Duration = Duration::from_secs(10);

/// What is to be sent. By the time that its turn comes, it may not be wanted any more.
enum Next {
    Trust,
    Limits,
    Access,
    /// Instead of it, as there is no room: nobody may call the pod.
    Closed,
    Workload,
    Set(SetName),
    /// With what is charged for it already.
    Routes(SocketAddr, Bytes, Option<Held>),
    Gone(SetName),
    Refused(SocketAddr, Status),
}

/// What is sent next.
struct Message {
    bytes: Bytes,
    /// As it is counted.
    answer: Option<AnswerKind>,
    /// Of a set.
    version: Option<u64>,
}

#[derive(Clone)]
enum Key {
    Access,
    Target(SocketAddr),
    Set(SetName),
}

impl Session {
    fn new(member: Member, index: &dyn Discover, hello: &Hello) -> Self {
        let caller = &member.caller;
        let understands = |feature| hello.features().any(|known| known == feature);
        let inbox = Arc::new(Inbox::new(hello.features()));
        let mut numbers = Slab::new();
        let reader = Reader {
            inbox: Arc::clone(&inbox),
            number: numbers.insert(Key::Access),
        };
        Self {
            takes_changes: understands(Feature::EndpointChanges),
            takes_access: understands(Feature::Access),
            takes_tokens: understands(Feature::Tokens),
            takes_limits: understands(Feature::RateLimits),
            understands: Understands {
                spills: understands(Feature::ZoneSpill),
                tls: understands(Feature::BackendTls),
            },
            access: index.follow_access(&caller.pod_key(), reader),
            access_again: None,
            place: index.watch_place(caller),
            workload: index.watch_workload(&caller.pod_key()),
            limits: index.watch_limits(&caller.pod_key()),
            ca: member.service.ca.clone(),
            targets: HashMap::new(),
            sets: HashMap::new(),
            // Who knows whom to let in lets them in: how much of it comes before. A sidecar that hears of itself first takes it for the
            // word of a controller that knows no AccessPolicy.
            queue: [Next::Trust, Next::Limits, Next::Access, Next::Workload].into(),
            inbox,
            numbers,
            member,
        }
    }

    /// The next message.
    async fn next(&mut self, requests: &mut Streaming<FromSidecar>) -> Result<Bytes, Status> {
        loop {
            while let Some(mut next) = self.queue.pop_front() {
                let paid = match self.message(&next) {
                    Ok(Some(message)) => {
                        self.member.is_alive()?;
                        self.pay(&mut next, &message).map(|()| message)
                    }
                    Ok(None) => continue,
                    Err(refusal) => Err(refusal.into()),
                };
                match paid {
                    Ok(message) => {
                        self.sent(&next, message.version);
                        return Ok(message.bytes);
                    }
                    Err(status) => self.refuse(next, &status)?,
                }
            }
            // Whoever says much that needs no answer leaves the thread to others as well.
            consume_budget().await;
            tokio::select! {
                request = requests.message() => self.hear(request?.ok_or_else(ended)?)?,
                number = self.inbox.next() => {
                    // What was dropped meanwhile is not followed any more; another one may have its number, and looks once too
                    // often.
                    if let Some(key) = self.numbers.get(number).cloned() {
                        self.changed(key);
                    }
                }
                Ok(()) = self.place.changed() => self.queue.extend(self.sets.keys().cloned().map(Next::Set)),
                () = sleep_until(self.access_again.unwrap_or_else(Instant::now)), if self.access_again.is_some() => {
                    self.access_again = None;
                    self.queue.push_back(Next::Access);
                }
                Ok(()) = self.limits.changed() => self.queue.push_back(Next::Limits),
                Ok(()) = self.workload.changed() => self.queue.push_back(Next::Workload),
                // At once, and not with the next SVID: what is below a new root is nothing to who does not know it, and one that
                // was taken away is trusted until then.
                Ok(()) = self.ca.changed() => self.queue.push_back(Next::Trust),
            }
        }
    }

    fn hear(&mut self, request: FromSidecar) -> Result<(), Status> {
        match request.kind {
            Some(from_sidecar::Kind::Want(want)) => self.want(address(&want.address)?),
            Some(from_sidecar::Kind::Drop(drop)) => self.drop(address(&drop.address)?),
            Some(from_sidecar::Kind::Hello(_)) => return Err(Status::invalid_argument("Hello was said before")),
            Some(from_sidecar::Kind::UnknownKey(key)) => {
                let pod = self.member.caller.pod_key();
                self.member.service.index.unknown_key(&pod, &key.policy, &key.provider);
            }
            // Of a newer sidecar.
            None => {}
        }
        Ok(())
    }

    fn want(&mut self, address: SocketAddr) {
        if let Entry::Vacant(vacant) = self.targets.entry(address) {
            let held = match self.member.share.charge(service::WANT) {
                Ok(held) => held,
                Err(status) => return self.queue.push_back(Next::Refused(address, status)),
            };
            let service = &self.member.service;
            let reader = Reader {
                inbox: Arc::clone(&self.inbox),
                number: self.numbers.insert(Key::Target(address)),
            };
            let namespace = &self.member.caller.namespace;
            vacant.insert(Target {
                routes: service.index.follow_routes(address, namespace, reader),
                told: None,
                _held: held,
                _wanted: service.metrics.wanted(),
            });
        }
        self.tell(address);
    }

    fn drop(&mut self, address: SocketAddr) {
        let Some(target) = self.targets.remove(&address) else {
            return;
        };
        self.numbers.remove(target.routes.number());
        for name in target.told.iter().flat_map(|told| &*told.sets) {
            self.release(name);
        }
    }

    fn changed(&mut self, key: Key) {
        match key {
            Key::Target(address) => {
                let Some(target) = self.targets.get(&address) else {
                    return;
                };
                let newest = target.routes.newest();
                // It may have been wanted again meanwhile.
                if target.told.as_ref().is_none_or(|told| !told.are(&newest)) {
                    self.tell(address);
                }
            }
            Key::Set(name) => self.queue.push_back(Next::Set(name)),
            Key::Access => self.queue.push_back(Next::Access),
        }
    }

    /// Puts the newest routes of a target into the queue, after the sets that they are the first to name.
    fn tell(&mut self, address: SocketAddr) {
        let Some(target) = self.targets.get(&address) else {
            return;
        };
        let routes = target.routes.newest();
        if let Err(status) = self.enqueue(address, &routes) {
            self.drop(address);
            return self.queue.push_back(Next::Refused(address, status));
        }
        let told = Told {
            routes: Arc::downgrade(&routes),
            sets: Arc::clone(routes.sets()),
        };
        let before = self.targets.get_mut(&address).and_then(|t| t.told.replace(told));
        // Last, so that no set goes only to come again.
        for name in before.iter().flat_map(|told| &*told.sets) {
            self.release(name);
        }
    }

    fn enqueue(&mut self, address: SocketAddr, routes: &Routes) -> Result<(), Status> {
        let message = routes.message()?;
        // Now, and not when its turn comes: it waits for its sets, and may be the last that has it.
        let held = self.member.charge(&message)?;
        for (n, name) in routes.sets().iter().enumerate() {
            if let Err(status) = self.acquire(name) {
                routes.sets()[..n].iter().for_each(|name| self.release(name));
                return Err(status);
            }
        }
        self.queue.push_back(Next::Routes(address, message, held));
        Ok(())
    }

    fn acquire(&mut self, name: &SetName) -> Result<(), Status> {
        if let Some(set) = self.sets.get_mut(name) {
            set.named += 1;
            return Ok(());
        }
        let held = self.member.share.charge(service::SET)?;
        let reader = Reader {
            inbox: Arc::clone(&self.inbox),
            number: self.numbers.insert(Key::Set(name.clone())),
        };
        let set = Set {
            views: self.member.service.index.follow_endpoints(name, reader),
            sent: None,
            named: 1,
            _held: held,
        };
        self.sets.insert(name.clone(), set);
        self.queue.push_back(Next::Set(name.clone()));
        Ok(())
    }

    fn release(&mut self, name: &SetName) {
        let Entry::Occupied(mut set) = self.sets.entry(name.clone()) else {
            return;
        };
        set.get_mut().named -= 1;
        if set.get().named == 0 {
            let set = set.remove();
            self.numbers.remove(set.views.number());
            if set.sent.is_some() {
                self.queue.push_back(Next::Gone(name.clone()));
            }
        }
    }

    fn pay(&self, next: &mut Next, message: &Message) -> Result<(), Status> {
        let held = match next {
            Next::Routes(_, _, held) => held.take(),
            _ => self.member.charge(&message.bytes)?,
        };
        self.member.send(held, message.answer);
        Ok(())
    }

    /// Refuses what there is no room for, and goes on with the rest. Whom to trust, who may call the pod, and what it is itself come before
    /// all addresses: where there is no room for them, an address is refused in their place, until there is none left. Then nobody may
    /// call the pod, for a while; of the rest, the session ends.
    fn refuse(&mut self, next: Next, status: &Status) -> Result<(), Status> {
        let addresses: Vec<SocketAddr> = match &next {
            Next::Routes(address, ..) => vec![*address],
            Next::Set(name) => {
                let named = |target: &Target| target.told.iter().any(|told| told.sets.contains(name));
                let targets = self.targets.iter().filter(|(_, target)| named(target));
                targets.map(|(address, _)| *address).collect()
            }
            Next::Access if self.targets.is_empty() => {
                self.queue.push_front(Next::Closed);
                self.access_again = Some(Instant::now() + RETRY);
                Vec::new()
            }
            Next::Trust
            | Next::Limits
            | Next::Access
            | Next::Closed
            | Next::Workload
            | Next::Gone(_)
            | Next::Refused(..) => {
                let any = self.targets.keys().next().copied().ok_or_else(|| status.clone())?;
                self.queue.push_front(next);
                vec![any]
            }
        };
        for address in addresses {
            self.drop(address);
            self.queue.push_back(Next::Refused(address, status.clone()));
        }
        Ok(())
    }

    fn sent(&mut self, next: &Next, version: Option<u64>) {
        match next {
            Next::Set(name) => {
                if let Some(set) = self.sets.get_mut(name) {
                    set.sent = version;
                }
            }
            Next::Access => self.inbox.set_closed(false),
            Next::Closed => self.inbox.set_closed(true),
            _ => {}
        }
    }

    /// `None`: the sidecar knows it already, or need not know it any more.
    fn message(&mut self, next: &Next) -> Result<Option<Message>, Refusal> {
        let (bytes, answer) = match next {
            Next::Trust => {
                let ca = self.ca.borrow_and_update().clone();
                let roots = ca.bundle().iter().map(|root| root.to_vec()).collect();
                (encoded(to_sidecar::Kind::Trust(Trust { roots })), None)
            }
            Next::Limits if !self.takes_limits => return Ok(None),
            Next::Limits => match self.limits.borrow_and_update().in_session() {
                Some(limits) => (limits, Some(AnswerKind::Limits)),
                None => return Ok(None),
            },
            Next::Access if !self.takes_access => return Ok(None),
            Next::Access => (
                self.access.newest().message(self.takes_tokens),
                Some(AnswerKind::Access),
            ),
            Next::Closed => (self.access.newest().closed(), Some(AnswerKind::Access)),
            Next::Workload => match self.workload.borrow_and_update().in_session() {
                Some(workload) => (workload, Some(AnswerKind::Workload)),
                None => return Ok(None),
            },
            Next::Set(name) => {
                let Some(set) = self.sets.get(name) else {
                    return Ok(None);
                };
                let view = set
                    .views
                    .newest()
                    .view(&self.place.borrow_and_update(), self.understands)?;
                let version = Some(view.version());
                return Ok((set.sent != version).then(|| Message {
                    bytes: view.message(set.sent.filter(|_| self.takes_changes)),
                    answer: Some(AnswerKind::Endpoints),
                    version,
                }));
            }
            Next::Routes(address, bytes, _) => {
                // One of its sets may have been refused meanwhile.
                if !self.targets.contains_key(address) {
                    return Ok(None);
                }
                (bytes.clone(), Some(AnswerKind::Routes))
            }
            Next::Gone(name) => (encoded(to_sidecar::Kind::Gone(name.to_string())), None),
            Next::Refused(address, status) => {
                let refused = Refused {
                    address: address.to_string(),
                    reason: status.message().to_owned(),
                };
                (encoded(to_sidecar::Kind::Refused(refused)), None)
            }
        };
        Ok(Some(Message {
            bytes,
            answer,
            version: None,
        }))
    }
}

impl Told {
    fn are(&self, routes: &Arc<Routes>) -> bool {
        self.routes.as_ptr() == Arc::as_ptr(routes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "session_tests.rs"]
mod tests;
