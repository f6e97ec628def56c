//! Whom a request is for is said once (RFC 9113 section 8.3.1).

use http::{HeaderMap, Request, Uri, Version};
use tokio::sync::mpsc;

use super::raw::{END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Raw, field, frame};
use super::{EACH, H2App, client, code, mesh, soon};

async fn app() -> (H2App, mpsc::UnboundedReceiver<(Uri, HeaderMap)>) {
    let (sees, seen) = mpsc::unbounded_channel();
    let app = H2App::start(move |request, mut respond| {
        let (head, _) = request.into_parts();
        sees.send((head.uri, head.headers)).unwrap();
        async move {
            respond.send_response(http::Response::new(()), true).unwrap();
        }
    })
    .await;
    (app, seen)
}

/// Without `:authority` if the URI names none.
fn request(method: &str, uri: &str, hosts: &[&str]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(uri);
    if request.uri_ref().is_some_and(|uri| uri.authority().is_none()) {
        request = request.version(Version::HTTP_11);
    }
    for host in hosts {
        request = request.header("host", *host);
    }
    request.body(()).unwrap()
}

#[tokio::test]
async fn is_said_once_to_the_app() {
    let (app, mut seen) = app().await;
    let itself = app.address.to_string();
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;
        for (method, uri, hosts, expected) in [
            ("GET", "http://a/x", &[][..], "a"),
            ("GET", "http://a/x", &["a"], "a"),
            ("GET", "http://a:80/x", &["A"], "a:80"),
            ("GET", "https://a/x", &["a:443"], "a"),
            ("GET", "/x", &["a:8080"], "a:8080"),
            ("GET", "/x", &["[::1]:80"], "[::1]:80"),
            ("OPTIONS", "*", &["a"], "a"),
            // Of nobody: the endpoint.
            ("GET", "/x", &[], ""),
            ("GET", "/x", &[""], ""),
        ] {
            let name = format!("{between:?}: {uri} {hosts:?}");
            let (response, _) = client.send_request(request(method, uri, hosts), true).unwrap();
            assert_eq!(soon(response).await.unwrap().status(), 200, "{name}");
            let (at, headers) = soon(seen.recv()).await.unwrap();
            let authority = at.authority().map_or("", |authority| authority.as_str());
            match expected {
                // Of the sidecar that was called, or the app.
                "" => assert!(
                    authority.starts_with("127.0.0.1:") && authority.len() == itself.len(),
                    "{name}: {at}"
                ),
                expected => assert_eq!(authority, expected, "{name}"),
            }
            assert!(!headers.contains_key("host"), "{name}: {headers:?}");
            client = soon(client.ready()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn in_two_ways_is_refused() {
    let (app, mut seen) = app().await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;
        for (method, uri, hosts) in [
            ("GET", "http://a/", &["b"][..]),
            ("GET", "http://a/", &["a:81"]),
            ("GET", "http://a:81/", &["a"]),
            ("GET", "http://a/", &[""]),
            ("GET", "http://a/", &["u@a"]),
            ("GET", "http://a/", &["a", "a"]),
            ("GET", "http://a/", &["a", "b"]),
            ("GET", "/", &["a", "b"]),
            ("GET", "/", &["a b"]),
            ("GET", "/", &["u@a"]),
            ("GET", "/", &["a:b"]),
            ("GET", "http://u@a/", &[]),
            ("GET", "http://u:p@a/", &["a"]),
            ("GET", "http://a:b/", &[]),
            ("GET", "http://[a]/", &[]),
            ("POST", "*", &["a"]),
            ("CONNECT", "a", &[]),
            ("CONNECT", "a:0", &[]),
            ("CONNECT", "u@a:80", &[]),
        ] {
            let name = format!("{between:?}: {method} {uri} {hosts:?}");
            let (response, _stream) = client
                .send_request(request(method, uri, hosts), method != "CONNECT")
                .unwrap();
            let response = soon(response).await.unwrap();
            let answer = (response.status().as_u16(), code(response.headers()));
            assert_eq!(answer, (400, Some("bad-request")), "{name}");
            assert!(seen.try_recv().is_err(), "{name}: it comes to the app");
            client = soon(client.ready()).await.unwrap();
        }
    }
}

/// What the library finds malformed ends its stream (RFC 9113 section 8.1.1), and no other.
#[tokio::test]
async fn malformed_pseudo_headers_end_the_stream() {
    let (app, mut seen) = app().await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = Raw::connect(mesh.to, &[]).await;
        let (get, http, path, to) = (
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "a"),
        );
        for (n, fields) in [
            &[get, http, path, (":authority", "")][..],
            &[get, http, path, (":authority", "a b")],
            &[get, http, path, (":authority", "a:80:90")],
            &[get, http, path, (":authority", "[::1")],
            &[get, http, path, to, to],
            &[get, http, path, ("x", "1"), to],
            &[get, http, (":path", ""), to],
            &[get, http, (":path", "a"), to],
            &[get, http, (":path", "/a b"), to],
            &[get, http, to],
            &[get, path, to],
            &[get, (":scheme", "h t"), path, to],
            &[http, path, to],
            &[get, http, path, to, ("connection", "close")],
            &[get, http, path, to, ("transfer-encoding", "chunked")],
            &[get, http, path, to, ("content-length", "5"), ("content-length", "6")],
        ]
        .iter()
        .enumerate()
        {
            let stream = 2 * u32::try_from(n).unwrap() + 1;
            let block: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name, value)).collect();
            client
                .send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block))
                .await;
            let reset = client.until(RST_STREAM).await.unwrap();
            // PROTOCOL_ERROR.
            assert_eq!((reset.stream, reset.number(0)), (stream, 1), "{between:?}: {fields:?}");
            assert!(seen.try_recv().is_err(), "{between:?}: {fields:?}");
        }
    }
}
