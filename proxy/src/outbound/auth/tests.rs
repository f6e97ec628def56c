//! What is asked, and what answers mean: tables, without a socket.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::ext::Protocol;
use outrigger_proxy_transport::server::HttpVersion;
use prost::Message;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::verdict::{Change, Denial, Verdict};
use super::wire::check_response::HttpResponse;
use super::wire::{
    AppendAction, BoolValue, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue as WireHeader,
    HeaderValueOption, HttpStatus, OkHttpResponse, QueryParameter, Status,
};
use super::{Question, grpc, http as plain};
use crate::model::ServiceName;

fn names(names: &[&str]) -> Vec<HeaderName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let line = |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    lines.iter().map(line).collect()
}

fn lines(headers: &HeaderMap) -> Vec<String> {
    let lines = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
    let mut lines: Vec<_> = lines.collect();
    lines.sort();
    lines
}

fn request(version: Version, method: &str, uri: &str, lines: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().version(version).method(method).uri(uri);
    *request.headers_mut().unwrap() = headers(lines);
    request.body(()).unwrap().into_parts().0
}

/// The request of a client that sends everything.
fn everything(version: Version) -> Parts {
    let uri = if version == Version::HTTP_2 {
        "http://shop.example:80/a/b?c=d"
    } else {
        "/a/b?c=d"
    };
    let mut lines = vec![
        ("authorization", "Bearer x"),
        ("cookie", "a=1"),
        ("x-a", "1"),
        ("x-a", "2"),
        ("x-b", "1"),
        ("te", "trailers"),
        ("expect", "100-continue"),
        ("content-length", "7"),
        ("outrigger-error", "no-route"),
    ];
    if version != Version::HTTP_2 {
        lines.push(("host", "shop.example:80"));
    }
    request(version, "POST", uri, &lines)
}

#[test]
fn a_question_in_http_says_what_the_filter_says_and_nothing_else() {
    let always = ["authorization: Bearer x", "content-length: 0", "host: shop.example:80"];
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for (allowed, more) in [
            (&[][..], &[][..]),
            (&["x-a", "X-None"], &["x-a: 1", "x-a: 2"]),
            (&["authorization", "cookie"], &["cookie: a=1"]),
            // Not by a route's word either.
            (
                &[
                    "te",
                    "expect",
                    "host",
                    "content-length",
                    "connection",
                    "outrigger-error",
                ],
                &[],
            ),
        ] {
            let asked = plain::question("/check", &names(allowed), &everything(version), None).unwrap();
            let mut expected: Vec<_> = always.iter().chain(more).map(|line| (*line).to_owned()).collect();
            expected.sort();
            assert_eq!(lines(&asked.head.headers), expected, "{version:?} {allowed:?}");
            assert_eq!(asked.head.uri, "/check/a/b?c=d");
            assert_eq!((asked.head.method, asked.version), (Method::POST, HttpVersion::Http1));
        }
    }
    let body = Bytes::from_static(b"abc");
    let asked = plain::question("", &[], &everything(Version::HTTP_11), Some(body.clone())).unwrap();
    assert_eq!(
        (&asked.head.headers["content-length"], asked.body.concat().into()),
        (&HeaderValue::from_static("3"), body)
    );
}

#[test]
fn each_form_of_a_target_is_asked_about() {
    for (prefix, method, uri, asked) in [
        ("", "GET", "/", "GET /"),
        ("/check", "GET", "/", "GET /check/"),
        ("/check", "GET", "http://shop.example/x?y", "GET /check/x?y"),
        ("/check", "GET", "http://shop.example", "GET /check/"),
        ("", "OPTIONS", "*", "OPTIONS *"),
        ("/check", "OPTIONS", "*", "OPTIONS /check/*"),
        ("", "HEAD", "//x", "HEAD //x"),
    ] {
        let head = request(Version::HTTP_11, method, uri, &[("host", "shop.example")]);
        let question = plain::question(prefix, &[], &head, None).unwrap();
        assert_eq!(format!("{} {}", question.head.method, question.head.uri), asked);
    }
    let tunnel = request(Version::HTTP_11, "CONNECT", "a:80", &[("host", "a:80")]);
    let refused = plain::question("", &[], &tunnel, None).err().unwrap();
    assert_eq!(refused.reason.code(), "auth-denied");
    let mut websocket = request(Version::HTTP_2, "CONNECT", "http://a/chat", &[]);
    websocket.extensions.insert(Protocol::from_static("websocket"));
    let question = plain::question("", &[], &websocket, None).unwrap();
    assert_eq!(
        (question.head.method, question.head.uri),
        (Method::GET, "/chat".parse().unwrap())
    );
}

/// Where a server resolves what another one does not, the question would be about something else.
#[test]
fn a_path_that_leads_out_of_the_servers_own_is_not_asked_about() {
    for path in [
        "/../metrics",
        "/a/..",
        "/a/%2e%2e/b",
        "/a/.%2E/b",
        "/a/..%2f..%2Fmetrics",
        "/a%2f..%2fb",
        "/a/..%5cb",
        "/a/..;x=1/b",
        "/a/..%3bx/b",
    ] {
        let head = request(Version::HTTP_11, "GET", path, &[("host", "a")]);
        let refused = plain::question("/check", &[], &head, None).err().unwrap();
        assert_eq!(refused.reason.code(), "auth-denied", "{path}");
        // It is asked about as it is where nothing stands before it.
        let question = plain::question("", &[], &head, None).unwrap();
        assert_eq!(question.head.uri.path(), path);
    }
    for path in ["/", "/a..b/...", "/a/./b", "/a%2Fb", "/%2e", "/a?b=/../c"] {
        let head = request(Version::HTTP_11, "GET", path, &[("host", "a")]);
        let question = plain::question("/check", &[], &head, None).unwrap();
        assert_eq!(question.head.uri.to_string(), format!("/check{path}"));
    }
}

/// A client does not say what only the server may say.
#[test]
fn a_header_that_is_asked_for_and_not_answered_is_taken_away() {
    let left = changed(Some(&["x-user"]), &[]);
    assert_eq!(left, ["content-type: text/a", "x-own: 1"]);
    assert_eq!(changed(None, &[]).len(), 4);
}

/// What a request has when an answer has let it through.
fn changed(list: Option<&[&str]>, answer: &[(&str, &str)]) -> Vec<String> {
    let list = list.map(names);
    let mut request = headers(&[
        ("x-user", "mallory"),
        ("x-user", "eve"),
        ("x-own", "1"),
        ("content-type", "text/a"),
    ]);
    for change in plain::changes(list.as_deref(), &headers(answer)) {
        change.apply(&mut request);
    }
    lines(&request)
}

#[test]
fn an_answer_in_http_gives_the_request_what_the_filter_says() {
    let answer = &[
        ("x-user", "alice"),
        ("x-group", "a"),
        ("x-group", "b"),
        ("content-type", "text/html"),
        ("content-length", "3"),
        ("connection", "close"),
        ("host", "evil.example"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "x"),
        ("expect", "100-continue"),
        ("outrigger-client-id", "spiffe://evil"),
    ];
    let own = ["content-type: text/a", "x-own: 1"];
    for (list, expected) in [
        (None, &["x-group: a", "x-group: b", "x-user: alice"][..]),
        (Some(&["x-user"][..]), &["x-user: alice"]),
        (
            Some(&["X-Group", "x-none"]),
            &["x-group: a", "x-group: b", "x-user: eve", "x-user: mallory"],
        ),
        (
            Some(&["host", "connection", "expect", "outrigger-client-id", "content-length"]),
            &["x-user: eve", "x-user: mallory"],
        ),
        (Some(&[]), &["x-user: eve", "x-user: mallory"]),
    ] {
        let mut expected: Vec<_> = own.iter().chain(expected).map(|line| (*line).to_owned()).collect();
        expected.sort();
        assert_eq!(changed(list, answer), expected, "{list:?}");
    }
    // Asked for by name.
    let by_name = changed(Some(&["content-type"]), answer);
    assert!(by_name.contains(&"content-type: text/html".to_owned()), "{by_name:?}");
}

#[test]
fn one_status_lets_a_request_through_and_a_denial_is_one() {
    for (status, told) in [
        (200, None),
        (201, Some(403)),
        (204, Some(403)),
        (302, Some(302)),
        (304, Some(304)),
        (401, Some(401)),
        (403, Some(403)),
        (429, Some(429)),
        (500, Some(500)),
        (503, Some(503)),
        (999, Some(403)),
    ] {
        let response = Response::builder().status(status).body(()).unwrap();
        let admits = plain::admits(&response);
        let denial = plain::denial(response.into_parts().0, None);
        assert_eq!((!admits).then(|| denial.status.as_u16()), told, "{status}");
    }
}

async fn replied(denial: Denial, grpc: bool) -> (u16, Vec<String>, Bytes) {
    let (head, body) = denial.reply(grpc).into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status.as_u16(), lines(&head.headers), body)
}

#[tokio::test]
async fn a_denial_is_passed_on_to_http_and_its_status_to_grpc() {
    let denial = |body: Option<&'static str>| Denial {
        status: StatusCode::UNAUTHORIZED,
        headers: headers(&[
            ("www-authenticate", "Basic"),
            ("content-type", "text/html"),
            ("content-length", "99"),
            ("transfer-encoding", "chunked"),
            ("outrigger-error", "no-route"),
            ("outrigger-fallback", "x"),
        ]),
        body: body.map(Bytes::from),
    };
    let lines = |all: &[&str]| all.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let whole = lines(&[
        "content-type: text/html",
        "outrigger-error: auth-denied",
        "www-authenticate: Basic",
    ]);
    assert_eq!(replied(denial(Some("no")), false).await, (401, whole, "no".into()));
    let without = lines(&["outrigger-error: auth-denied", "www-authenticate: Basic"]);
    assert_eq!(replied(denial(None), false).await, (401, without, Bytes::new()));
    let (status, grpc, body) = replied(denial(Some("no")), true).await;
    let expected = [
        "content-type: application/grpc",
        "grpc-message: the external authorization of its route does not let the request through (401 Unauthorized) (auth-denied)",
        "grpc-status: 16",
        "outrigger-error: auth-denied",
        "www-authenticate: Basic",
    ];
    assert_eq!((status, grpc, body), (200, lines(&expected), Bytes::new()));
}

fn asked(allowed: Option<&[&str]>, head: &Parts, body: Option<&'static [u8]>) -> (Question, CheckRequest) {
    let facts = grpc::Facts {
        caller: Some("spiffe://mesh.test/ns/shop/sa/web".to_owned()),
        service: "orders.shop:80".to_owned(),
        now: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
    };
    let auth = ServiceName {
        namespace: "shop".into(),
        name: "auth".into(),
        port: 9000,
    };
    let allowed = allowed.map(names);
    let question = grpc::question(allowed.as_deref(), head, body.map(Bytes::from_static), facts, &auth);
    let said = question.body.concat();
    let message = CheckRequest::decode(&said[5..]).unwrap();
    assert_eq!(
        said[..5],
        [&[0][..], &u32::try_from(said.len() - 5).unwrap().to_be_bytes()].concat()
    );
    (question, message)
}

#[test]
fn a_question_in_grpc_says_what_the_filter_says() {
    let (question, message) = asked(None, &everything(Version::HTTP_2), None);
    assert_eq!(
        question.head.uri,
        "http://auth.shop:9000/envoy.service.auth.v3.Authorization/Check"
    );
    assert_eq!(
        lines(&question.head.headers),
        ["content-type: application/grpc", "te: trailers"]
    );
    assert_eq!(
        (question.head.method, question.version),
        (Method::POST, HttpVersion::Http2)
    );
    let attributes = message.attributes.unwrap();
    assert_eq!(
        attributes.source.unwrap().principal,
        "spiffe://mesh.test/ns/shop/sa/web"
    );
    assert_eq!(attributes.destination.unwrap().service, "orders.shop:80");
    let of = attributes.request.unwrap();
    let time = of.time.unwrap();
    assert_eq!((time.seconds, time.nanos), (1, 500_000_000));
    let http = of.http.unwrap();
    let mut told: Vec<_> = http
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    told.sort();
    assert_eq!(told, ["authorization: Bearer x", "cookie: a=1", "x-a: 1,2", "x-b: 1"]);
    assert_eq!(
        (
            &*http.method,
            &*http.path,
            &*http.host,
            &*http.scheme,
            &*http.protocol,
            http.size
        ),
        ("POST", "/a/b?c=d", "shop.example:80", "http", "HTTP/2", -1)
    );
    for (allowed, expected) in [(&["x-a"][..], &["x-a"][..]), (&[], &[]), (&["te", "x-none"], &[])] {
        let (_, message) = asked(Some(allowed), &everything(Version::HTTP_11), None);
        let http = message.attributes.unwrap().request.unwrap().http.unwrap();
        assert_eq!(http.headers.keys().collect::<Vec<_>>(), expected);
        assert_eq!(http.protocol, "HTTP/1.1");
    }
    for (body, text, raw) in [
        (&b"text"[..], "text", &b""[..]),
        (b"\xff\0", "", b"\xff\0"),
        (b"", "", b""),
        // Lengths that take another byte each.
        (&[b'x'; 130], &"x".repeat(130), b""),
        (&[b'x'; 16_500], &"x".repeat(16_500), b""),
    ] {
        let (question, message) = asked(None, &everything(Version::HTTP_2), Some(body));
        let [_, told] = &question.body;
        assert_eq!((told.as_ptr(), told.len()), (body.as_ptr(), body.len()), "it is copied");
        let http = message.attributes.unwrap().request.unwrap().http.unwrap();
        assert_eq!((&*http.body, &*http.raw_body), (text, raw));
        assert_eq!(http.size, i64::try_from(body.len()).unwrap());
    }
}

/// The numbers on the wire, which a server of anybody's goes by.
#[test]
fn fields_have_the_numbers_that_servers_know() {
    // status: {code: 7}, denied_response: {status: {code: 401}, headers: [{header: {key: "a", value: "b"}}], body: "no"}
    let denied = b"\x0a\x02\x08\x07\x12\x13\x0a\x03\x08\x91\x03\x12\x08\x0a\x06\x0a\x01a\x12\x01b\x1a\x02no";
    let expected = Denial {
        status: StatusCode::UNAUTHORIZED,
        headers: headers(&[("a", "b")]),
        body: Some("no".into()),
    };
    assert_eq!(verdict(denied), Ok(Verdict::Denied(expected)));
    // status: {}, ok_response: {headers: [{header: {key: "a", value: "b"}, append: {value: true}}], headers_to_remove: ["c"]}
    let ok = b"\x0a\x00\x1a\x11\x12\x0c\x0a\x06\x0a\x01a\x12\x01b\x12\x02\x08\x01\x2a\x01c";
    let expected = vec![
        Change::Append("a".parse().unwrap(), "b".parse().unwrap()),
        Change::Remove("c".parse().unwrap()),
    ];
    assert_eq!(verdict(ok), Ok(Verdict::Admitted(expected)));
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    body
}

fn verdict(message: &[u8]) -> Result<Verdict, String> {
    let (head, ()) = Response::new(()).into_parts();
    grpc::verdict(&head, &framed(message), &headers(&[("grpc-status", "0")]))
}

fn option(key: &str, value: &str, append: Option<bool>, action: AppendAction) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(WireHeader {
            key: key.to_owned(),
            value: value.to_owned(),
            raw_value: Vec::new(),
        }),
        append: append.map(|value| BoolValue { value }),
        append_action: action.into(),
    }
}

fn admitted(ok: OkHttpResponse) -> Result<Verdict, String> {
    let answer = CheckResponse {
        status: Some(Status { code: 0 }),
        http_response: Some(HttpResponse::OkResponse(ok)),
    };
    verdict(&answer.encode_to_vec())
}

#[test]
fn headers_are_appended_or_set_as_the_answer_says() {
    use AppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd};
    for (append, action, there, absent) in [
        (None, AppendIfExistsOrAdd, &["a: new"][..], &["a: new"][..]),
        (Some(false), AppendIfExistsOrAdd, &["a: new"], &["a: new"]),
        (Some(true), AppendIfExistsOrAdd, &["a: new", "a: old"], &["a: new"]),
        (None, OverwriteIfExistsOrAdd, &["a: new"], &["a: new"]),
        (None, OverwriteIfExists, &["a: new"], &[]),
        (None, AddIfAbsent, &["a: old"], &["a: new"]),
    ] {
        for (before, expected) in [(&[("a", "old")][..], there), (&[], absent)] {
            let ok = OkHttpResponse {
                headers: vec![option("A", "new", append, action)],
                ..OkHttpResponse::default()
            };
            let Ok(Verdict::Admitted(changes)) = admitted(ok) else {
                panic!()
            };
            let mut request = headers(before);
            changes.into_iter().for_each(|change| change.apply(&mut request));
            assert_eq!(lines(&request), expected, "{append:?} {action:?} {before:?}");
        }
    }
}

#[test]
fn what_an_answer_may_not_change_it_does_not() {
    let reserved = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "te",
        "outrigger-client-id",
    ];
    let ok = OkHttpResponse {
        headers: reserved
            .map(|name| option(name, "x", None, AppendAction::AppendIfExistsOrAdd))
            .into(),
        headers_to_remove: reserved
            .iter()
            .chain(&[":path", ":authority"])
            .map(|name| (*name).to_owned())
            .collect(),
        ..OkHttpResponse::default()
    };
    assert_eq!(admitted(ok), Ok(Verdict::Admitted(vec![])));
    for ok in [
        OkHttpResponse {
            headers: vec![option(":path", "/", None, AppendAction::AppendIfExistsOrAdd)],
            ..OkHttpResponse::default()
        },
        OkHttpResponse {
            headers: vec![option("x", "a\r\nb: c", None, AppendAction::AppendIfExistsOrAdd)],
            ..OkHttpResponse::default()
        },
        OkHttpResponse {
            query_parameters_to_set: vec![QueryParameter { key: "a".to_owned() }],
            ..OkHttpResponse::default()
        },
        OkHttpResponse {
            query_parameters_to_remove: vec!["a".to_owned()],
            ..OkHttpResponse::default()
        },
    ] {
        assert!(admitted(ok.clone()).is_err(), "{ok:?}");
    }
}

#[test]
fn one_answer_lets_a_request_through_and_nothing_else() {
    let status = |code| Some(Status { code });
    let denied = |code: Option<i32>| {
        Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: code.map(|code| HttpStatus { code }),
            ..DeniedHttpResponse::default()
        }))
    };
    let ok = Some(HttpResponse::OkResponse(OkHttpResponse::default()));
    for (code, http_response, expected) in [
        (status(0), None, Ok(200)),
        (status(0), ok.clone(), Ok(200)),
        (status(0), denied(None), Err("its answer says both yes and no")),
        (None, None, Err("its answer has no status")),
        (None, ok.clone(), Err("its answer has no status")),
        (None, denied(None), Err("its answer has no status")),
        (status(7), None, Ok(403)),
        (status(7), ok.clone(), Ok(403)),
        (status(16), denied(Some(401)), Ok(401)),
        (status(-1), denied(Some(302)), Ok(302)),
        (status(7), denied(None), Ok(403)),
        (status(7), denied(Some(0)), Ok(403)),
        (status(7), denied(Some(200)), Ok(403)),
        (status(7), denied(Some(-5)), Ok(403)),
        (status(7), denied(Some(70_000)), Ok(403)),
    ] {
        let answer = CheckResponse {
            status: code,
            http_response,
        };
        let said = verdict(&answer.encode_to_vec()).map(|verdict| match verdict {
            Verdict::Admitted(_) => 200,
            Verdict::Denied(denial) => denial.status.as_u16(),
        });
        assert_eq!(said, expected.map_err(str::to_owned), "{answer:?}");
    }
}

#[test]
fn what_is_no_answer_of_grpc_lets_nothing_through() {
    let good = framed(b"\x0a\x00");
    let grpc_ok = [("grpc-status", "0")];
    for (status, in_head, trailers, body) in [
        (200, &[][..], &grpc_ok[..], &good[..]),
        (200, &[], &[], &good),
        (200, &[], &[("grpc-status", "x")], &good),
        (200, &[], &[("grpc-status", "14")], &good),
        (200, &[("grpc-status", "7")], &[], b""),
        (403, &[], &grpc_ok, &good),
        (204, &[], &grpc_ok, &good),
        (200, &[], &grpc_ok, b""),
        (200, &[], &grpc_ok, &good[..6]),
        (200, &[], &grpc_ok, &[&good[..], b"\0"].concat()),
        (200, &[], &grpc_ok, &[b"\x01", &good[1..]].concat()),
        (200, &[], &grpc_ok, &framed(b"\x0a")),
        (200, &[], &grpc_ok, &framed(b"\x0a\x7f")),
    ] {
        let mut response = Response::builder().status(status).body(()).unwrap();
        *response.headers_mut() = headers(in_head);
        let (head, ()) = response.into_parts();
        let said = grpc::verdict(&head, body, &headers(trailers));
        let is_the_first = said == Ok(Verdict::Admitted(vec![]));
        assert_eq!(
            is_the_first,
            status == 200 && trailers == grpc_ok && body == good,
            "{said:?}"
        );
        assert!(is_the_first || said.is_err());
    }
}

/// Whatever is answered: it is a yes only with a status whose code is 0, and nothing of it panics.
#[test]
fn ten_thousand_hostile_answers() {
    let base = CheckResponse {
        status: Some(Status { code: 0 }),
        http_response: Some(HttpResponse::OkResponse(OkHttpResponse {
            headers: vec![option("x-user", "a", Some(true), AppendAction::AddIfAbsent)],
            headers_to_remove: vec!["authorization".to_owned()],
            ..OkHttpResponse::default()
        })),
    }
    .encode_to_vec();
    let mut rng = SmallRng::seed_from_u64(1494);
    let mut yes = 0;
    for _ in 0..10_000 {
        let mut bytes = base.clone();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes[at] = rng.random(),
                1 => bytes.insert(at, rng.random()),
                _ => drop(bytes.remove(at)),
            }
        }
        if let Ok(Verdict::Admitted(changes)) = verdict(&bytes) {
            let read = CheckResponse::decode(&*bytes).unwrap();
            assert_eq!(read.status.map(|status| status.code), Some(0));
            let mut request = headers(&[("host", "a"), ("content-length", "1")]);
            changes.into_iter().for_each(|change| change.apply(&mut request));
            assert_eq!(
                (&request["host"], &request["content-length"]),
                (&"a".parse().unwrap(), &"1".parse().unwrap())
            );
            yes += 1;
        }
    }
    assert!((1..10_000).contains(&yes), "{yes}");
}
