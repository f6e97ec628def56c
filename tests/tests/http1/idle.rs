//! `timeouts.idle`: what ends when nothing moves, in each form that a connection of the app takes, and what does not.

use std::time::Duration;

use outrigger_tests::mesh::metric;

use super::wire::{Scene, Way, Wire};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const WEBSOCKET: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
const CONNECT: &str = "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n";

/// What is on the connection, and what sidecars have to know of its protocol.
#[derive(Clone, Copy, Debug)]
enum Form {
    Response,
    Upload,
    WebSocket,
    Connect,
    Bytes,
    /// Nobody has said anything: a server may speak first.
    Silence,
}

const FORMS: [(Form, &str); 6] = [
    (Form::Response, "http1"),
    (Form::Upload, "http1"),
    (Form::WebSocket, "http1"),
    (Form::Connect, "http1"),
    (Form::Bytes, "opaque"),
    (Form::Silence, "detect"),
];

/// The client's and the app's end, in the middle of it.
async fn begun(scene: &Scene, form: Form) -> (Wire, Wire) {
    let mut client = scene.client().await;
    let request = match form {
        Form::Response => GET,
        Form::Upload => "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n",
        Form::WebSocket => WEBSOCKET,
        Form::Connect => CONNECT,
        Form::Bytes => "\0hello",
        Form::Silence => "",
    };
    client.send(request).await;
    let mut app = scene.app().await;
    let answer = match form {
        Form::Response => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        Form::WebSocket => "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        Form::Connect => "HTTP/1.1 200 OK\r\n\r\n",
        Form::Upload | Form::Bytes | Form::Silence => "",
    };
    match form {
        Form::Bytes => assert_eq!(app.exactly(6).await, "\0hello"),
        Form::Silence => {}
        _ => drop(app.head().await),
    }
    app.send(answer).await;
    if !answer.is_empty() {
        client.head().await;
    }
    (client, app)
}

#[tokio::test]
async fn ends_what_does_not_move() {
    for way in [Way::Both, Way::Outbound] {
        for (form, protocol) in FORMS {
            let scene = Scene::with(way, protocol, "{retry: {attempts: 0}, timeouts: {idle: 300ms}}").await;
            let (mut client, mut app) = begun(&scene, form).await;
            let left = client.end().await;
            match form {
                Form::Upload => assert!(left.contains("outrigger-error: idle-timeout"), "{way:?} {left}"),
                _ => assert_eq!(left, "", "{way:?} {form:?}"),
            }
            app.end().await;
            // The response of what has become another protocol had ended before.
            if !matches!(form, Form::WebSocket | Form::Connect) {
                let web = scene.sidecars.last().unwrap();
                let counted = metric(web, "outrigger_errors_total", &["reason=\"idle-timeout\""]);
                assert_eq!(counted, 1, "{way:?} {form:?}");
            }
        }
    }
}

/// One direction is enough.
#[tokio::test]
async fn leaves_what_moves() {
    const PIECES: usize = 15;
    for (form, protocol) in FORMS {
        let scene = Scene::with(Way::Both, protocol, "{timeouts: {idle: 1s}}").await;
        let (mut client, mut app) = begun(&scene, form).await;
        let (from, to) = match form {
            Form::Upload => (&mut client, &mut app),
            _ => (&mut app, &mut client),
        };
        for _ in 0..PIECES {
            from.send("x").await;
            assert_eq!(to.exactly(1).await, "x", "{form:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
