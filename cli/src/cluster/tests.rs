#![allow(clippy::unwrap_used)]

use futures_util::{SinkExt, StreamExt};
use http::HeaderValue;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio::net::TcpListener;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

use super::sidecar_page;

/// Channels of the first port, as kube-apiserver numbers them.
const DATA: u8 = 0;
const ERROR: u8 = 1;

/// A kube-apiserver for one `pods/portforward`, whose pod answers so at its admin port (or the kubelet, on the channel of errors). Gives
/// what it is asked for: the API's path, and the request to the pod.
async fn apiserver(channel: u8, answer: &'static str) -> (kube::Client, tokio::task::JoinHandle<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut asked = String::new();
        #[expect(clippy::result_large_err, reason = "tungstenite's")]
        let callback = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            asked = request.uri().to_string();
            let v4 = HeaderValue::from_static("v4.channel.k8s.io");
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, v4);
            Ok(response)
        };
        let mut socket = accept_hdr_async(stream, callback).await.unwrap();
        for of in [DATA, ERROR] {
            let port = outrigger_api::ports::ADMIN.to_le_bytes();
            let first = Message::binary(vec![of, port[0], port[1]]);
            socket.send(first).await.unwrap();
        }
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let frame = socket.next().await.unwrap().unwrap().into_data();
            assert_eq!(frame[0], DATA);
            request.extend_from_slice(&frame[1..]);
        }
        let mut frame = vec![channel];
        frame.extend_from_slice(answer.as_bytes());
        socket.send(Message::binary(frame)).await.unwrap();
        // Until it is no longer wanted.
        while let Some(Ok(_)) = socket.next().await {}
        (asked, String::from_utf8(request).unwrap())
    });
    let client = kube::Client::try_from(kube::Config::new(url)).unwrap();
    (client, serving)
}

#[tokio::test]
async fn a_page_of_a_sidecar_comes_over_the_pods_loopback() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (client, apiserver) = apiserver(DATA, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
    let page = sidecar_page(&client, "shop", "orders-1", "/config").await.unwrap();
    assert_eq!(&page[..], b"{}");
    let (asked, request) = apiserver.await.unwrap();
    assert_eq!(asked, "/api/v1/namespaces/shop/pods/orders-1/portforward?&ports=14190");
    assert!(request.starts_with("GET /config HTTP/1.1\r\n"), "{request}");
}

#[tokio::test]
async fn what_is_no_page_says_why() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    for (channel, answer, expected) in [
        (
            DATA,
            "HTTP/1.1 404 Not Found\r\ncontent-length: 10\r\n\r\nnot found\n",
            "/callers: 404 Not Found: not found",
        ),
        (ERROR, "connection refused", "connection refused"),
    ] {
        let (client, _apiserver) = apiserver(channel, answer).await;
        let error = sidecar_page(&client, "shop", "orders-1", "/callers").await.unwrap_err();
        assert_eq!(error.root_cause().to_string(), expected);
        assert!(error.to_string().contains("shop/orders-1"), "{error}");
    }
}
