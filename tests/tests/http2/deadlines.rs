//! A gRPC caller's time limit is kept, and goes on with what is left of it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use h2::Reason;
use http::HeaderValue;
use tokio::sync::mpsc;

use super::{
    Between, EACH, H2App, all, answer, call, client, code, grpc_status, mesh, message, piece, reset, soon, trailers,
};

fn with_timeout(path: &str, timeout: &'static str) -> http::Request<()> {
    let mut request = call(path);
    let timeout = HeaderValue::from_static(timeout);
    request.headers_mut().insert("grpc-timeout", timeout);
    request
}

/// In nanoseconds.
fn parse(timeout: &str) -> u128 {
    let (number, unit) = timeout.split_at(timeout.len() - 1);
    let unit: u128 = match unit {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "S" => 1_000_000_000,
        _ => panic!("{timeout}"),
    };
    assert!(number.len() <= 8, "{timeout}");
    number.parse::<u128>().unwrap() * unit
}

#[tokio::test]
async fn shrink_on_the_way_and_with_each_attempt() {
    let seen: Arc<Mutex<Vec<u128>>> = Arc::default();
    let app = H2App::start({
        let seen = Arc::clone(&seen);
        move |request, mut respond| {
            let timeout = request.headers()["grpc-timeout"].to_str().unwrap().to_owned();
            let mut seen = seen.lock().unwrap();
            seen.push(parse(&timeout));
            let first = seen.len() == 1;
            async move {
                let mut head = answer();
                head.headers_mut().extend(trailers(if first { "14" } else { "0" }));
                let again = HeaderValue::from_static("300");
                head.headers_mut().insert("grpc-retry-pushback-ms", again);
                respond.send_response(head, true).unwrap();
            }
        }
    })
    .await;
    for between in EACH {
        seen.lock().unwrap().clear();
        let mesh = mesh(between, app.address, "{retry: {nonIdempotent: true}}").await;
        let mut client = client(mesh.to).await;
        let (response, _) = client.send_request(with_timeout("/", "9S"), true).unwrap();
        let response = soon(response).await.unwrap();
        let seen = seen.lock().unwrap();
        let whole = Duration::from_secs(9).as_nanos();
        assert!(seen[0] < whole, "{between:?} {seen:?}");
        if between == Between::AppsSidecar {
            // Retries are the caller's.
            assert_eq!(grpc_status(response.headers()), Some("14"));
            continue;
        }
        assert_eq!(grpc_status(response.headers()), Some("0"), "{between:?}");
        assert!(seen[1] + Duration::from_millis(300).as_nanos() <= seen[0], "{seen:?}");
    }
}

#[tokio::test]
async fn end_a_call_whichever_limit_is_shorter() {
    let (told, mut tells) = mpsc::unbounded_channel();
    let app = H2App::start(move |request, mut respond| {
        let told = told.clone();
        async move {
            let reason = if request.uri().path() == "/silent" {
                soon(std::future::poll_fn(|cx| respond.poll_reset(cx))).await.unwrap()
            } else {
                let mut stream = respond.send_response(answer(), false).unwrap();
                stream.send_data(message(b"first"), false).unwrap();
                reset(&mut stream).await
            };
            told.send(reason).unwrap();
        }
    })
    .await;
    for between in [Between::Both, Between::CallersSidecar] {
        for (policy, timeout) in [
            ("{}", "200m"),
            ("{timeouts: {request: 1h}}", "200000u"),
            ("{timeouts: {request: 200ms}}", "99999999H"),
            ("{timeouts: {request: 200ms}}", "soon"),
        ] {
            let mesh = mesh(between, app.address, policy).await;
            let mut client = client(mesh.to).await;
            let (response, _) = client.send_request(with_timeout("/silent", timeout), true).unwrap();
            let response = soon(response).await.unwrap();
            assert_eq!(grpc_status(response.headers()), Some("4"), "{policy} {timeout}");
            assert_eq!(code(response.headers()), Some("request-timeout"));
            assert_eq!(soon(tells.recv()).await, Some(Reason::CANCEL));

            let (response, _) = client.send_request(with_timeout("/begins", timeout), true).unwrap();
            let mut answers = soon(response).await.unwrap().into_body();
            assert_eq!(piece(&mut answers).await.unwrap().unwrap(), message(b"first"));
            let (_, end) = all(answers).await.unwrap();
            let end = end.unwrap();
            assert_eq!((grpc_status(&end), code(&end)), (Some("4"), Some("request-timeout")));
            assert_eq!(soon(tells.recv()).await, Some(Reason::CANCEL));
        }
    }
}

/// A stream in which nothing moves ends; one in which something does, in either direction, goes on.
#[tokio::test]
async fn of_idle_streams() {
    let (told, mut tells) = mpsc::unbounded_channel();
    let app = H2App::start(move |request, mut respond| {
        let told = told.clone();
        async move {
            let path = request.uri().path().to_owned();
            let mut questions = request.into_body();
            let mut stream = respond.send_response(answer(), false).unwrap();
            stream.send_data(message(b"first"), false).unwrap();
            match path.as_str() {
                "/idle" => told.send(reset(&mut stream).await).unwrap(),
                // Hears all of it, and answers then.
                _ => {
                    while let Some(Ok(_)) = piece(&mut questions).await {}
                    stream.send_data(message(b"last"), false).unwrap();
                    stream.send_trailers(trailers("0")).unwrap();
                }
            }
        }
    })
    .await;
    for between in [Between::Both, Between::CallersSidecar] {
        let mesh = mesh(between, app.address, "{timeouts: {idle: 1s}}").await;
        let mut client = client(mesh.to).await;
        let (idle, _) = client.send_request(call("/idle"), true).unwrap();
        let (moves, mut questions) = client.send_request(call("/moves"), false).unwrap();
        let mut moves = soon(moves).await.unwrap().into_body();
        assert_eq!(piece(&mut moves).await.unwrap().unwrap(), message(b"first"));
        let idle = soon(idle).await.unwrap().into_body();
        let asks = async {
            loop {
                questions.send_data(message(b"?"), false).unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let ended = tokio::select! {
            ended = all(idle) => ended,
            () = asks => unreachable!(),
        };
        let end = ended.unwrap().1.unwrap();
        assert_eq!((grpc_status(&end), code(&end)), (Some("4"), Some("idle-timeout")));
        assert_eq!(soon(tells.recv()).await, Some(Reason::CANCEL));
        questions.send_data(message(b"end"), true).unwrap();
        let (_, end) = all(moves).await.unwrap();
        assert_eq!(grpc_status(&end.unwrap()), Some("0"), "{between:?}");
    }
}

#[tokio::test]
async fn that_say_nothing_change_nothing() {
    let app = H2App::start(|request, mut respond| async move {
        let mut head = answer();
        let timeout = request.headers().get("grpc-timeout").unwrap().clone();
        head.headers_mut().insert("x-timeout", timeout);
        respond.send_response(head, true).unwrap();
    })
    .await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;
        for malformed in ["soon", "5", "m", "", "-1S", "1.5S", "123456789n", "5s"] {
            let (response, _) = client.send_request(with_timeout("/", malformed), true).unwrap();
            let response = soon(response).await.unwrap();
            assert_eq!(response.headers()["x-timeout"], malformed, "{between:?}");
        }
        // Not gRPC: it is somebody else's header.
        let mut request = with_timeout("/", "1n");
        request.headers_mut().remove("content-type");
        let (response, _) = client.send_request(request, true).unwrap();
        assert_eq!(
            soon(response).await.unwrap().headers()["x-timeout"],
            "1n",
            "{between:?}"
        );
    }
}
