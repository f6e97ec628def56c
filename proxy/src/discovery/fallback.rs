//! A controller of the version before the session: a stream for each target, and one for the pod itself.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_api::discovery::discovery_client::DiscoveryClient;
use outrigger_api::discovery::{WatchTargetRequest, WatchWorkloadRequest};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::task::{AbortHandle, JoinSet};
use tonic::Status;
use tonic::transport::Channel;

use super::controller::{Link, RETRY};
use super::told::Told;
use super::wants::Word;
use crate::backoff::Backoff;
use crate::identity::channel::status_words;
use crate::model::from_proto;

/// Follows everything until the pod's own stream ends: then the next controller may be a newer one.
pub(super) async fn follow(link: &Arc<Link>, channel: &Channel, told: &mut Told, random: &mut SmallRng) -> Status {
    link.wants.begin();
    told.begin(|address| link.wants.contains(address));
    let mut streams = JoinSet::new();
    let mut open: HashMap<SocketAddr, AbortHandle> = HashMap::new();
    let workload = async {
        let request = WatchWorkloadRequest {
            namespace: link.asker.namespace.to_string(),
            pod: link.asker.pod.to_string(),
        };
        let mut messages = DiscoveryClient::new(channel.clone())
            .watch_workload(request)
            .await?
            .into_inner();
        while let Some(message) = messages.message().await? {
            link.report(None);
            link.without_access();
            link.learn(&message);
        }
        Err(Status::unavailable("the controller ended the stream"))
    };
    tokio::pin!(workload);
    loop {
        tokio::select! {
            ended = &mut workload => {
                let Err::<(), _>(status) = ended else { continue };
                return status;
            }
            word = link.wants.word() => match word {
                Word::Want(address) => {
                    let backoff = Backoff::new(RETRY.0, RETRY.1, SmallRng::from_rng(random));
                    let stream = watch(Arc::clone(link), channel.clone(), address, backoff);
                    if let Some(before) = open.insert(address, streams.spawn(stream)) {
                        before.abort();
                    }
                }
                Word::Drop(address) => {
                    told.forget(address);
                    open.remove(&address).iter().for_each(AbortHandle::abort);
                }
            },
            // Those that were aborted: the others do not end.
            Some(_) = streams.join_next() => {}
        }
    }
}

/// Keeps the stream of one target open for ever.
async fn watch(link: Arc<Link>, channel: Channel, address: SocketAddr, mut backoff: Backoff) {
    loop {
        let request = WatchTargetRequest {
            address: address.to_string(),
            namespace: link.asker.namespace.to_string(),
            pod: link.asker.pod.to_string(),
        };
        let reading = async {
            let mut messages = DiscoveryClient::new(channel.clone())
                .watch_target(request)
                .await?
                .into_inner();
            while let Some(message) = messages.message().await? {
                link.publish(address, Arc::new(from_proto::target(&message)));
                backoff.succeeded();
                link.report(None);
            }
            Err(Status::unavailable("the controller ended the stream"))
        };
        if let Err::<(), _>(status) = reading.await {
            link.report(Some(status_words(&status)));
        }
        tokio::time::sleep(backoff.failed()).await;
    }
}
