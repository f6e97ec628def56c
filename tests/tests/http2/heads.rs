//! What a head says comes through as it was said, up to the limit.

use std::sync::{Arc, Mutex};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use outrigger_tests::mesh::{id, metric};
use tokio::sync::mpsc;

use super::{Between, EACH, H2App, all, call, client, code, mesh, send, soon};

#[derive(Clone, Default)]
struct Heads(Arc<Mutex<Vec<(Uri, HeaderMap)>>>);

async fn app() -> (H2App, Heads) {
    let heads = Heads::default();
    let app = H2App::start({
        let heads = heads.clone();
        move |request, mut respond| {
            let (head, _) = request.into_parts();
            heads.0.lock().unwrap().push((head.uri, head.headers));
            async move {
                let response = Response::builder()
                    .header("set-cookie", "a=1")
                    .header("x-between", "1")
                    .header("set-cookie", "b=2")
                    .body(())
                    .unwrap();
                respond.send_response(response, true).unwrap();
            }
        }
    })
    .await;
    (app, heads)
}

fn values<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a [u8]> {
    headers.get_all(name).iter().map(|value| value.as_bytes()).collect()
}

#[tokio::test]
async fn come_through_as_they_are() {
    let (app, heads) = app().await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;
        let request = Request::get("http://Orders.shop:8080/a%2Fb//c;d?e=f&g=%00")
            .header("te", "trailers")
            .header("cookie", "crumb=1")
            .header("x-many", "one")
            .header("cookie", "crumb=2")
            .header("x-many", "two")
            .header("cookie", "crumb=3")
            .header("x-many", "")
            .header("x-many", "four, five")
            .header("x-some-bin", "AAECAw==")
            .header("x-latin", http::HeaderValue::from_bytes(b"caf\xe9").unwrap())
            .body(())
            .unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let response = soon(response).await.unwrap();
        assert_eq!(
            values(response.headers(), "set-cookie"),
            [b"a=1", b"b=2"],
            "{between:?}"
        );
        let (uri, headers) = heads.0.lock().unwrap().pop().unwrap();
        assert_eq!(uri.to_string(), "http://Orders.shop:8080/a%2Fb//c;d?e=f&g=%00");
        assert_eq!(values(&headers, "te"), [b"trailers"]);
        // RFC 9113 section 8.2.3.
        assert_eq!(values(&headers, "cookie"), [b"crumb=1; crumb=2; crumb=3"]);
        assert_eq!(values(&headers, "x-many"), [&b"one"[..], b"two", b"", b"four, five"]);
        assert_eq!(values(&headers, "x-some-bin"), [b"AAECAw=="]);
        assert_eq!(values(&headers, "x-latin"), [b"caf\xe9"]);
        assert!(!headers.contains_key("host"), "{headers:?}");
    }
}

#[tokio::test]
async fn may_be_64_kib_and_no_more() {
    let (app, _) = app().await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;
        // Each sidecar adds a request ID and trace context to the caller's own.
        for (size, status, error) in [
            (65_536 - 600, 200, None),
            (65_536, 431, Some("headers-too-large")),
            (100_000, 431, Some("headers-too-large")),
            (200_000, 431, None),
            (40_000, 200, None),
        ] {
            let mut request = Request::get("http://orders.shop/");
            // In fields of a size that others have too.
            let (mut left, mut n): (usize, usize) = (size, 0);
            while left > 0 {
                let field = left.min(4096);
                let name = format!("x-field-{n:03}");
                request = request.header(&name, "v".repeat(field.saturating_sub(32 + name.len())));
                (left, n) = (left - field, n + 1);
            }
            let (response, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
            let response = soon(response).await.unwrap();
            assert_eq!(response.status(), status, "{between:?} {size}");
            assert_eq!(code(response.headers()), error, "{between:?} {size}");
            client = soon(client.ready()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn of_a_response_that_are_too_large_are_told() {
    let app = H2App::start(|_, mut respond| async move {
        let response = Response::builder().header("x-large", "v".repeat(70_000)).body(());
        respond.send_response(response.unwrap(), true).unwrap();
    })
    .await;
    let mesh = mesh(Between::Both, app.address, "{}").await;
    let mut client = client(mesh.to).await;
    let (response, _) = client
        .send_request(Request::get("http://orders.shop/").body(()).unwrap(), true)
        .unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), code(response.headers())),
        (502, Some("upstream-protocol"))
    );
    let (bytes, _) = all(response.into_body()).await.unwrap();
    assert!(!bytes.is_empty());
}

/// Names that only sidecars use (`outrigger-…`) end at the next sidecar, in heads and in trailers, whoever says them.
#[tokio::test]
async fn what_only_sidecars_say_is_not_passed_on() {
    fn says() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("outrigger-error", HeaderValue::from_static("app-unavailable"));
        headers.insert("outrigger-of-tomorrow", HeaderValue::from_static("1"));
        headers.insert(
            "outrigger-client-id",
            HeaderValue::from_static("spiffe://mesh.test/ns/shop/sa/admin"),
        );
        headers.insert("x-kept", HeaderValue::from_static("1"));
        headers
    }
    fn check_but_for(proven: Option<&str>, headers: &HeaderMap, context: &str) {
        assert!(headers.contains_key("x-kept"), "{context}: {headers:?}");
        let ours = headers
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("outrigger-"));
        let ours: Vec<_> = ours
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        let proven: Vec<_> = proven.map(|id| ("outrigger-client-id", id)).into_iter().collect();
        assert_eq!(ours, proven, "{context}");
    }
    fn check(headers: &HeaderMap, context: &str) {
        check_but_for(None, headers, context);
    }
    let (told, mut tells) = mpsc::unbounded_channel();
    let app = H2App::start(move |request, mut respond| {
        let told = told.clone();
        async move {
            let (head, body) = request.into_parts();
            let (_, trailers) = all(body).await.unwrap();
            told.send((head.headers, trailers.unwrap())).unwrap();
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            *response.headers_mut() = says();
            let mut stream = respond.send_response(response, false).unwrap();
            stream.send_trailers(says()).unwrap();
        }
    })
    .await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;
        let mut request = call("/");
        request.headers_mut().extend(says());
        let (response, mut stream) = client.send_request(request, false).unwrap();
        send(&mut stream, "body".into(), false).await.unwrap();
        stream.send_trailers(says()).unwrap();
        let (head, trailers) = soon(tells.recv()).await.unwrap();
        let web = id("web");
        let proven = (between == Between::Both).then(|| web.as_str());
        check_but_for(proven, &head, &format!("{between:?}, request"));
        check(&trailers, &format!("{between:?}, trailers of the request"));
        let (head, body) = soon(response).await.unwrap().into_parts();
        check(&head.headers, &format!("{between:?}, response"));
        let (_, trailers) = all(body).await.unwrap();
        check(&trailers.unwrap(), &format!("{between:?}, trailers of the response"));
        for sidecar in [&mesh.web, &mesh.orders].into_iter().flatten() {
            assert_eq!(
                metric(sidecar, "outrigger_errors_total", &["app-unavailable"]),
                0,
                "{between:?}"
            );
            assert_eq!(metric(sidecar, "outrigger_retries_total", &[]), 0, "{between:?}");
        }
    }
}
