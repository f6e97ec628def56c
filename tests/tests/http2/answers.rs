//! Responses that are no proper answers (RFC 9113 section 8.1.1): 502, with what is wrong; or repaired.

use http::{Method, Request};
use tokio::net::TcpListener;

use super::raw::{DATA, END_HEADERS, END_STREAM, HEADERS, Raw, field, frame};
use super::{EACH, all, client, code, mesh, soon};

type Fields = &'static [(&'static str, &'static str)];

/// What an app sends in its streams.
#[derive(Clone, Copy, Debug)]
enum Sends {
    Head(Fields),
    /// The last frame.
    End(Fields),
    Data(&'static str),
    EndData(&'static str),
}

/// An app that answers every request on a connection with the same frames.
async fn app(sends: &'static [Sends]) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let mut app = Raw::accept(&listener).await;
            tokio::spawn(async move {
                while let Some(request) = app.until(HEADERS).await {
                    for sent in sends {
                        let block = |fields: Fields| -> Vec<u8> {
                            fields.iter().flat_map(|(name, value)| field(name, value)).collect()
                        };
                        let bytes = match sent {
                            Sends::Head(fields) => frame(HEADERS, END_HEADERS, request.stream, &block(fields)),
                            Sends::End(fields) => {
                                frame(HEADERS, END_HEADERS | END_STREAM, request.stream, &block(fields))
                            }
                            Sends::Data(data) => frame(DATA, 0, request.stream, data.as_bytes()),
                            Sends::EndData(data) => frame(DATA, END_STREAM, request.stream, data.as_bytes()),
                        };
                        app.send(&bytes).await;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn improper_ones_are_refused() {
    use Sends::{Data, End, EndData, Head};
    const CASES: &[&[Sends]] = &[
        &[End(&[])],
        &[End(&[(":status", "20")])],
        &[End(&[(":status", "200"), (":status", "200")])],
        &[End(&[(":status", "200"), ("connection", "close")])],
        &[End(&[(":status", "200"), ("transfer-encoding", "chunked")])],
        &[End(&[(":status", "426"), ("upgrade", "h2c")])],
        &[
            Head(&[(":status", "200"), ("content-length", "2"), ("content-length", "3")]),
            EndData("ok"),
        ],
        &[Head(&[(":status", "200"), ("content-length", "2, 2")]), EndData("ok")],
        &[Head(&[(":status", "200"), ("content-length", "+2")]), EndData("ok")],
        &[End(&[(":status", "200"), ("content-length", "2")])],
        // There is none in HTTP/2 (RFC 9113 section 8.6), nor an end with it.
        &[End(&[(":status", "101")])],
        &[Head(&[(":status", "101")]), Data("other bytes")],
        &[End(&[(":status", "103")])],
    ];
    for sends in CASES {
        let app = app(sends).await;
        for between in EACH {
            let name = format!("{between:?}: {sends:?}");
            let mesh = mesh(between, app, "{retry: {attempts: 0}}").await;
            let mut client = client(mesh.to).await;
            let request = Request::get("http://orders.shop/").body(()).unwrap();
            let (response, _) = client.send_request(request, true).unwrap();
            let response = soon(response).await.unwrap();
            let answer = (response.status().as_u16(), code(response.headers()));
            assert_eq!(answer, (502, Some("upstream-protocol")), "{name}");
            let (text, _) = all(response.into_body()).await.unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(
                text.contains("it is malformed") || text.contains("it is not HTTP/2"),
                "{name}: {text}"
            );
        }
    }
}

#[tokio::test]
async fn one_of_another_protocol_is_no_answer() {
    // Passed over as any that is not final.
    const SENDS: &[Sends] = &[
        Sends::Head(&[(":status", "101")]),
        Sends::Head(&[(":status", "103"), ("link", "</x>")]),
        Sends::Head(&[(":status", "200")]),
        Sends::EndData("ok"),
    ];
    let app = app(SENDS).await;
    for between in EACH {
        let mesh = mesh(between, app, "{}").await;
        let mut client = client(mesh.to).await;
        let request = Request::get("http://orders.shop/").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let response = soon(response).await.unwrap();
        assert_eq!(response.status(), 200, "{between:?}");
        assert_eq!(all(response.into_body()).await.unwrap().0, b"ok", "{between:?}");
    }
}

#[tokio::test]
async fn content_where_there_is_none_is_left_out() {
    use Sends::{EndData, Head};
    const CASES: &[(Method, &[Sends], u16, Option<&str>)] = &[
        (
            Method::GET,
            &[Head(&[(":status", "204"), ("content-length", "2")]), EndData("ok")],
            204,
            None,
        ),
        (Method::GET, &[Head(&[(":status", "204")]), EndData("ok")], 204, None),
        (Method::GET, &[Head(&[(":status", "204")]), EndData("")], 204, None),
        (Method::GET, &[Head(&[(":status", "304")]), EndData("ok")], 304, None),
        (
            Method::HEAD,
            &[Head(&[(":status", "200"), ("content-length", "2")]), EndData("ok")],
            200,
            Some("2"),
        ),
        (Method::HEAD, &[Head(&[(":status", "200")]), EndData("ok")], 200, None),
        // A list of equal lengths is one (RFC 9110 section 8.6).
        (
            Method::GET,
            &[
                Head(&[(":status", "200"), ("content-length", "0"), ("content-length", "0")]),
                EndData(""),
            ],
            200,
            Some("0"),
        ),
    ];
    for (method, sends, status, length) in CASES {
        let app = app(sends).await;
        for between in EACH {
            let name = format!("{between:?}: {method} {sends:?}");
            let mesh = mesh(between, app, "{retry: {attempts: 0}}").await;
            let mut client = client(mesh.to).await;
            for _ in 0..2 {
                let request = Request::builder()
                    .method(method)
                    .uri("http://orders.shop/")
                    .body(())
                    .unwrap();
                let (response, _) = client.send_request(request, true).unwrap();
                let response = soon(response).await.unwrap();
                assert_eq!(
                    (response.status().as_u16(), code(response.headers())),
                    (*status, None),
                    "{name}"
                );
                let lengths: Vec<_> = response.headers().get_all("content-length").iter().cloned().collect();
                assert_eq!(lengths, length.as_slice(), "{name}");
                assert_eq!(all(response.into_body()).await.unwrap().0, b"", "{name}");
                client = soon(client.ready()).await.unwrap();
            }
        }
    }
}
