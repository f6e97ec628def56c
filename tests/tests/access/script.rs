//! A controller that says what a test has it say, and nothing else: also what a real one never does.

use std::sync::Arc;
use std::sync::Mutex;

use outrigger_api::access::Access;
use outrigger_api::discovery::discovery_server::{Discovery, DiscoveryServer};
use outrigger_api::discovery::{
    Feature, FromSidecar, Target, ToSidecar, UnknownKey, WatchTargetRequest, WatchWorkloadRequest, Workload,
    from_sidecar, to_sidecar,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

type Messages<M> = UnboundedReceiverStream<Result<M, Status>>;
type Session = mpsc::UnboundedSender<Result<ToSidecar, Status>>;

/// See the module.
#[derive(Clone, Default)]
pub(super) struct Script(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// `None`: nothing is said, not even of the pod itself.
    version: Option<Version>,
    access: Access,
    workload: Workload,
    sessions: Vec<Session>,
    /// Those of the version before.
    workloads: Vec<mpsc::UnboundedSender<Result<Workload, Status>>>,
    /// What the last sidecar understands.
    features: Vec<i32>,
    unknown_keys: Vec<UnknownKey>,
}

/// Which controller it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// It knows AccessPolicies.
    Now,
    /// It has sessions, and does not.
    WithoutAccess,
    /// It has a stream for each thing.
    WithoutSessions,
}

impl State {
    fn of_the_pod(&self) -> Vec<to_sidecar::Kind> {
        let access = to_sidecar::Kind::Access(self.access.clone());
        let workload = to_sidecar::Kind::Workload(self.workload.clone());
        match self.version {
            None => Vec::new(),
            Some(Version::Now) => vec![access, workload],
            Some(_) => vec![workload],
        }
    }

    fn say(&mut self) {
        for kind in self.of_the_pod() {
            let message = ToSidecar { kind: Some(kind) };
            self.sessions
                .retain(|session| session.send(Ok(message.clone())).is_ok());
        }
    }
}

impl Script {
    pub(super) fn routes(&self) -> Routes {
        Routes::new(DiscoveryServer::new(self.clone()))
    }

    /// From now on, to every session.
    pub(super) fn says(&self, access: Access) {
        let mut state = self.0.lock().unwrap();
        state.version = Some(Version::Now);
        state.access = access;
        state.say();
    }

    /// What is declared of the pod's ports.
    pub(super) fn declares(&self, workload: Workload) {
        let mut state = self.0.lock().unwrap();
        state.workload = workload;
        state.say();
    }

    /// In the sessions that begin from now on. The others end.
    pub(super) fn becomes(&self, version: Version) {
        self.0.lock().unwrap().version = Some(version);
        self.hangs_up();
    }

    /// Sessions end.
    pub(super) fn hangs_up(&self) {
        let mut state = self.0.lock().unwrap();
        state.sessions.clear();
        state.workloads.clear();
    }

    /// What sidecars have said of them.
    pub(super) fn unknown_keys(&self) -> Vec<UnknownKey> {
        self.0.lock().unwrap().unknown_keys.clone()
    }

    pub(super) fn sidecar_understands(&self, feature: Feature) -> bool {
        self.0.lock().unwrap().features.contains(&feature.into())
    }
}

#[tonic::async_trait]
impl Discovery for Script {
    type SessionStream = Messages<ToSidecar>;
    type WatchTargetStream = Messages<Target>;
    type WatchWorkloadStream = Messages<Workload>;

    async fn session(&self, request: Request<Streaming<FromSidecar>>) -> Result<Response<Self::SessionStream>, Status> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (script, mut said, mut sender) = (self.clone(), request.into_inner(), Some(sender));
        if self.0.lock().unwrap().version == Some(Version::WithoutSessions) {
            return Err(Status::unimplemented("of the version before"));
        }
        tokio::spawn(async move {
            while let Ok(Some(message)) = said.message().await {
                if let Some(from_sidecar::Kind::UnknownKey(key)) = message.kind {
                    script.0.lock().unwrap().unknown_keys.push(key);
                } else if let (Some(from_sidecar::Kind::Hello(hello)), Some(sender)) = (message.kind, sender.take()) {
                    let mut state = script.0.lock().unwrap();
                    state.features = hello.features;
                    for kind in state.of_the_pod() {
                        let _ = sender.send(Ok(ToSidecar { kind: Some(kind) }));
                    }
                    // It is the only one: the session ends with it.
                    state.sessions.push(sender);
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn watch_target(&self, _: Request<WatchTargetRequest>) -> Result<Response<Self::WatchTargetStream>, Status> {
        let (_, receiver) = mpsc::unbounded_channel();
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn watch_workload(
        &self,
        _: Request<WatchWorkloadRequest>,
    ) -> Result<Response<Self::WatchWorkloadStream>, Status> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.0.lock().unwrap();
        let _ = sender.send(Ok(state.workload.clone()));
        state.workloads.push(sender);
        drop(state);
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }
}
