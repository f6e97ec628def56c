//! Issuing over real connections, from a controller in this process.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_api::identity::identity_server::{Identity as Service, IdentityServer};
use outrigger_api::identity::{IssueRequest, IssueResponse};
use rcgen::CertificateSigningRequestParams;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status};

use super::testing::TestCa;
use super::{Clock, FirstRoots, Identity, IdentityConfig};
use crate::dns::Resolver;

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";
const CONTROLLER: &str = "spiffe://cluster.local/ns/outrigger/sa/outrigger-controller";
const DAY: Duration = Duration::from_secs(86_400);

/// Takes one token.
#[derive(Clone)]
struct Issuer {
    ca: Arc<TestCa>,
    token: &'static str,
    /// How many tokens it was shown.
    tokens: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Service for Issuer {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let request = request.into_inner();
        self.tokens.fetch_add(1, Ordering::Relaxed);
        if request.token != self.token {
            return Err(Status::unauthenticated("the API server does not know this token"));
        }
        let csr = CertificateSigningRequestParams::from_der(&request.csr.into()).unwrap();
        let now = SystemTime::now();
        let leaf = self.ca.leaf(&[ORDERS], now - DAY, now + DAY, &csr.public_key);
        Ok(Response::new(IssueResponse {
            certificate_chain: vec![leaf.to_vec()],
            trust_bundle: vec![self.ca.certificate.to_vec()],
        }))
    }
}

struct Bench {
    folder: TempDir,
    config: IdentityConfig,
    ca: Arc<TestCa>,
    tokens: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl Bench {
    async fn new(controller: &str) -> Self {
        let ca = Arc::new(TestCa::new("root"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = IdentityConfig {
            id: ORDERS.parse().unwrap(),
            issuer: listener.local_addr().unwrap().to_string().parse().unwrap(),
            issuer_id: CONTROLLER.parse().unwrap(),
            token_file: folder.path().join("token"),
            roots: FirstRoots::File(folder.path().join("ca.crt")),
        };
        fs::write(&config.token_file, "good\n").unwrap();
        fs::write(folder.path().join("ca.crt"), &ca.pem).unwrap();
        let acceptor = TlsAcceptor::from(ca.credentials(controller).issuing_server());
        let tokens = Arc::new(AtomicUsize::new(0));
        let issuer = Issuer {
            ca: Arc::clone(&ca),
            token: "good",
            tokens: Arc::clone(&tokens),
        };
        let server = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(tls) = acceptor.accept(tcp).await else { continue };
                let service = IdentityServer::new(issuer.clone());
                let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let mut service = service.clone();
                    async move { Ok::<_, Infallible>(service.call(request).await.unwrap()) }
                });
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(tls), service);
                tokio::spawn(connection);
            }
        });
        Self {
            folder,
            config,
            ca,
            tokens,
            server,
        }
    }

    fn start(&self) -> Identity {
        Identity::start(
            self.config.clone(),
            Clock::system(),
            Resolver::start(Some(&[])).unwrap(),
        )
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn problem(identity: &Identity) -> String {
    let wait = async {
        loop {
            if let Some(problem) = identity.problem() {
                return problem;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), wait).await.unwrap()
}

#[tokio::test]
async fn an_svid_from_the_controller() {
    let bench = Bench::new(CONTROLLER).await;
    let identity = bench.start();
    let credentials = timeout(Duration::from_secs(10), identity.ready()).await.unwrap();
    assert_eq!(credentials.id.as_str(), ORDERS);
    assert_eq!(identity.problem(), None);
}

#[tokio::test]
async fn a_token_that_is_not_taken_is_read_again() {
    let bench = Bench::new(CONTROLLER).await;
    fs::write(bench.folder.path().join("token"), "old").unwrap();
    let identity = bench.start();
    let words = problem(&identity).await;
    assert!(
        words.contains("does not take the token") && words.contains("audience"),
        "{words}"
    );
    assert!(!words.contains("old"), "a token is in a message: {words}");
    fs::write(bench.folder.path().join("token"), "good").unwrap();
    timeout(Duration::from_secs(10), identity.ready()).await.unwrap();
}

#[tokio::test]
async fn somebody_else_is_not_given_the_token() {
    let bench = Bench::new("spiffe://cluster.local/ns/shop/sa/thief").await;
    let words = problem(&bench.start()).await;
    assert!(words.contains(&format!("expected {CONTROLLER}")), "{words}");
}

#[tokio::test]
async fn no_controller_and_no_token() {
    let bench = Bench::new(CONTROLLER).await;
    bench.server.abort();
    let mut config = bench.config.clone();
    config.issuer.port = 1;
    let resolver = Resolver::start(Some(&[])).unwrap();
    let identity = Identity::start(config.clone(), Clock::system(), resolver.clone());
    let words = problem(&identity).await;
    assert!(
        words.contains("127.0.0.1:1") && words.contains("cannot be connected"),
        "{words}"
    );
    config.token_file = bench.folder.path().join("missing");
    let words = problem(&Identity::start(config, Clock::system(), resolver)).await;
    assert!(words.contains("missing cannot be read"), "{words}");
}

/// Who can write the ConfigMap, and be at the controller's address, is no controller of a sidecar that the webhook put in: that one
/// has its roots from the environment (see the tests of `config`), and looks nowhere else.
#[tokio::test]
async fn a_controller_below_a_forged_root_is_shown_no_token() {
    let bench = Bench::new(CONTROLLER).await;
    let start = |roots: FirstRoots| {
        let config = IdentityConfig {
            roots,
            ..bench.config.clone()
        };
        Identity::start(config, Clock::system(), Resolver::start(Some(&[])).unwrap())
    };
    let kept = bench.folder.path().join("roots.der");
    let identity = start(FirstRoots::Given {
        roots: vec![TestCa::new("the real root").certificate],
        kept: kept.clone(),
    });
    let words = problem(&identity).await;
    assert!(words.contains("no root trusted here signed that"), "{words}");
    assert!(identity.current().is_none());
    assert_eq!(bench.tokens.load(Ordering::Relaxed), 0, "it was shown a token");
    assert!(!kept.exists());
    // The file says the forged root. Whoever starts with it has that controller.
    let believer = start(bench.config.roots.clone());
    timeout(Duration::from_secs(10), believer.ready()).await.unwrap();
    assert_eq!(bench.tokens.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_the_controller_says_is_kept_for_the_next_process() {
    let bench = Bench::new(CONTROLLER).await;
    let mut config = bench.config.clone();
    let kept = bench.folder.path().join("roots.der");
    config.roots = FirstRoots::Given {
        roots: vec![bench.ca.certificate.clone()],
        kept: kept.clone(),
    };
    let start =
        |config: &IdentityConfig| Identity::start(config.clone(), Clock::system(), Resolver::start(Some(&[])).unwrap());
    timeout(Duration::from_secs(10), start(&config).ready()).await.unwrap();
    assert_eq!(fs::read(&kept).unwrap(), bench.ca.certificate.to_vec());
    // The environment's root is long gone.
    config.roots = FirstRoots::Given {
        roots: vec![TestCa::new("gone").certificate],
        kept,
    };
    timeout(Duration::from_secs(10), start(&config).ready()).await.unwrap();
}
