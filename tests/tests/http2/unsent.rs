//! A call that comes to a sidecar together with the end of the connection that it is about to take: nothing of it was sent, so it
//! is sent again whole.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use outrigger_tests::mesh::{Authority, Sidecar};
use outrigger_tests::program::Program;
use tokio::sync::mpsc;

use super::{H2App, all, client, soon};

#[tokio::test]
async fn over_a_stale_connection_it_is_sent_again_whole() {
    let (told, mut tells) = mpsc::unbounded_channel();
    let app = H2App::start(move |request, mut respond| {
        let told = told.clone();
        async move {
            told.send(()).unwrap();
            let (body, _) = all(request.into_body()).await.unwrap();
            let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
            stream.send_data(body.into(), true).unwrap();
        }
    })
    .await;
    let authority = Authority::start(&["web", "orders"], Duration::from_secs(3600)).await;
    let large = "x".repeat(100_000);
    for policy in ["{retry: {attempts: 0}}", "{}"] {
        let web = Sidecar::new("web").calls("orders", "http2", &[(app.address, None)], policy);
        let web = Program::start("web", web, &authority, None).await;
        let mut client = client(web.outbound[0]).await;
        for (body, waits) in [("", false), ("small", false), ("small", true), (&large, true)] {
            let context = format!("{policy}, {} bytes, waits: {waits}", body.len());
            let (response, _) = client.send_request(Request::new(()), true).unwrap();
            assert_eq!(soon(response).await.unwrap().status(), 200, "{context}");
            soon(tells.recv()).await;
            let mut request = Request::post("http://orders/");
            if waits {
                request = request.header("expect", "100-continue");
            }
            let request = request.body(()).unwrap();
            let (response, mut stream) = web
                .while_stopped(async {
                    let (response, mut stream) = client.send_request(request, body.is_empty()).unwrap();
                    if !waits && !body.is_empty() {
                        stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true).unwrap();
                    }
                    // For the task of this client's connection to write it.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    app.break_connections();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    (response, stream)
                })
                .await;
            soon(tells.recv()).await.expect("it comes to the app");
            if waits {
                stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true).unwrap();
            }
            let response = soon(response).await.unwrap();
            assert_eq!(response.status(), 200, "{context}");
            let (echo, _) = all(response.into_body()).await.unwrap();
            assert!(echo == body.as_bytes(), "{context}: {} bytes", echo.len());
        }
    }
}
