//! What becomes of requests.

use http::{HeaderValue, Method};
use outrigger_tests::mesh::{Collector, Http, SOON, attribute, metric, request, until};

use super::{Lab, Server, Speaks, said, who};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_let_through_by_the_servers_word_with_the_changes_that_it_says() {
    for server in [Server::Http, Server::Grpc] {
        let lab = Lab::new(server).await;
        for speaks in Speaks::ALL {
            let name = format!("{server:?} {speaks:?}");
            let seen = lab.send(speaks, "/a?b=c", "alice").await;
            let status = if speaks == Speaks::Grpc { "0" } else { "200" };
            assert_eq!(speaks.status(&seen), status, "{name}: {seen:?}");
            assert_eq!(
                said(&seen.headers, "access-control-allow-origin"),
                Some("https://shop.example"),
                "{name}"
            );
            let (asked, got) = (lab.asked.one(), lab.app.one());
            let method = if speaks == Speaks::WebSocket { "GET" } else { "POST" };
            let prefix = if server == Server::Http { "/check" } else { "" };
            assert_eq!(asked.line, format!("{method} {prefix}/a?b=c"), "{name}");
            assert_eq!(
                (said(&asked.headers, "x-told"), who(&asked.headers)),
                (Some("1"), "alice"),
                "{name}"
            );
            assert!(
                !asked.headers.contains_key("upgrade") && !asked.headers.contains_key("te"),
                "{name}"
            );
            // Before the route's own changes.
            assert!(!asked.headers.contains_key("x-set") && asked.body.is_empty(), "{name}");
            if server == Server::Http {
                assert_eq!(said(&asked.headers, "x-user"), None, "{name}: {asked:?}");
                assert_eq!(said(&asked.headers, "content-length"), Some("0"), "{name}");
                assert_eq!(
                    said(&asked.headers, "host"),
                    Some(&*lab.web.outbound[0].to_string()),
                    "{name}"
                );
            }
            assert_eq!(got.line, format!("{method} /a?b=c"));
            let users: Vec<_> = got.headers.get_all("x-user").iter().collect();
            assert_eq!(users, ["alice"], "{name}");
            assert_eq!(
                (said(&got.headers, "x-set"), said(&got.headers, "x-other")),
                (Some("1"), None),
                "{name}"
            );
            assert!(!got.headers.contains_key("authorization") && !got.headers.contains_key("outrigger-error"));
        }
        assert_eq!(
            (lab.counts("admitted"), lab.counts("denied"), lab.counts("failed")),
            (4, 0, 0)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_is_the_servers_answer_and_nobody_else_hears_of_the_request() {
    for server in [Server::Http, Server::Grpc] {
        let lab = Lab::new(server).await;
        for speaks in Speaks::ALL {
            for (who, http, grpc, body) in [
                ("nobody", "401", "16", "who are you?"),
                // A denial is none that looks like success.
                ("created", "403", "7", ""),
            ] {
                let name = format!("{server:?} {speaks:?} {who}");
                let seen = lab.send(speaks, "/", who).await;
                let is_grpc = speaks == Speaks::Grpc;
                assert_eq!(
                    speaks.status(&seen),
                    if is_grpc { grpc } else { http },
                    "{name}: {seen:?}"
                );
                assert_eq!(seen.error(), Some("auth-denied"), "{name}");
                assert_eq!(seen.body, if is_grpc { "" } else { body }, "{name}");
                let challenge = said(&seen.headers, "www-authenticate");
                assert_eq!(challenge, (who == "nobody").then_some("Basic realm=shop"), "{name}");
                // What pages of other origins may see of it is the route's word too.
                assert_eq!(
                    said(&seen.headers, "access-control-allow-origin"),
                    Some("https://shop.example"),
                    "{name}"
                );
                assert_eq!((lab.asked.take().len(), lab.app.take().len()), (1, 0), "{name}");
            }
        }
        // A redirect is for who is let through, and a preflight, which has no token, is not asked about.
        assert_eq!(lab.send(Speaks::Http1, "/moved", "nobody").await.status, 401);
        assert_eq!(lab.send(Speaks::Http1, "/moved", "alice").await.status, 302);
        lab.asked.take();
        let mut preflight = request(Method::OPTIONS, lab.web.outbound[0], "/", "");
        for (name, value) in [
            ("origin", "https://shop.example"),
            ("access-control-request-method", "PUT"),
        ] {
            preflight.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        assert_eq!(Http::one().send(preflight).await.unwrap().status, 204);
        assert_eq!((lab.asked.take().len(), lab.app.take().len()), (0, 0));
        assert_eq!(
            (lab.counts("admitted"), lab.counts("denied"), lab.counts("failed")),
            (1, 9, 0)
        );
        let of_reason = metric(&lab.web, "outrigger_errors_total", &["reason=\"auth-denied\""]);
        assert_eq!((of_reason, lab.attempts()), (9, 0), "a denial is no attempt");
        // Nothing was learned of the app, and a route without the filter asks nobody.
        assert_eq!(lab.send(Speaks::Http1, "/open", "nobody").await.status, 200);
        assert_eq!(
            (lab.asked.take().len(), lab.app.take().len(), lab.attempts()),
            (0, 1, 1)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_answer_nothing_is_let_through() {
    for server in [Server::Http, Server::Grpc] {
        let lab = Lab::new(server).await;
        let mut failed = 0;
        for (path, who, http, grpc, code) in [
            ("/unresolved", "alice", "500", "14", "invalid-backend"),
            ("/nobody", "alice", "503", "14", "auth-unavailable"),
            ("/refuses", "alice", "503", "14", "auth-unavailable"),
            ("/in-time", "hangs", "504", "4", "request-timeout"),
            ("/", "heads", "503", "14", "auth-unavailable"),
        ] {
            for speaks in Speaks::ALL {
                let name = format!("{server:?} {speaks:?} {path} {who}");
                let seen = lab.send(speaks, path, who).await;
                let status = if speaks == Speaks::Grpc { grpc } else { http };
                assert_eq!(
                    (&*speaks.status(&seen), seen.error()),
                    (status, Some(code)),
                    "{name}: {seen:?}"
                );
                failed += u64::from(code != "invalid-backend");
            }
        }
        // A server of HTTP may say 500, which is a denial; gRPC has no such word.
        let seen = lab.send(Speaks::Http1, "/", "broken").await;
        let expected = match lab.server {
            Server::Http => (500, Some("auth-denied")),
            Server::Grpc => (503, Some("auth-unavailable")),
        };
        assert_eq!((seen.status, seen.error()), expected);
        assert_eq!((lab.app.take().len(), lab.attempts()), (0, 0));
        failed += u64::from(server == Server::Grpc);
        assert_eq!((lab.counts("admitted"), lab.counts("failed")), (0, failed));
    }
}

/// Also where no policy sets a limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_is_given_up() {
    for server in [Server::Http, Server::Grpc] {
        let lab = Lab::new(server).await;
        let seen = lab.send(Speaks::Http1, "/", "hangs").await;
        assert_eq!(
            (seen.status, seen.error()),
            (503, Some("auth-unavailable")),
            "{server:?}"
        );
        assert!(lab.app.take().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_bounded() {
    for server in [Server::Http, Server::Grpc] {
        let lab = Lab::new(server).await;
        for speaks in [Speaks::Http1, Speaks::Grpc] {
            let seen = lab.send(speaks, "/", "large").await;
            // A denial in HTTP is one without its body as well; a message of gRPC that is not read says nothing.
            let (status, code) = match (server, speaks) {
                (Server::Http, Speaks::Http1) => ("403", "auth-denied"),
                (Server::Http, _) => ("7", "auth-denied"),
                (Server::Grpc, Speaks::Http1) => ("503", "auth-unavailable"),
                (Server::Grpc, _) => ("14", "auth-unavailable"),
            };
            assert_eq!(
                (&*speaks.status(&seen), seen.error()),
                (status, Some(code)),
                "{server:?} {speaks:?}"
            );
            assert!(seen.body.len() < 1024);
        }
        assert!(lab.app.take().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_sent_along_up_to_its_limit_and_then_to_the_app() {
    for server in [Server::Http, Server::Grpc] {
        let lab = Lab::new(server).await;
        let to = lab.web.outbound[0];
        for speaks in [Speaks::Http1, Speaks::Http2, Speaks::Grpc] {
            let name = format!("{server:?} {speaks:?}");
            let send = async |path, body, who| speaks.send(to, path, body, &[("authorization", who)]).await;
            for body in ["", "x", "0123456789abcdef"] {
                let seen = send("/body", body, "alice").await;
                assert_eq!(seen.body, "an answer", "{name}");
                let (asked, got) = (lab.asked.one(), lab.app.one());
                assert_eq!((&*asked.body, &*got.body), (body.as_bytes(), body.as_bytes()), "{name}");
                if server == Server::Http {
                    assert_eq!(
                        said(&asked.headers, "content-length"),
                        Some(&*body.len().to_string()),
                        "{name}"
                    );
                }
            }
            let seen = send("/body", "0123456789abcdefg", "alice").await;
            let status = if speaks == Speaks::Grpc { "8" } else { "413" };
            assert_eq!(
                (&*speaks.status(&seen), seen.error()),
                (status, Some("body-too-large")),
                "{name}"
            );
            assert_eq!((lab.asked.take().len(), lab.app.take().len()), (0, 0), "{name}");
            // A mirror gets it whole, and only of what is let through.
            assert_eq!(
                send("/mirrored", "mirrored", "nobody").await.error(),
                Some("auth-denied"),
                "{name}"
            );
            assert_eq!(send("/mirrored", "mirrored", "alice").await.body, "an answer", "{name}");
            until("the mirror has it", async || lab.app.0.lock().unwrap().len() == 2).await;
            assert!(lab.app.take().iter().all(|got| got.body == b"mirrored"), "{name}");
            lab.asked.take();
            // Where it is not sent along, it is of any length.
            let long: &'static str = "x".repeat(300_000).leak();
            assert_eq!(send("/", long, "alice").await.body, "an answer", "{name}");
            assert_eq!(
                (lab.asked.one().body.len(), lab.app.one().body.len()),
                (0, 300_000),
                "{name}"
            );
        }
    }
}

/// A client that waits for a word before it sends its body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_waits_to_be_wanted_comes_for_who_is_let_through() {
    let lab = Lab::new(Server::Http).await;
    // To the app it is said no more where the body is here already.
    for (path, who, status, got) in [
        ("/body", "alice", 200, Some((5, false))),
        ("/", "alice", 200, Some((5, true))),
        ("/", "nobody", 401, None),
    ] {
        let lines = [("authorization", who), ("expect", "100-continue")];
        let seen = Speaks::Http1.send(lab.web.outbound[0], path, "later", &lines).await;
        let app = lab.app.take().pop();
        let app = app.map(|got| (got.body.len(), got.headers.contains_key("expect")));
        assert_eq!((seen.status, app), (status, got), "{path} {who}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_is_a_span_of_the_requests_trace() {
    for (server, method) in [
        (Server::Http, "POST"),
        (Server::Grpc, "envoy.service.auth.v3.Authorization/Check"),
    ] {
        let mut collector = Collector::start().await;
        let lab = Lab::with(server, &collector.line()).await;
        for (path, who, trace, count, decision, error) in [
            ("/", "alice", 0xa1_u8, 2, "admitted", None),
            ("/", "nobody", 0xa2, 1, "denied", None),
            ("/in-time", "hangs", 0xa3, 1, "failed", Some("request-timeout")),
            ("/refuses", "alice", 0xa4, 1, "failed", Some("connect-failed")),
        ] {
            let id: String = std::iter::repeat_n(format!("{trace:02x}"), 16).collect();
            let parent: &'static str = format!("00-{id}-b7ad6b7169203331-01").leak();
            let lines = [("authorization", who), ("traceparent", parent)];
            Speaks::Http2.send(lab.web.outbound[0], path, "", &lines).await;
            lab.web.telemetry().flush(SOON).await;
            let spans = collector.trace(&[trace; 16], count).await;
            let mut questions = spans
                .iter()
                .map(|(_, span)| span)
                .filter(|span| !span.events.is_empty());
            let question = questions.next().unwrap();
            assert!(questions.next().is_none(), "{spans:#?}");
            assert_eq!(
                (&*question.name, &*question.events[0].name),
                (method, "outrigger.external_auth")
            );
            let said = &question.events[0].attributes[0];
            assert!(format!("{said:?}").contains(decision), "{said:?}");
            let failed = attribute(question, "error.type").filter(|_| decision == "failed");
            assert_eq!(failed.as_deref(), error, "{server:?} {who}");
            assert_eq!(
                attribute(question, "outrigger.service").as_deref(),
                Some(if path == "/refuses" {
                    "shop/refuses"
                } else {
                    "shop/auth"
                })
            );
            for asked in lab.asked.take().iter().filter(|_| server == Server::Http) {
                // The span of the server's own sidecar is between.
                assert!(asked.headers["traceparent"].to_str().unwrap().contains(&id));
            }
        }
    }
}
