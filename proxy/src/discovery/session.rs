//! The session with a controller: what is wanted goes up, and what is behind it comes down.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use outrigger_api::MAX_DISCOVERY_MESSAGE;
use outrigger_api::discovery::discovery_client::DiscoveryClient;
use outrigger_api::discovery::{Drop, Feature, FromSidecar, Hello, ToSidecar, Want, from_sidecar, to_sidecar};
use rand::rngs::SmallRng;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::controller::Link;
use super::told::Told;
use super::wants::Word;
use crate::backoff::Backoff;

/// What this sidecar understands.
const FEATURES: &[Feature] = &[
    Feature::EndpointChanges,
    Feature::RetryConstraint,
    Feature::Access,
    Feature::Tokens,
    Feature::RateLimits,
    Feature::LoadBalancer,
    Feature::Ejection,
    Feature::ZoneSpill,
    Feature::MoreTimeouts,
    Feature::CircuitBreaker,
    Feature::Faults,
    Feature::Fallback,
    Feature::FallbackBackends,
    Feature::SessionPersistence,
    Feature::BackendTls,
    Feature::ConnectionLimits,
    Feature::LimitClaims,
    Feature::GlobalLimits,
    Feature::ByteRoutes,
    Feature::Cors,
    Feature::ExternalAuth,
];
/// Words that are on their way. The others wait in [`super::wants::Wants`].
const WORDS: usize = 16;
/// Until a refused address is asked for again.
const REFUSED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A session, from the controller's first word on.
pub(super) struct Session {
    requests: mpsc::Sender<FromSidecar>,
    messages: Streaming<ToSidecar>,
}

impl Session {
    /// # Errors
    /// [`tonic::Code::Unimplemented`] of a controller of the version before the session.
    pub(super) async fn open(link: &Link, channel: Channel) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(WORDS);
        let hello = Hello {
            namespace: link.asker.namespace.to_string(),
            pod: link.asker.pod.to_string(),
            features: FEATURES.iter().map(|&feature| feature.into()).collect(),
        };
        let kind = Some(from_sidecar::Kind::Hello(hello));
        // It is the first of WORDS.
        let _ = requests.try_send(FromSidecar { kind });
        let mut client = DiscoveryClient::new(channel).max_decoding_message_size(MAX_DISCOVERY_MESSAGE);
        let messages = client.session(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { requests, messages })
    }

    /// Follows it to its end.
    pub(super) async fn follow(mut self, link: &Link, told: &mut Told, random: SmallRng) -> Status {
        link.wants.begin();
        told.begin(|address| link.wants.contains(address));
        let mut refused = Refusals {
            addresses: HashSet::new(),
            again: None,
            backoff: Backoff::new(REFUSED.0, REFUSED.1, random),
        };
        loop {
            let say = async {
                let permit = self.requests.reserve().await;
                (permit, link.wants.word().await)
            };
            let report = async {
                let permit = self.requests.reserve().await;
                (permit, link.unknown_keys.next().await)
            };
            tokio::select! {
                (permit, key) = report => {
                    let Ok(permit) = permit else {
                        return Status::unavailable("the session has ended");
                    };
                    let kind = Some(from_sidecar::Kind::UnknownKey(key));
                    permit.send(FromSidecar { kind });
                }
                (permit, word) = say => {
                    let Ok(permit) = permit else {
                        // Its other end is read for as long as the session lives.
                        return Status::unavailable("the session has ended");
                    };
                    permit.send(said(word));
                    if let Word::Drop(address) = word {
                        told.forget(address);
                        refused.addresses.remove(&address);
                    }
                }
                message = self.messages.message() => match message {
                    Ok(Some(message)) => {
                        if let Err(status) = apply(link, told, &mut refused, message) {
                            return status;
                        }
                        if refused.addresses.is_empty() {
                            link.report(None);
                        }
                    }
                    Ok(None) => return Status::unavailable("the controller ended the session"),
                    Err(status) => return status,
                },
                () = refused.pause() => {
                    refused.again = None;
                    link.wants.again(refused.addresses.iter().copied());
                }
            }
        }
    }
}

/// Addresses that the controller has no room for. They are asked for again, all at once.
struct Refusals {
    addresses: HashSet<SocketAddr>,
    again: Option<Instant>,
    backoff: Backoff,
}

impl Refusals {
    async fn pause(&self) {
        match self.again {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

fn said(word: Word) -> FromSidecar {
    let kind = Some(match word {
        Word::Want(address) => from_sidecar::Kind::Want(Want {
            address: address.to_string(),
        }),
        Word::Drop(address) => from_sidecar::Kind::Drop(Drop {
            address: address.to_string(),
        }),
    });
    FromSidecar { kind }
}

/// # Errors
/// When the session is of no use any more.
fn apply(link: &Link, told: &mut Told, refused: &mut Refusals, message: ToSidecar) -> Result<(), Status> {
    match message.kind {
        Some(to_sidecar::Kind::Routes(routes)) => {
            // Somebody else's address would be nobody's.
            let Ok(address) = routes.address.parse() else {
                return Ok(());
            };
            if refused.addresses.remove(&address) {
                refused.backoff.succeeded();
            }
            if link.wants.contains(address) {
                let target = told.routes(address, &routes.target.unwrap_or_default());
                link.publish(address, target);
            }
        }
        Some(to_sidecar::Kind::EndpointSet(set)) => {
            let changed = told.endpoints(&set).map_err(|gap| Status::data_loss(gap.0))?;
            for (address, target) in changed {
                link.publish(address, target);
            }
        }
        Some(to_sidecar::Kind::Gone(name)) => told.gone(&name),
        Some(to_sidecar::Kind::Refused(answer)) => {
            if let Ok(address) = answer.address.parse()
                && link.wants.contains(address)
            {
                refused.addresses.insert(address);
                if refused.again.is_none() {
                    refused.again = Some(Instant::now() + refused.backoff.failed());
                }
                link.report(Some(answer.reason));
            }
        }
        Some(to_sidecar::Kind::Access(access)) if told.access(&access) => link.publish_access(&access),
        // It is what is known.
        Some(to_sidecar::Kind::Access(_)) => {}
        Some(to_sidecar::Kind::Limits(limits)) if told.limits(&limits) => link.publish_limits(&limits),
        Some(to_sidecar::Kind::Limits(_)) => {}
        Some(to_sidecar::Kind::Workload(workload)) => {
            // It comes behind who may call, where that is said.
            if !told.says_access() {
                link.without_access();
            }
            link.learn(&workload);
        }
        Some(to_sidecar::Kind::Trust(trust)) => link.trust(trust),
        // Of a newer controller.
        None => {}
    }
    Ok(())
}
