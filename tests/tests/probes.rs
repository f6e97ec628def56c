//! Probes of every kind say of an app what they would say without a sidecar. In network namespaces they go the whole way: the
//! injector's own patch, a captured pod, a sidecar of its own user, and who asks from outside as kubelet does.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use outrigger_api::probes::{AppProbe, Ask, HttpGet, KEY_HEADER, Kind};
use outrigger_injector::inject::{Given, NamespaceMeta, Outcome, patch};
use outrigger_injector::settings::Settings;
use outrigger_proxy::capture::CaptureConfig;
use outrigger_proxy::probe::{Answer, AppProbes};
use outrigger_tests::netns::mesh::{Mesh, get};
use outrigger_tests::netns::{Lab, Namespace};
use outrigger_tests::probed::{Probed, Speaks};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn any_port() -> SocketAddr {
    SocketAddr::new(LOOPBACK, 0)
}

fn probe(port: u16, ask: Ask) -> AppProbe {
    AppProbe {
        container: "app".to_owned(),
        kind: Kind::Readiness,
        port,
        timeout: Some(30),
        key: None,
        ask,
    }
}

fn ready(tls: bool) -> Ask {
    Ask::Http(HttpGet {
        target: "/ready".to_owned(),
        tls,
        headers: Vec::new(),
    })
}

/// The status, and why.
async fn asked(probe: AppProbe) -> (StatusCode, String) {
    let at = outrigger_api::probes::path(&probe.container, probe.kind);
    match AppProbes::new(LOOPBACK, vec![probe])
        .ask(&at, LOOPBACK, &HeaderMap::new())
        .await
    {
        Answer::Status(status, why) => (status, why),
        Answer::Broken(why) => panic!("{why}"),
    }
}

#[tokio::test]
async fn tls_is_spoken_whatever_the_certificate() {
    for speaks in [Speaks::Https, Speaks::Http2OverTls] {
        let app = Probed::start(any_port(), speaks).await;
        let (status, why) = asked(probe(app.address.port(), ready(true))).await;
        assert_eq!(status, 200, "{speaks:?}: {why}");
    }
    let plaintext = Probed::start(any_port(), Speaks::Http).await;
    let (status, why) = asked(probe(plaintext.address.port(), ready(true))).await;
    assert_eq!(status, 502, "{why}");
    let tls = Probed::start(any_port(), Speaks::Https).await;
    let (status, why) = asked(probe(tls.address.port(), ready(false))).await;
    assert_eq!(status, 502, "{why}");
}

/// kubelet asks a handler's app again in plaintext, without credentials, where it has no TLS.
#[tokio::test]
async fn a_handler_of_https_falls_back_to_plaintext() {
    let app = Probed::start(any_port(), Speaks::Http).await;
    let handler = AppProbe {
        kind: Kind::PostStart,
        timeout: None,
        ..probe(app.address.port(), ready(true))
    };
    assert_eq!(asked(handler).await.0, 200);
}

#[tokio::test]
async fn grpc_health_of_a_service() {
    let app = Probed::start(any_port(), Speaks::Grpc).await;
    let health = |service: &str| probe(app.address.port(), Ask::Grpc(service.to_owned()));
    let (status, why) = asked(health("shop")).await;
    assert_eq!(status, 200, "{why}");
    let (status, why) = asked(health("")).await;
    assert!(status == 503 && why.contains("NotFound"), "{status} {why}");
}

/// How kubelet asks, and of what kind the app is for it.
const KINDS: [(&str, Speaks); 4] = [
    ("httpGet", Speaks::Http),
    ("https", Speaks::Https),
    ("grpc", Speaks::Grpc),
    ("tcpSocket", Speaks::Http),
];

/// HTTP, TLS, opaque by annotation, named, and opaque by default.
const PORTS: [u16; 5] = [8080, 8443, 3307, 9999, 4444];

/// The action of a probe.
fn action(kind: &str, port: u16) -> Value {
    let by_name = if port == 9999 { json!("named") } else { json!(port) };
    match kind {
        "httpGet" => json!({"httpGet": {"path": "/ready", "port": by_name}}),
        "https" => json!({"httpGet": {"path": "/ready", "port": by_name, "scheme": "HTTPS"}}),
        "grpc" => json!({"grpc": {"port": port, "service": "shop"}}),
        _ => json!({"tcpSocket": {"port": by_name}}),
    }
}

/// A pod with a container for each port, after the webhook.
fn injected(kind: &str, mode: &str) -> Value {
    let container = |port: u16| {
        let mut probe = action(kind, port);
        probe["timeoutSeconds"] = json!(20);
        json!({
            "name": format!("port-{port}"),
            "ports": [{"name": "named", "containerPort": 9999}],
            "livenessProbe": probe,
            "lifecycle": {"preStop": {"httpGet": {"path": "/ready", "port": port}}},
        })
    };
    let annotations = json!({"outrigger.dev/mtls": mode, "outrigger.dev/opaque-ports": "3307"});
    let containers: Vec<Value> = PORTS.into_iter().map(container).collect();
    let mut pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}});
    let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
    let namespace = NamespaceMeta {
        name: "shop".to_owned(),
        labels: [("outrigger.dev/inject".to_owned(), "enabled".to_owned())].into(),
        ..NamespaceMeta::default()
    };
    let given = Given {
        key: "the-key",
        roots: None,
        controller: None,
    };
    let Outcome::Patched { patch, .. } = patch(&typed, &namespace, &Settings::default(), given).unwrap() else {
        panic!("not patched");
    };
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

/// What the injector tells the sidecar of the pod itself, as kubelet would set it.
fn environment(pod: &Value) -> Vec<(String, String)> {
    let own = [
        "OUTRIGGER_APP_PROBES",
        "OUTRIGGER_PROBES",
        "OUTRIGGER_MTLS",
        "OUTRIGGER_OPAQUE_PORTS",
    ];
    let env = pod["spec"]["initContainers"][1]["env"].as_array().unwrap().iter();
    env.filter(|variable| own.iter().any(|name| variable["name"] == *name))
        .map(|variable| {
            let text = |field: &str| variable[field].as_str().unwrap().to_owned();
            (text("name"), text("value").replace("$$", "$"))
        })
        .collect()
}

/// What kubelet does with a probe as it is in the pod now, and what it thinks then.
fn kubelet(from: &Namespace, pod: IpAddr, probe: &Value) -> Result<(), String> {
    let at = |port: &Value| SocketAddr::new(pod, u16::try_from(port.as_u64().unwrap()).unwrap());
    if let Some(tcp) = probe.get("tcpSocket") {
        let connected = from.enter(|| TcpStream::connect_timeout(&at(&tcp["port"]), Duration::from_secs(5)));
        return connected.map(drop).map_err(|error| error.to_string());
    }
    let http = probe
        .get("httpGet")
        .ok_or_else(|| format!("{probe} is not asked in this test"))?;
    let path = http["path"].as_str().unwrap();
    let answer = from
        .enter(|| get(at(&http["port"]), path, "kubelet"))
        .map_err(|error| error.to_string())?;
    let status: u16 = answer
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .ok_or(answer.clone())?;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(answer)
    }
}

/// Runs it on the runtime's own threads, which are in the pod's namespace.
fn inside<T: Send + 'static>(runtime: &Runtime, task: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(runtime.spawn(task)).unwrap()
}

/// Every kind of probe × every kind of port × both modes × an app that is not listening yet, up, hung, and down.
#[test]
#[ignore = "needs root"]
fn each_kind_on_each_port_in_each_mode_says_how_the_app_is() {
    let lab = Lab::new();
    let pod = lab.pod("orders");
    let mesh = Mesh::new(&lab, &["orders"], Vec::new());
    let apps = pod.runtime();
    for mode in ["permissive", "strict"] {
        for (kind, speaks) in KINDS {
            let injected = injected(kind, mode);
            let environment = environment(&injected);
            let environment: Vec<_> = environment.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let _sidecar = mesh.join(&lab, &pod, "orders", &CaptureConfig::default(), &environment);
            let containers = injected["spec"]["containers"].as_array().unwrap();
            let each = |expected: bool, state: &str| {
                for (container, port) in containers.iter().zip(PORTS) {
                    let said = kubelet(lab.outside(), pod.v4, &container["livenessProbe"]);
                    assert_eq!(said.is_ok(), expected, "{kind}, port {port}, {mode}, {state}: {said:?}");
                }
            };
            let address = pod.v4;
            let start = |speaks| {
                inside(&apps, async move {
                    let mut started = Vec::new();
                    for port in PORTS {
                        started.push(Probed::start(SocketAddr::new(address, port), speaks).await);
                    }
                    started
                })
            };
            let stop = |started: Vec<Probed>| {
                inside(&apps, async {
                    for app in started {
                        app.stop().await;
                    }
                });
            };
            each(false, "not listening yet");
            let started = start(speaks);
            each(true, "up");
            plaintext_is_let_in(&lab, pod.v4, kind, mode == "permissive");
            stop(started);
            each(false, "down");
        }
    }
}

/// The way that kubelet had is nobody's any more.
fn plaintext_is_let_in(lab: &Lab, pod: IpAddr, kind: &str, expected: bool) {
    if kind != "httpGet" {
        return;
    }
    let answer = lab
        .outside()
        .enter(|| get(SocketAddr::new(pod, 8080), "/ready", "x"))
        .unwrap();
    assert_eq!(answer.starts_with("HTTP/1.1 200"), expected, "{answer}");
}

/// An app that accepts and says nothing is well for a TCP probe alone.
#[test]
#[ignore = "needs root"]
fn a_hung_app_is_well_for_a_tcp_probe_alone() {
    let lab = Lab::new();
    let pod = lab.pod("orders");
    let mesh = Mesh::new(&lab, &["orders"], Vec::new());
    let apps = pod.runtime();
    let listen = SocketAddr::new(pod.v4, 4444);
    let _app = inside(&apps, Probed::start(listen, Speaks::Nothing));
    for (kind, _) in KINDS {
        let mut injected = injected(kind, "strict");
        let environment = environment(&injected);
        let environment: Vec<_> = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.replace("\"timeout\":20", "\"timeout\":1")))
            .collect();
        let environment: Vec<_> = environment.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let _sidecar = mesh.join(&lab, &pod, "orders", &CaptureConfig::default(), &environment);
        let said = kubelet(
            lab.outside(),
            pod.v4,
            &injected["spec"]["containers"][4]["livenessProbe"].take(),
        );
        assert_eq!(said.is_ok(), kind == "tcpSocket", "{kind}: {said:?}");
    }
}

/// What a pod of somebody else gets at the admin port: the probes, and no more.
#[test]
#[ignore = "needs root"]
fn the_admin_port_seen_from_another_pod() {
    let lab = Lab::new();
    let (pod, other) = (lab.pod("orders"), lab.pod("other"));
    let mesh = Mesh::new(&lab, &["orders"], Vec::new());
    let injected = injected("httpGet", "strict");
    let environment = environment(&injected);
    let environment: Vec<_> = environment.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let _sidecar = mesh.join(&lab, &pod, "orders", &CaptureConfig::default(), &environment);
    let apps = pod.runtime();
    let _app = inside(&apps, Probed::start(SocketAddr::new(pod.v4, 8080), Speaks::Http));
    let ask = |from: &Namespace, at: IpAddr, method: &str, path: &str, header: &str| {
        let to = SocketAddr::new(at, outrigger_api::ports::ADMIN);
        let host = format!("x\r\n{header}");
        let answer = from.enter(|| match method {
            "GET" => get(to, path, host.trim_end()),
            _ => outrigger_tests::netns::mesh::send(to, method, path, host.trim_end()),
        });
        answer
            .unwrap_or_default()
            .split(' ')
            .nth(1)
            .map_or(0, |s| s.parse().unwrap())
    };
    for (method, path, expected) in [
        ("GET", "/livez", 200),
        ("GET", "/metrics", 200),
        ("GET", "/probe/port-8080/liveness", 200),
        ("HEAD", "/probe/port-8080/liveness", 405),
        ("POST", "/probe/port-8080/liveness", 405),
        ("DELETE", "/probe/port-8080/liveness", 405),
        ("GET", "/probe/port-8080/readiness", 404),
        ("GET", "/probe/port-8081/liveness", 404),
        ("GET", "/probe/", 404),
        ("GET", "/probe/port-8080/liveness/../../../config", 404),
        // A lifecycle handler is no question: it changes the app.
        ("GET", "/probe/port-8080/preStop", 403),
        ("GET", "/config", 403),
        ("GET", "/callers", 403),
        ("GET", "/loglevel", 403),
        ("GET", "/accesslog", 403),
        ("PUT", "/accesslog", 403),
        ("POST", "/shutdown", 403),
    ] {
        assert_eq!(
            ask(&other, pod.v4, method, path, "outrigger-admin: 1"),
            expected,
            "{method} {path}"
        );
    }
    let key = format!("{KEY_HEADER}: the-key");
    assert_eq!(ask(lab.outside(), pod.v4, "GET", "/probe/port-8080/preStop", &key), 200);
    // Its app is not there: to kubelet any answer would be a success.
    assert_eq!(ask(lab.outside(), pod.v4, "GET", "/probe/port-4444/preStop", &key), 0);
    // From inside, over loopback.
    for (method, path, header, expected) in [
        ("GET", "/config", "", 200),
        ("PUT", "/accesslog", "", 403),
        ("PUT", "/accesslog", "outrigger-admin: 1", 400),
        ("POST", "/shutdown", "", 403),
        ("POST", "/shutdown", "outrigger-admin: 1\r\nOrigin: http://evil", 403),
        ("POST", "/shutdown", "outrigger-admin: 1", 200),
    ] {
        assert_eq!(
            ask(&pod, LOOPBACK, method, path, header),
            expected,
            "{method} {path} {header}"
        );
    }
}

#[tokio::test]
async fn the_app_is_told_who_asks() {
    let agent = |name: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("user-agent", HeaderValue::from_static(name));
        headers
    };
    for (shown, told) in [
        ("kube-probe/1.34", "kube-probe/1.34"),
        ("curl/8", "kube-probe/"),
        ("kube-probe/() { :; }; x", "kube-probe/"),
    ] {
        let (heads, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let app = outrigger_tests::mesh::App::start(move |request| {
            heads.send(request.headers().clone()).unwrap();
            async { outrigger_tests::mesh::status(200) }
        })
        .await;
        let probes = AppProbes::new(LOOPBACK, vec![probe(app.address.port(), ready(false))]);
        probes.ask("/probe/app/readiness", LOOPBACK, &agent(shown)).await;
        assert_eq!(seen.recv().await.unwrap()["user-agent"], told);
    }
}
