//! Who breaks off is heard on the other side, with the code that was given.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use bytes::Bytes;
use h2::Reason;
use outrigger_tests::mesh::metric;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::raw::{self, END_HEADERS, END_STREAM, HEADERS, Raw, frame};
use super::{
    Between, EACH, H2App, all, answer, call, client, code, grpc_status, mesh, message, piece, reset, send, soon,
};

#[tokio::test]
async fn of_the_client_reach_the_app() {
    let (told, mut tells) = mpsc::unbounded_channel();
    let app = H2App::start(move |request, mut respond| {
        let told = told.clone();
        async move {
            let path = request.uri().path().to_owned();
            let reason = match path.as_str() {
                "/before-the-response" => {
                    told.send(Err(())).unwrap();
                    soon(std::future::poll_fn(|cx| respond.poll_reset(cx))).await.unwrap()
                }
                "/in-the-response" => {
                    let mut stream = respond.send_response(answer(), false).unwrap();
                    stream.send_data("first".into(), false).unwrap();
                    reset(&mut stream).await
                }
                _ => {
                    let mut body = request.into_body();
                    let mut stream = respond.send_response(answer(), false).unwrap();
                    stream.send_data("first".into(), false).unwrap();
                    let broken = loop {
                        match piece(&mut body).await {
                            Some(Err(broken)) => break broken,
                            Some(Ok(_)) => {}
                            None => panic!("a body that was broken off looks complete"),
                        }
                    };
                    assert_eq!(reset(&mut stream).await, broken.reason().unwrap());
                    broken.reason().unwrap()
                }
            };
            told.send(Ok(reason)).unwrap();
        }
    })
    .await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;

        let (response, mut body) = client.send_request(call("/before-the-response"), true).unwrap();
        assert_eq!(soon(tells.recv()).await, Some(Err(())));
        body.send_reset(Reason::CANCEL);
        assert_eq!(soon(tells.recv()).await, Some(Ok(Reason::CANCEL)), "{between:?}");
        drop(response);

        let (response, body) = client.send_request(call("/in-the-response"), true).unwrap();
        let mut answers = soon(response).await.unwrap().into_body();
        assert_eq!(piece(&mut answers).await.unwrap().unwrap(), "first");
        // Who lets go of a stream resets it.
        drop((answers, body));
        assert_eq!(soon(tells.recv()).await, Some(Ok(Reason::CANCEL)), "{between:?}");

        let (response, mut body) = client.send_request(call("/in-the-request"), false).unwrap();
        body.send_data(message(b"part"), false).unwrap();
        let mut answers = soon(response).await.unwrap().into_body();
        assert_eq!(piece(&mut answers).await.unwrap().unwrap(), "first");
        body.send_reset(Reason::CANCEL);
        assert_eq!(soon(tells.recv()).await, Some(Ok(Reason::CANCEL)), "{between:?}");

        for proxy in mesh.web.iter().chain(&mesh.orders) {
            assert_eq!(
                metric(proxy, "outrigger_errors_total", &["client-closed"]),
                3,
                "{between:?}"
            );
        }
    }
}

#[tokio::test]
async fn of_the_app_reach_the_client() {
    let app = H2App::start(|request, mut respond| async move {
        let code = request.uri().path().trim_start_matches('/').parse::<u32>();
        let Ok(code) = code else {
            return respond.send_reset(Reason::INTERNAL_ERROR);
        };
        let mut stream = respond.send_response(answer(), false).unwrap();
        stream.send_data("first".into(), false).unwrap();
        // The client says that it has it.
        all(request.into_body()).await.unwrap();
        stream.send_reset(code.into());
    })
    .await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;
        for reason in [Reason::CANCEL, Reason::INTERNAL_ERROR, Reason::ENHANCE_YOUR_CALM] {
            let path = format!("/{}", u32::from(reason));
            let (response, mut body) = client.send_request(call(&path), false).unwrap();
            let mut answers = soon(response).await.unwrap().into_body();
            assert_eq!(piece(&mut answers).await.unwrap().unwrap(), "first");
            body.send_data(Bytes::new(), true).unwrap();
            let broken = piece(&mut answers).await.unwrap().unwrap_err();
            assert_eq!(broken.reason(), Some(reason), "{between:?}");
            assert!(broken.is_reset() && broken.is_remote());
        }
        // Before there is a response, there is room to say what has happened.
        let (response, _) = client.send_request(call("/now"), true).unwrap();
        let response = soon(response).await.unwrap();
        assert_eq!(code(response.headers()), Some("upstream-reset"), "{between:?}");
        assert_eq!(grpc_status(response.headers()), Some("14"));
    }
}

#[tokio::test]
async fn an_app_that_crashes_in_the_middle_is_told() {
    let app = H2App::start(|request, mut respond| async move {
        let mut stream = respond.send_response(answer(), false).unwrap();
        stream.send_data("first".into(), false).unwrap();
        let _ = all(request.into_body()).await;
    })
    .await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;
        let (grpc, _body) = client.send_request(call("/"), false).unwrap();
        let mut grpc = soon(grpc).await.unwrap().into_body();
        assert_eq!(piece(&mut grpc).await.unwrap().unwrap(), "first");
        let mut request = call("/");
        request.headers_mut().remove("content-type");
        let (other, _other_body) = client.send_request(request, false).unwrap();
        let mut other = soon(other).await.unwrap().into_body();
        assert_eq!(piece(&mut other).await.unwrap().unwrap(), "first");
        app.break_connections();
        // A gRPC client hears UNAVAILABLE, as it would of its own connection; and why.
        let (_, end) = all(grpc).await.unwrap();
        let end = end.unwrap();
        assert_eq!(
            (grpc_status(&end), code(&end)),
            (Some("14"), Some("upstream-reset")),
            "{between:?}"
        );
        // Another must not take what it has for all of it.
        let broken = piece(&mut other).await.unwrap().unwrap_err();
        assert_eq!(broken.reason(), Some(Reason::INTERNAL_ERROR));
    }
}

#[tokio::test]
async fn a_client_that_is_gone_stops_a_long_response() {
    let (told, mut tells) = mpsc::unbounded_channel();
    let app = H2App::start(move |_, mut respond| {
        let told = told.clone();
        async move {
            let mut stream = respond.send_response(answer(), false).unwrap();
            while send(&mut stream, Bytes::from(vec![0; 1 << 14]), false).await.is_ok() {}
            told.send(()).unwrap();
        }
    })
    .await;
    let mesh = mesh(Between::Both, app.address, "{}").await;
    for _ in 0..2 {
        let mut client = client(mesh.to).await;
        let (response, body) = client.send_request(call("/"), true).unwrap();
        let mut answers = soon(response).await.unwrap().into_body();
        assert!(piece(&mut answers).await.unwrap().is_ok());
        // The whole connection goes, without a word for the stream.
        drop((client, answers, body));
        soon(tells.recv()).await.unwrap();
    }
}

/// A stream that the app refuses before it looks at it is sent again, with all of its body; also of one that is too large to
/// be kept, as long as none of it was sent (its client waits, with `Expect`).
#[tokio::test]
async fn what_is_refused_is_sent_again_whole() {
    let (told, mut tells) = mpsc::unbounded_channel();
    let refused = Arc::<AtomicBool>::default();
    let app = H2App::start(move |request, mut respond| {
        let (told, refused) = (told.clone(), Arc::clone(&refused));
        async move {
            let first = !refused.fetch_xor(true, SeqCst);
            told.send(first).unwrap();
            if first {
                respond.send_reset(Reason::REFUSED_STREAM);
                return;
            }
            let (body, _) = all(request.into_body()).await.unwrap();
            let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
            stream.send_data(body.into(), true).unwrap();
        }
    })
    .await;
    let large = "x".repeat(100_000);
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;
        for (body, waits) in [("", false), ("small", false), ("small", true), (&large, true)] {
            let context = format!("{between:?}, {} bytes, waits: {waits}", body.len());
            let mut request = http::Request::post("http://orders/");
            if waits {
                request = request.header("expect", "100-continue");
            }
            let request = request.body(()).unwrap();
            let (response, mut stream) = client.send_request(request, body.is_empty()).unwrap();
            if !waits && !body.is_empty() {
                send(&mut stream, Bytes::copy_from_slice(body.as_bytes()), true)
                    .await
                    .unwrap();
            }
            assert_eq!(soon(tells.recv()).await, Some(true), "{context}");
            assert_eq!(soon(tells.recv()).await, Some(false), "{context}");
            if waits {
                send(&mut stream, Bytes::copy_from_slice(body.as_bytes()), true)
                    .await
                    .unwrap();
            }
            let response = soon(response).await.unwrap();
            assert_eq!(response.status(), 200, "{context}");
            let (echo, _) = all(response.into_body()).await.unwrap();
            assert!(echo == body.as_bytes(), "{context}: {} bytes", echo.len());
        }
    }
}

/// END_STREAM says that a client has said all (RFC 9113 section 5.1). The end of its half of the connection says that it is gone:
/// it can acknowledge no SETTINGS and no PING any more, which it must, and open no window (sections 6.5, 6.7, 6.9).
#[tokio::test]
async fn a_client_that_ends_its_half_of_the_connection_has_gone() {
    struct Stream(mpsc::UnboundedSender<&'static str>);
    impl Drop for Stream {
        fn drop(&mut self) {
            let _ = self.0.send("ended");
        }
    }
    let (told, mut tells) = mpsc::unbounded_channel();
    let app = H2App::start(move |_, mut respond| {
        let told = told.clone();
        async move {
            told.send("begun").unwrap();
            // With a reset, or with the connection, if there is nobody else on it.
            let _stream = Stream(told);
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        }
    })
    .await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = Raw::connect(mesh.to, &[]).await;
        let request = frame(HEADERS, END_HEADERS | END_STREAM, 1, &raw::request(false));
        client.send(&request).await;
        assert_eq!(soon(tells.recv()).await, Some("begun"), "{between:?}");
        client.write.shutdown().await.unwrap();
        assert_eq!(soon(tells.recv()).await, Some("ended"), "{between:?}");
    }
}
