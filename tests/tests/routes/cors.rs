//! The CORS filter, in both versions of HTTP.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::discovery::{DiscoveryConfig, StaticTargets};
use outrigger_proxy::model::{
    Backend, Cors, Endpoint, Endpoints, Filters, Protocol, Redirect, Route, Service, ServiceName, Target,
};
use outrigger_tests::mesh::{App, Authority, Body, SOON, Sidecar, text};
use outrigger_tests::routes::{below, route};

const SHOP: &str = "https://shop.example";

fn cors() -> Option<Cors> {
    Some(Cors::from_proto(&outrigger_api::discovery::Cors {
        origins: vec![SHOP.to_owned()],
        credentials: true,
        methods: vec!["PUT".to_owned()],
        headers: vec!["x-a".to_owned()],
        expose: vec!["x-b".to_owned()],
        max_age: 60,
    }))
}

fn routes() -> Vec<Route> {
    let with = |redirect: Option<Redirect>| Filters {
        cors: cors(),
        redirect,
        ..Filters::default()
    };
    let elsewhere = Redirect {
        scheme: Some("https".to_owned()),
        hostname: None,
        port: None,
        path: None,
        status: StatusCode::TEMPORARY_REDIRECT,
    };
    vec![
        route(vec![below("/moved")], Some(0), with(Some(elsewhere))),
        route(vec![below("/nobody")], Some(1), with(None)),
        route(vec![below("/invalid")], None, with(None)),
        route(vec![below("/plain")], Some(0), Filters::default()),
        route(Vec::new(), Some(0), with(None)),
    ]
}

/// A sidecar that calls an app by these routes.
async fn start(app: SocketAddr) -> (RunningProxy, Authority) {
    let authority = Authority::start(&["web"], Duration::from_secs(86_400)).await;
    let name = |name: &str| ServiceName {
        namespace: "shop".into(),
        name: name.into(),
        port: 80,
    };
    let endpoint = Endpoint {
        address: app,
        identity: None,
        zone: None,
        pod: None,
        remote: false,
    };
    let backend = |of: &str, endpoints| {
        Arc::new(Backend {
            name: name(of),
            endpoints: Endpoints::Known(endpoints),
            client_affinity: false,
            tls: None,
        })
    };
    let service = Service {
        name: name("orders"),
        protocol: Protocol::Detect,
        routes: routes().into(),
        byte_routes: Arc::default(),
        backends: vec![
            backend("orders", vec![Arc::new(endpoint)]),
            backend("nobody", Vec::new()),
        ],
        rules: Arc::default(),
    };
    let target = Arc::new(Target::Service(Arc::new(service)));
    let web = Sidecar::new("web")
        .calls("orders", "http1", &[(app, None)], "{}")
        .start_with(&authority, |config| {
            config.discovery = DiscoveryConfig::Standalone(StaticTargets {
                services: HashMap::from([("orders".into(), target)]),
                ..StaticTargets::default()
            });
        })
        .await;
    (web, authority)
}

async fn ask(
    to: SocketAddr,
    version: Version,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, HeaderMap) {
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new())
        .http2_only(version == Version::HTTP_2)
        .build_http();
    let mut request = Request::builder().method(method).uri(format!("http://{to}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = client.request(request.body(Empty::new()).unwrap());
    let response = tokio::time::timeout(SOON, response).await.unwrap().unwrap();
    (response.status(), response.headers().clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_hear_what_the_route_says() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let app = App::start(async |_: Request<Incoming>| -> Response<Body> {
        ASKED.fetch_add(1, Ordering::SeqCst);
        let mut response = Response::new(text("app".to_owned()));
        response
            .headers_mut()
            .insert("access-control-allow-origin", "https://app.example".parse().unwrap());
        response
    })
    .await;
    let (web, _authority) = start(app.address).await;
    let to = web.outbound[0];
    let (origin, other) = (("origin", SHOP), ("origin", "https://other.example"));
    let method = ("access-control-request-method", "PUT");
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for (of, path, headers, status, allowed, reaches_app) in [
            (Method::OPTIONS, "/", &[origin, method][..], 204, Some(SHOP), false),
            (Method::OPTIONS, "/", &[other, method], 204, None, false),
            // A browser follows no redirect of a preflight.
            (Method::OPTIONS, "/moved", &[origin, method], 204, Some(SHOP), false),
            (Method::OPTIONS, "/", &[origin], 200, Some(SHOP), true),
            (Method::PUT, "/", &[origin], 200, Some(SHOP), true),
            (Method::GET, "/", &[other], 200, None, true),
            (Method::GET, "/", &[], 200, None, true),
            // The page sees what went wrong.
            (Method::GET, "/moved", &[origin], 307, Some(SHOP), false),
            (Method::GET, "/nobody", &[origin], 503, Some(SHOP), false),
            (Method::GET, "/invalid", &[origin], 500, Some(SHOP), false),
            // Without the filter the app speaks for itself.
            (
                Method::OPTIONS,
                "/plain",
                &[origin, method],
                200,
                Some("https://app.example"),
                true,
            ),
        ] {
            let before = ASKED.load(Ordering::SeqCst);
            let (answered, said) = ask(to, version, of.clone(), path, headers).await;
            let allowed_origin = said
                .get("access-control-allow-origin")
                .map(|value| value.to_str().unwrap());
            let reached = ASKED.load(Ordering::SeqCst) > before;
            assert_eq!(
                (answered.as_u16(), allowed_origin, reached),
                (status, allowed, reaches_app),
                "{version:?} {of} {path} {headers:?}: {said:?}"
            );
        }
    }
}
