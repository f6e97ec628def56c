//! Whom a request is for, in each version of HTTP and each form of its target: what routes match, what filters change, what the
//! app and the access log see is one answer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::discovery::{DiscoveryConfig, StaticTargets};
use outrigger_proxy::model::{
    Backend, Endpoint, Endpoints, Filters, HeaderModifier, HostnameMatch, PathMatch, Protocol, Redirect, Rewrite,
    Route, RouteMatch, Service, ServiceName, Target, ValueMatch,
};
use outrigger_tests::mesh::{App, Authority, Body, Collector, SOON, Sidecar, attribute, id, text};
use outrigger_tests::routes::route;
use tokio::net::TcpStream;

/// How a client says whom its request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// HTTP/1.0, with `Host`.
    Old,
    /// HTTP/1.1.
    One,
    /// HTTP/1.1 as to a proxy: in the target, and `Host` says something else.
    Whole,
    /// HTTP/2.
    Two,
}

const FORMS: [Form; 4] = [Form::Old, Form::One, Form::Whole, Form::Two];

/// Asks for a path on a connection of its own.
async fn ask(to: SocketAddr, form: Form, authority: &str, path: &str, trace: &str) -> (StatusCode, HeaderMap, String) {
    let whole = format!("http://{authority}{path}");
    let request = Request::get(if matches!(form, Form::Old | Form::One) {
        path
    } else {
        &whole
    })
    .header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"));
    let request = match form {
        Form::Old => request.version(Version::HTTP_10).header("host", authority),
        Form::One => request.header("host", authority),
        Form::Whole => request.header("host", "elsewhere"),
        Form::Two => request.version(Version::HTTP_2),
    };
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let io = TokioIo::new(TcpStream::connect(to).await.unwrap());
    let response = async {
        if form == Form::Two {
            let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                .await
                .unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await
        }
    };
    let response = tokio::time::timeout(SOON, response).await.expect("no answer").unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
}

/// Answers with whom it was asked for: one answer, or all of them.
async fn app() -> App {
    App::start(async |request: Request<Incoming>| -> Response<Body> {
        let named = request.uri().authority().map(ToString::to_string);
        let hosts = request.headers().get_all("host").iter();
        let mut all: Vec<String> = named
            .into_iter()
            .chain(hosts.map(|host| host.to_str().unwrap().to_owned()))
            .collect();
        all.dedup();
        Response::new(text(all.join(" or ")))
    })
    .await
}

fn host_is(value: &str) -> RouteMatch {
    RouteMatch {
        headers: vec![(http::header::HOST, ValueMatch::Exact(value.to_owned()))],
        ..RouteMatch::default()
    }
}

fn path_is(path: &str) -> RouteMatch {
    RouteMatch {
        path: Some(PathMatch::Exact(path.to_owned())),
        ..RouteMatch::default()
    }
}

fn header(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static(name), HeaderValue::from_static(value))
}

fn routes() -> Vec<Route> {
    let route = |of: RouteMatch, filters| route(vec![of], Some(0), filters);
    let named = |by: &'static str| Filters {
        response_headers: vec![HeaderModifier {
            set: vec![header("x-by", by)],
            ..HeaderModifier::default()
        }],
        ..Filters::default()
    };
    let request = |modifier: HeaderModifier| Filters {
        request_headers: vec![modifier],
        ..Filters::default()
    };
    let mut by_hostname = route(path_is("/hostname"), named("hostname"));
    by_hostname.hostnames = vec![HostnameMatch::Suffix(".shop.test".into())];
    vec![
        route(host_is("Canary.test:81"), named("header")),
        by_hostname,
        route(
            path_is("/set"),
            request(HeaderModifier {
                set: vec![header("host", "new.test:81")],
                ..HeaderModifier::default()
            }),
        ),
        route(
            path_is("/add"),
            request(HeaderModifier {
                add: vec![header("host", "new.test:81")],
                ..HeaderModifier::default()
            }),
        ),
        route(
            path_is("/remove"),
            request(HeaderModifier {
                remove: vec![HeaderName::from_static("host")],
                ..HeaderModifier::default()
            }),
        ),
        route(
            path_is("/rewrite"),
            Filters {
                rewrites: vec![Rewrite {
                    hostname: Some(HeaderValue::from_static("new.test")),
                    path: None,
                }],
                ..Filters::default()
            },
        ),
        route(
            path_is("/redirect"),
            Filters {
                redirect: Some(Redirect {
                    scheme: None,
                    hostname: None,
                    port: None,
                    path: None,
                    status: StatusCode::FOUND,
                }),
                ..Filters::default()
            },
        ),
        route(path_is("/"), named("path")),
    ]
}

/// A caller's sidecar with the routes; to the app itself, or to the sidecar before it.
async fn web(authority: &Authority, collector: &Collector, endpoint: Endpoint) -> RunningProxy {
    let name = ServiceName {
        namespace: "shop".into(),
        name: "orders".into(),
        port: 80,
    };
    let service = Service {
        name: name.clone(),
        protocol: Protocol::Detect,
        routes: routes().into(),
        byte_routes: Arc::default(),
        backends: vec![Arc::new(Backend {
            name,
            endpoints: Endpoints::Known(vec![Arc::new(endpoint)]),
            client_affinity: false,
            tls: None,
        })],
        rules: Arc::default(),
    };
    Sidecar::new("web")
        .calls("web", "detect", &[], "{}")
        .with(&collector.line())
        .start_with(authority, |config| {
            let target = Arc::new(Target::Service(Arc::new(service)));
            config.discovery = DiscoveryConfig::Standalone(StaticTargets {
                services: HashMap::from([("web".into(), target)]),
                ..StaticTargets::default()
            });
        })
        .await
}

fn endpoint(address: SocketAddr, in_mesh: bool) -> Endpoint {
    Endpoint {
        address,
        identity: in_mesh.then(|| id("orders")),
        zone: None,
        pod: None,
        remote: false,
    }
}

#[tokio::test]
async fn is_one_for_routes_filters_redirects_the_app_and_spans() {
    let authority = Authority::start(&["web", "orders"], Duration::from_secs(86_400)).await;
    let mut collector = Collector::start().await;
    let app = app().await;
    let orders = Sidecar::new("orders").protects(app.address).start(&authority).await;
    let mut traces = 0;
    for endpoint in [endpoint(app.address, false), endpoint(orders.inbound[0], true)] {
        let web = web(&authority, &collector, endpoint).await;
        for form in FORMS {
            for (host, path, by, seen) in [
                ("Canary.test:81", "/", Some("header"), "Canary.test:81"),
                ("canary.test", "/", Some("path"), "canary.test"),
                ("a.SHOP.test:8080", "/hostname", Some("hostname"), "a.SHOP.test:8080"),
                ("old.test", "/set", None, "new.test:81"),
                ("old.test", "/add", None, "new.test:81"),
                ("old.test:8080", "/remove", None, "old.test:8080"),
                ("old.test", "/rewrite", None, "new.test"),
            ] {
                traces += 1;
                let (name, trace) = (format!("{form:?} {host}{path}"), format!("{traces:032x}"));
                let (status, headers, body) = ask(web.outbound[0], form, host, path, &trace).await;
                assert_eq!((status.as_u16(), body.as_str()), (200, seen), "{name}");
                let found = headers.get("x-by").map(|by| by.to_str().unwrap());
                assert_eq!(found, by, "{name}");
                web.telemetry().flush(SOON).await;
                let id: Vec<u8> = u128::to_be_bytes(traces).to_vec();
                let (_, span) = collector.trace(&id, 1).await.remove(0);
                let expected = host.split(':').next();
                assert_eq!(attribute(&span, "server.address").as_deref(), expected, "{name}");
            }
            for (host, location) in [
                ("old.test:8080", "http://old.test:8080/redirect"),
                ("[::1]:8080", "http://[::1]:8080/redirect"),
                ("old.test", "http://old.test/redirect"),
            ] {
                let (status, headers, _) = ask(web.outbound[0], form, host, "/redirect", &"1".repeat(32)).await;
                assert_eq!(
                    (status.as_u16(), headers["location"].to_str().unwrap()),
                    (302, location),
                    "{form:?} {host}"
                );
            }
        }
    }
}

/// A client of HTTP/1.0 need not say whom it asks.
#[tokio::test]
async fn of_a_request_that_names_nobody_is_the_endpoint() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let authority = Authority::start(&["web", "orders"], Duration::from_secs(86_400)).await;
    let collector = Collector::start().await;
    let app = app().await;
    let orders = Sidecar::new("orders").protects(app.address).start(&authority).await;
    for (at, in_mesh) in [(app.address, false), (orders.inbound[0], true)] {
        let web = web(&authority, &collector, endpoint(at, in_mesh)).await;
        for (path, status, seen) in [
            ("/", "200 OK", at.to_string()),
            ("/set", "200 OK", "new.test:81".to_owned()),
            ("/rewrite", "200 OK", "new.test".to_owned()),
            ("/redirect", "400 Bad Request", "names no host".to_owned()),
        ] {
            let mut stream = TcpStream::connect(web.outbound[0]).await.unwrap();
            stream
                .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let mut answer = String::new();
            let read = tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await;
            read.expect("no end").unwrap();
            assert!(
                answer.contains(status) && answer.contains(&seen),
                "{at} {path}: {answer}"
            );
        }
    }
}
