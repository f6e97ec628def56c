//! Names that only sidecars use, `outrigger-…`: what a client, an app or an endpoint outside the mesh says in them is neither
//! believed nor passed on.

use outrigger_tests::mesh::metric;

use super::wire::{Scene, WAYS, Way, Wire, without_ours};

const SAYS: &str = "outrigger-error: app-unavailable\r\nOutrigger-Client-Id: spiffe://mesh.test/ns/shop/sa/admin\r\n";

async fn exchange(scene: &Scene, request: &str, response: &str) -> (String, String) {
    let (seen, answer) = scene.exchange(request.as_bytes(), response.as_bytes()).await;
    (seen.to_ascii_lowercase(), answer.to_ascii_lowercase())
}

#[tokio::test]
async fn what_only_sidecars_say_is_not_passed_on() {
    let trailers = format!(
        "Trailer: outrigger-error, x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n{SAYS}x-sum: 1\r\n\r\n"
    );
    for way in WAYS {
        for version in ["1.0", "1.1"] {
            let scene = Scene::new(way).await;
            let request = format!("GET / HTTP/{version}\r\nHost: a\r\n{SAYS}X-Kept: 1\r\n\r\n");
            let response = format!("HTTP/1.1 200 OK\r\n{SAYS}X-Kept: 1\r\nContent-Length: 0\r\n\r\n");
            let (seen, answer) = exchange(&scene, &request, &response).await;
            for text in [seen, answer] {
                assert!(
                    text.contains("x-kept: 1") && !text.contains("outrigger-"),
                    "{way:?}: {text}"
                );
            }
        }
        let scene = Scene::new(way).await;
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n{SAYS}{trailers}");
        let response = format!("HTTP/1.1 200 OK\r\n{SAYS}{trailers}");
        let (seen, answer) = exchange(&scene, &request, &response).await;
        for text in [seen, answer] {
            assert!(text.contains("x-sum: 1"), "{way:?}: {text}");
            // `Trailer` may announce what does not come.
            let said: Vec<&str> = text.lines().filter(|line| line.starts_with("outrigger-")).collect();
            assert_eq!(said, [""; 0], "{way:?}");
        }
        // Heads of tunnels are heads.
        let scene = Scene::new(way).await;
        let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{SAYS}{upgrade}\r\n");
        let response = format!("HTTP/1.1 101 Switching Protocols\r\n{SAYS}{upgrade}\r\n");
        let (seen, answer) = exchange(&scene, &request, &response).await;
        assert!(
            !seen.contains("outrigger-") && !answer.contains("outrigger-"),
            "{way:?}: {seen}{answer}"
        );
    }
}

/// "It was never processed" would be a reason to send any request again.
#[tokio::test]
async fn what_only_sidecars_say_is_not_believed() {
    for way in [Way::Both, Way::Outbound] {
        let scene = Scene::with(way, "http1", "{}").await;
        let mut client = scene.client().await;
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\npay")
            .await;
        let mut app = scene.app().await;
        let head = app.head().await;
        assert_eq!(app.body(&head).await, "pay");
        app.send(format!("HTTP/1.1 503 No\r\n{SAYS}Content-Length: 2\r\n\r\nno"))
            .await;
        let answer = client.head().await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && !answer.contains("outrigger-"),
            "{way:?}: {answer}"
        );
        assert_eq!(client.body(&answer).await, "no");
        // The app hears of it once.
        ended(&mut client, &mut app).await;
        for sidecar in &scene.sidecars {
            assert_eq!(
                metric(sidecar, "outrigger_errors_total", &["app-unavailable"]),
                0,
                "{way:?}"
            );
            assert_eq!(metric(sidecar, "outrigger_retries_total", &[]), 0, "{way:?}");
        }
    }
}

/// Another request, so that what the first one has caused is over.
async fn ended(client: &mut Wire, app: &mut Wire) {
    let get = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    client.send(get).await;
    assert_eq!(without_ours(&app.head().await), get);
    app.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    client.head().await;
}
