//! Which traces there are, and whether they are whole: apps that pass headers on, and apps with a tracing SDK, behind sidecars that
//! record a share of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Response};
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{App, Authority, Body, Collector, Http, Sidecar, id, request, status, text};

const DAY: Duration = Duration::from_secs(86_400);
/// W3C's, B3's and Jaeger's headers, and the request ID.
const ALL: &[&str] = &[
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
    "x-request-id",
];

/// Where an app calls on. It is known after the app has started, since its sidecar starts after it.
type Next = Arc<OnceLock<SocketAddr>>;

/// "web" calls the first app, and each app the next one, each by its sidecar.
struct Chain {
    to: SocketAddr,
    sidecars: Vec<RunningProxy>,
    collector: Collector,
    _apps: Vec<App>,
    _authority: Authority,
}

impl Chain {
    /// `tracing`: what is said of it beside the endpoint.
    async fn of(names: &[&'static str], tracing: &str, app: impl AsyncFn(&'static str, Next) -> App) -> Self {
        let authority = Authority::start(&[&["web"][..], names].concat(), DAY).await;
        let collector = Collector::start().await;
        let line = format!("tracing: {{endpoint: \"http://{}\", {tracing}}}", collector.address);
        let calls =
            |sidecar: Sidecar, name: &str, at: SocketAddr| sidecar.calls(name, "http1", &[(at, Some(id(name)))], "{}");
        let (mut sidecars, mut apps) = (Vec::new(), Vec::new());
        let mut behind: Option<(&str, SocketAddr)> = None;
        for &name in names.iter().rev() {
            let next = Next::default();
            let app = app(name, Arc::clone(&next)).await;
            let sidecar = Sidecar::new(name).protects(app.address).with(&line);
            let sidecar = match behind {
                Some((name, at)) => calls(sidecar, name, at),
                None => sidecar,
            };
            let sidecar = sidecar.start(&authority).await;
            if let Some(outbound) = sidecar.outbound.first() {
                next.set(*outbound).unwrap();
            }
            behind = Some((name, sidecar.inbound[0]));
            sidecars.push(sidecar);
            apps.push(app);
        }
        let (first, at) = behind.expect("an app");
        let web = calls(Sidecar::new("web").with(&line), first, at)
            .start(&authority)
            .await;
        let to = web.outbound[0];
        sidecars.push(web);
        Self {
            to,
            sidecars,
            collector,
            _apps: apps,
            _authority: authority,
        }
    }

    /// Sends requests without a trace context, one after the other.
    async fn called(&self, requests: usize) {
        let http = Http::one();
        for _ in 0..requests {
            assert_eq!(http.get(self.to, "/").await.status, 200);
        }
    }

    /// Ends the sidecars, and gives all spans that there were, by trace: whose, of which kind, and whether it is a root.
    async fn traces(mut self) -> BTreeMap<String, Vec<(String, i32, bool)>> {
        for sidecar in self.sidecars.into_iter().rev() {
            sidecar.shutdown().await.unwrap();
        }
        let mut traces = BTreeMap::<_, Vec<_>>::new();
        for (service, span) in self.collector.drain() {
            let trace = traces.entry(hex(&span.trace_id)).or_default();
            trace.push((service, span.kind, span.parent_span_id.is_empty()));
        }
        for spans in traces.values_mut() {
            spans.sort();
        }
        traces
    }
}

const SERVER: i32 = 2;
const CLIENT: i32 = 3;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A call to the next app, with these headers.
async fn call_on(http: &Http, next: &Next, headers: HeaderMap) {
    if let Some(next) = next.get() {
        let mut call = request(Method::GET, *next, "/", "");
        call.headers_mut().extend(headers);
        assert_eq!(http.send(call).await.unwrap().status, 200);
    }
}

/// An app without tracing of its own, which passes on what of these headers came.
async fn passes_on(names: &'static [&'static str], next: Next) -> App {
    let http = Http::one();
    App::start(move |request| {
        let (http, next) = (http.clone(), Arc::clone(&next));
        let of = |name: &&'static str| {
            let value = request.headers().get(*name).cloned();
            value.map(|value| (http::HeaderName::from_static(name), value))
        };
        let headers: HeaderMap = names.iter().filter_map(of).collect();
        async move {
            call_on(&http, &next, headers).await;
            status(200)
        }
    })
    .await
}

/// Of three apps in a row, and who calls them.
fn whole(roots: [bool; 6]) -> Vec<(String, i32, bool)> {
    let spans = [
        ("back", SERVER),
        ("front", SERVER),
        ("front", CLIENT),
        ("middle", SERVER),
        ("middle", CLIENT),
        ("web", CLIENT),
    ];
    let with_root = spans.into_iter().zip(roots);
    with_root
        .map(|((name, kind), root)| (name.to_owned(), kind, root))
        .collect()
}

#[tokio::test]
async fn apps_that_pass_headers_on_have_whole_traces_or_none() {
    let app = async |_: &str, next| passes_on(ALL, next).await;
    let chain = Chain::of(&["front", "middle", "back"], "sampleRatio: 0.5", app).await;
    chain.called(60).await;
    let traces = chain.traces().await;
    // One root: web's.
    let expected = whole([false, false, false, false, false, true]);
    for (id, spans) in &traces {
        assert_eq!(*spans, expected, "{id}");
    }
    assert!((1..60).contains(&traces.len()), "{} of 60", traces.len());
}

/// Nobody has said what hangs below what: each app's calls begin the trace anew, under the same ID.
#[tokio::test]
async fn with_the_request_id_alone_all_sidecars_decide_the_same_and_a_trace_has_several_roots() {
    let app = async |_: &str, next| passes_on(&["x-request-id"], next).await;
    let chain = Chain::of(&["front", "middle", "back"], "sampleRatio: 0.5", app).await;
    chain.called(60).await;
    let traces = chain.traces().await;
    let expected = whole([false, false, true, false, true, true]);
    for (id, spans) in &traces {
        assert_eq!(*spans, expected, "{id}");
    }
    assert!((1..60).contains(&traces.len()), "{} of 60", traces.len());
}

/// What an app with a tracing SDK has recorded: the trace of each request.
type Recorded = Arc<Mutex<Vec<String>>>;

/// It samples as OpenTelemetry's SDKs do unless they are told otherwise, ParentBased(AlwaysOn): as its parent, and all where there is
/// none.
async fn with_an_sdk(recorded: Recorded, next: Next) -> App {
    let http = Http::one();
    App::start(move |request| {
        let parent = request.headers().get("traceparent").map(|parent| {
            let parts: Vec<&str> = parent.to_str().unwrap().split('-').collect();
            (parts[1].to_owned(), parts[3] == "01")
        });
        let begin = || (hex(&rand::random::<[u8; 16]>()), true);
        let (trace, sampled) = parent.unwrap_or_else(begin);
        if sampled {
            recorded.lock().unwrap().push(trace.clone());
        }
        let own = format!("00-{trace}-{:016x}-0{}", rand::random::<u64>() | 1, u8::from(sampled));
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", own.parse().unwrap());
        let (http, next) = (http.clone(), Arc::clone(&next));
        async move {
            call_on(&http, &next, headers).await;
            status(200)
        }
    })
    .await
}

#[tokio::test]
async fn an_app_with_a_tracing_sdk_keeps_all_its_traces() {
    const REQUESTS: usize = 50;
    for (not_sampled, keeps_all) in [("", true), (", notSampled: Omit", true), (", notSampled: Pass", false)] {
        let recorded: [Recorded; 2] = Default::default();
        let app = async |name: &str, next| {
            let of = usize::from(name == "payments");
            with_an_sdk(Arc::clone(&recorded[of]), next).await
        };
        // The chart's default ratio.
        let tracing = format!("sampleRatio: 0.1{not_sampled}");
        let chain = Chain::of(&["orders", "payments"], &tracing, app).await;
        chain.called(REQUESTS).await;
        let traces = chain.traces().await;
        let recorded = recorded.map(|recorded| recorded.lock().unwrap().clone());
        assert_eq!(recorded[0], recorded[1], "both apps are in each trace");
        let kept = recorded[0].len();
        match keeps_all {
            true => assert_eq!(kept, REQUESTS, "{not_sampled:?}"),
            false => assert!(kept < REQUESTS / 2, "{not_sampled:?}: {kept}"),
        }
        // The sidecars' spans stand in the same trees: from the app on, or from the beginning where the sidecars sampled it.
        for id in &recorded[0] {
            let spans: Vec<_> = traces[id]
                .iter()
                .map(|(name, kind, _)| (name.as_str(), *kind))
                .collect();
            let from_the_app = [("orders", CLIENT), ("payments", SERVER)];
            let all = [
                ("orders", SERVER),
                ("orders", CLIENT),
                ("payments", SERVER),
                ("web", CLIENT),
            ];
            assert!(spans == from_the_app || spans == all, "{spans:?}");
        }
    }
}

/// Answers with the trace headers that it got.
async fn mirror() -> App {
    App::start(async |request: Request<hyper::body::Incoming>| -> Response<Body> {
        let mut lines: Vec<String> = ALL
            .iter()
            .filter(|name| **name != "x-request-id")
            .filter_map(|name| Some(format!("{name}: {}", request.headers().get(*name)?.to_str().ok()?)))
            .collect();
        lines.sort();
        Response::new(text(lines.join("\n")))
    })
    .await
}

#[tokio::test]
async fn what_a_client_says_of_its_trace_passes_as_it_came_where_nothing_is_recorded() {
    const T: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const S: &str = "00f067aa0ba902b7";
    let authority = Authority::start(&["web", "orders"], DAY).await;
    let (app, collector) = (mirror().await, Collector::start().await);
    let open = format!("{T}-{S}");
    for (protocol, http) in [("http1", Http::one()), ("http2", Http::two())] {
        for ratio in ["0.0", "1.0"] {
            let line = format!(
                "tracing: {{endpoint: \"http://{}\", sampleRatio: {ratio}}}",
                collector.address
            );
            let orders = Sidecar::new("orders").protects(app.address).with(&line);
            let orders = orders.start(&authority).await;
            let web = Sidecar::new("web").with(&line);
            let web = web.calls("orders", protocol, &[(orders.inbound[0], Some(id("orders")))], "{}");
            let web = web.start(&authority).await;
            // From the app of a pod with a sidecar, and from outside of the mesh.
            for to in [web.outbound[0], orders.inbound[0]] {
                let told = async |lines: &[(&'static str, &str)]| {
                    let mut call = request(Method::GET, to, "/", "");
                    for (name, value) in lines {
                        call.headers_mut().append(*name, HeaderValue::from_str(value).unwrap());
                    }
                    let seen = http.send(call).await.unwrap();
                    String::from_utf8(seen.body.to_vec()).unwrap()
                };
                let what = format!("{protocol}, {ratio}");
                assert_eq!(told(&[("b3", "0")]).await, "b3: 0", "{what}");
                let own = told(&[("traceparent", &format!("00-{T}-{S}-00"))]).await;
                assert!(
                    own.starts_with(&format!("traceparent: 00-{T}-")) && own.ends_with("-00"),
                    "{what}: {own}"
                );
                let invalid = told(&[("traceparent", "00-1-1-00"), ("tracestate", "a=b"), ("b3", &open)]).await;
                match ratio {
                    "0.0" => {
                        assert_eq!(told(&[]).await, "", "{what}");
                        assert_eq!(told(&[("b3", &open)]).await, format!("b3: {open}"), "{what}");
                        assert_eq!(invalid, format!("b3: {open}"), "{what}");
                    }
                    _ => {
                        let decided = told(&[("b3", &open)]).await;
                        for told in [decided, invalid] {
                            let (b3, w3c) = told.split_once('\n').unwrap();
                            assert!(
                                b3.starts_with(&format!("b3: {T}-")) && b3.contains("-1-"),
                                "{what}: {told}"
                            );
                            assert!(
                                w3c.starts_with("traceparent: ") && w3c.ends_with("-01"),
                                "{what}: {told}"
                            );
                        }
                    }
                }
            }
        }
    }
}
