//! The four kinds of gRPC calls, and large messages.

use bytes::Bytes;
use http::Request;

use super::raw::{self, DATA, END_HEADERS, END_STREAM, HEADERS, Raw, frame};
use super::{
    Between, EACH, H2App, all, answer, at_length, call, client, client_with, grpc_status, mesh, message, piece, send,
    soon, trailers,
};

async fn app() -> H2App {
    H2App::start(|request, mut respond| async move {
        let (head, mut body) = request.into_parts();
        match head.uri.path() {
            "/unary" => {
                let (bytes, _) = all(body).await.unwrap();
                let mut stream = respond.send_response(answer(), false).unwrap();
                send(&mut stream, bytes.into(), false).await.unwrap();
                stream.send_trailers(trailers("0")).unwrap();
            }
            "/sum" => {
                let mut total = 0;
                while let Some(piece) = piece(&mut body).await {
                    total += piece.unwrap().len();
                }
                let mut stream = respond.send_response(answer(), false).unwrap();
                stream.send_data(total.to_string().into(), false).unwrap();
                stream.send_trailers(trailers("0")).unwrap();
            }
            "/many" => {
                let mut stream = respond.send_response(answer(), false).unwrap();
                for n in 0..100 {
                    send(&mut stream, message(format!("message {n}").as_bytes()), false)
                        .await
                        .unwrap();
                }
                stream.send_trailers(trailers("0")).unwrap();
            }
            "/chat" => {
                // The server speaks first, answers each message, and goes on after the client has finished.
                let mut stream = respond.send_response(answer(), false).unwrap();
                send(&mut stream, "hello".into(), false).await.unwrap();
                while let Some(piece) = piece(&mut body).await {
                    send(&mut stream, piece.unwrap(), false).await.unwrap();
                }
                send(&mut stream, "bye".into(), false).await.unwrap();
                stream.send_trailers(trailers("0")).unwrap();
            }
            "/hangs-up" => {
                let mut stream = respond.send_response(answer(), false).unwrap();
                stream.send_trailers(trailers("0")).unwrap();
                // To end without hearing the client out is no failure (RFC 9113 section 8.1): h2 sends NO_ERROR.
                drop(body);
            }
            _ => {
                let mut refusal = answer();
                refusal.headers_mut().extend(trailers("5"));
                respond.send_response(refusal, true).unwrap();
            }
        }
    })
    .await
}

#[tokio::test]
async fn unary_and_streams_of_each_side() {
    let app = app().await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;

        let (response, mut body) = client.send_request(call("/unary"), false).unwrap();
        body.send_data(message(b"ask"), true).unwrap();
        let response = soon(response).await.unwrap();
        assert_eq!(response.status(), 200);
        let (bytes, end) = all(response.into_body()).await.unwrap();
        assert_eq!((&bytes[..], &message(b"ask")[..]), (&message(b"ask")[..], &bytes[..]));
        assert_eq!(grpc_status(&end.unwrap()), Some("0"), "{between:?}");

        let (response, mut body) = client.send_request(call("/sum"), false).unwrap();
        for _ in 0..100 {
            send(&mut body, message(b"0123456789"), false).await.unwrap();
        }
        body.send_data(Bytes::new(), true).unwrap();
        let (bytes, end) = all(soon(response).await.unwrap().into_body()).await.unwrap();
        assert_eq!(bytes, b"1500");
        assert_eq!(grpc_status(&end.unwrap()), Some("0"));

        let (response, _) = client.send_request(call("/many"), true).unwrap();
        let (bytes, end) = all(soon(response).await.unwrap().into_body()).await.unwrap();
        let expected: Vec<u8> = (0..100)
            .flat_map(|n| message(format!("message {n}").as_bytes()))
            .collect();
        assert!(bytes == expected, "{between:?}");
        assert_eq!(grpc_status(&end.unwrap()), Some("0"));
    }
}

#[tokio::test]
async fn both_sides_stream_and_the_client_finishes_first() {
    let app = app().await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;
        let (response, mut body) = client.send_request(call("/chat"), false).unwrap();
        // Nothing was sent but the head: it must be there already.
        let mut answers = soon(response).await.unwrap().into_body();
        assert_eq!(piece(&mut answers).await.unwrap().unwrap(), "hello", "{between:?}");
        for text in ["one", "two", "three"] {
            body.send_data(text.into(), false).unwrap();
            assert_eq!(piece(&mut answers).await.unwrap().unwrap(), text);
        }
        body.send_data(Bytes::new(), true).unwrap();
        let (bytes, end) = all(answers).await.unwrap();
        assert_eq!(bytes, b"bye");
        assert_eq!(grpc_status(&end.unwrap()), Some("0"));
    }
}

#[tokio::test]
async fn trailers_only_and_a_server_that_does_not_listen_to_the_end() {
    let app = app().await;
    for between in EACH {
        let mesh = mesh(between, app.address, "{}").await;
        let mut client = client(mesh.to).await;
        let (response, _body) = client.send_request(call("/other"), false).unwrap();
        let response = soon(response).await.unwrap();
        assert_eq!(grpc_status(response.headers()), Some("5"), "{between:?}");
        assert!(response.body().is_end_stream());

        let (response, mut body) = client.send_request(call("/hangs-up"), false).unwrap();
        body.send_data(message(b"is nobody there?"), false).unwrap();
        let (bytes, end) = all(soon(response).await.unwrap().into_body()).await.unwrap();
        assert_eq!((bytes.len(), grpc_status(&end.unwrap())), (0, Some("0")), "{between:?}");
    }
}

#[tokio::test]
async fn a_message_of_32_megabytes_both_ways() {
    let app = app().await;
    let mesh = mesh(Between::Both, app.address, "{}").await;
    let mut client = client(mesh.to).await;
    let large: Vec<u8> = (0..32 << 20).map(|i: u32| (i ^ (i >> 8)) as u8).collect();
    let large = message(&large);
    let (response, mut body) = client.send_request(call("/unary"), false).unwrap();
    at_length(send(&mut body, large.clone(), true)).await.unwrap();
    let response = at_length(response).await.unwrap();
    let (bytes, end) = all(response.into_body()).await.unwrap();
    assert!(bytes == large, "{} bytes", bytes.len());
    assert_eq!(grpc_status(&end.unwrap()), Some("0"));
    let metrics = mesh.web.as_ref().unwrap();
    let not_kept = outrigger_tests::mesh::metric(metrics, "outrigger_request_bodies_not_kept_total", &["orders"]);
    assert_eq!(not_kept, 1);
}

#[tokio::test]
async fn short_messages_to_a_slow_reader() {
    // More small frames than the library lets lie about unread on a connection with a small window.
    const MESSAGES: usize = 8_000;
    let app = H2App::start(|_, mut respond| async move {
        let mut stream = respond.send_response(answer(), false).unwrap();
        for _ in 0..MESSAGES {
            send(&mut stream, message(b"0123456789"), false).await.unwrap();
        }
        stream.send_trailers(trailers("0")).unwrap();
    })
    .await;
    let mesh = mesh(Between::Both, app.address, "{}").await;
    let mut patient = h2::client::Builder::new();
    patient.initial_connection_window_size(16 << 20);
    let mut client = client_with(mesh.to, &patient).await;
    let (slow, _) = client.send_request(call("/"), true).unwrap();
    let slow = soon(slow).await.unwrap().into_body();
    // The app goes on until the windows are full, and others on the same connections are heard meanwhile.
    for _ in 0..3 {
        let (other, _) = client.send_request(call("/"), true).unwrap();
        let (bytes, _) = all(soon(other).await.unwrap().into_body()).await.unwrap();
        assert_eq!(bytes.len(), MESSAGES * 15);
    }
    let (bytes, end) = all(slow).await.unwrap();
    assert_eq!((bytes.len(), grpc_status(&end.unwrap())), (MESSAGES * 15, Some("0")));
}

#[tokio::test]
async fn empty_pieces_do_not_end_a_connection() {
    let app = app().await;
    let mesh = mesh(Between::Both, app.address, "{}").await;
    // h2 takes 100 of them on a connection. Each of these has fewer, and the sidecars have one connection between them.
    for _ in 0..4 {
        let mut raw = Raw::connect(mesh.to, &[]).await;
        raw.send(&frame(HEADERS, END_HEADERS, 1, &raw::request(true))).await;
        for _ in 0..90 {
            raw.send(&frame(DATA, 0, 1, &[])).await;
            tokio::task::yield_now().await;
        }
        raw.send(&frame(DATA, END_STREAM, 1, b"end")).await;
        let response = raw.until(HEADERS).await.unwrap();
        assert_eq!(response.payload[0], raw::STATUS_200[0]);
    }
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn http2_by_prior_knowledge_where_the_protocol_is_not_told() {
    use outrigger_tests::mesh::{Authority, Sidecar, id};
    let app = app().await;
    let authority = Authority::start(&["web", "orders"], std::time::Duration::from_secs(86_400)).await;
    let orders = Sidecar::new("orders").protects(app.address).start(&authority).await;
    let web = Sidecar::new("web")
        .calls("orders", "detect", &[(orders.inbound[0], Some(id("orders")))], "{}")
        .start(&authority)
        .await;
    let mut client = client(web.outbound[0]).await;
    let request = Request::get("http://orders.shop/many").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let (_, end) = all(soon(response).await.unwrap().into_body()).await.unwrap();
    assert_eq!(grpc_status(&end.unwrap()), Some("0"));
}
