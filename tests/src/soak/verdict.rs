//! What may fail, and what may not.
//!
//! A failure is **forbidden** unless a fault explains it. These are the rules; `MARGIN` is the time that an end of a
//! connection takes to be noticed.
//!
//! - An idempotent request (GET, PUT, a POST with an `Idempotency-Key`) succeeds. Once its response has begun it may break
//!   off, with the replica that gave it: a sidecar cannot send a second half.
//! - A POST or a unary gRPC call may fail with `upstream-reset` if it was in flight at the moment in which its replica was
//!   killed or its connections were reset. A POST whose body is too large to be kept cannot be sent again, so it may also
//!   meet an app that is down (`app-unavailable`) or was just killed (`upstream-refused`: the called sidecar's connections
//!   to it were stale).
//! - A stream (gRPC, TCP, an upgraded connection) may break with its replica. To open a TCP connection may fail while an
//!   app is down: the called sidecar takes it before it knows. To open an upgraded one is a GET, and succeeds.
//! - Nothing may hang.
//! - Nothing may be answered wrong, or executed more often than its kind allows; and what was answered was executed.
//! - When the machine stood still for half a second, nothing is said of time limits: all but the rule before is excused.
//! - A replica that drains, an endpoint that leaves, a slow network, a controller that is lost, and a renewed SVID excuse
//!   nothing; but a drain of which discovery could not tell the clients within a quarter of a second is as good as a reset,
//!   because idle connections are closed after half a second.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

/// See the module.
pub(super) const MARGIN: Duration = Duration::from_secs(1);

/// What kind of request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Get,
    LongGet,
    Put,
    KeyedPost,
    Post,
    LargePost,
    Unary,
    Stream,
    Tcp,
    Upgrade,
}

impl Kind {
    pub(super) const ALL: [Kind; 10] = [
        Kind::Get,
        Kind::LongGet,
        Kind::Put,
        Kind::KeyedPost,
        Kind::Post,
        Kind::LargePost,
        Kind::Unary,
        Kind::Stream,
        Kind::Tcp,
        Kind::Upgrade,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Get => "GET",
            Kind::LongGet => "GET, long",
            Kind::Put => "PUT",
            Kind::KeyedPost => "POST with Idempotency-Key",
            Kind::Post => "POST",
            Kind::LargePost => "POST, large",
            Kind::Unary => "gRPC unary",
            Kind::Stream => "gRPC stream",
            Kind::Tcp => "TCP",
            Kind::Upgrade => "upgrade",
        }
    }

    /// Whether it may be executed once at most.
    pub(super) fn once(self) -> bool {
        matches!(self, Kind::Post | Kind::LargePost | Kind::Unary)
    }

    /// Whether an app executes it, so that the ledger has it.
    pub(super) fn executes(self) -> bool {
        self.once() || matches!(self, Kind::Put | Kind::KeyedPost)
    }
}

/// How a request went.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) kind: Kind,
    pub(super) id: u64,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    /// Who answered, once it has.
    pub(super) replica: Option<String>,
    pub(super) failure: Option<Failure>,
}

/// Why a request failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// That of `outrigger-error`, or one of these constants.
    pub(super) code: String,
    pub(super) detail: String,
}

/// It broke off after it had begun to be answered, or without any answer.
pub(super) const BROKEN: &str = "broken";
/// It was answered, and wrongly.
pub(super) const WRONG: &str = "wrong";
/// Nothing happened for too long.
pub(super) const HANGS: &str = "hangs";

/// What ends connections without asking.
#[derive(Clone, Debug)]
pub(super) struct Disruption {
    /// The replica's name, as it answers.
    pub(super) replica: String,
    /// Its addresses, as errors name them.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) at: Instant,
    /// The app was refusing connections since. `None`: it still does.
    pub(super) until: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Well,
    /// It failed, and a disruption is why.
    Excused,
    Forbidden(String),
}

/// Judges by the rules of the module. `executions`: how often the apps executed the request.
pub(super) fn judge(outcome: &Outcome, executions: usize, disruptions: &[Disruption]) -> Verdict {
    let kind = outcome.kind;
    let Some(failure) = &outcome.failure else {
        return match executions {
            0 if kind.executes() => Verdict::Forbidden("it was answered and never executed".to_owned()),
            2.. if kind.once() => Verdict::Forbidden(format!("it was executed {executions} times")),
            _ => Verdict::Well,
        };
    };
    let explains = |disruption: &&Disruption, lasting: bool| {
        let end = if lasting { disruption.until } else { Some(disruption.at) };
        let is_its_own = match &outcome.replica {
            Some(replica) => *replica == disruption.replica,
            None => names_no_other(&failure.detail, disruption),
        };
        is_its_own && outcome.ended >= disruption.at && end.is_none_or(|end| outcome.began <= end + MARGIN)
    };
    let at_the_moment = disruptions.iter().any(|d| explains(&d, false));
    let while_down = disruptions.iter().any(|d| explains(&d, true));
    let answered = outcome.replica.is_some();
    let code = failure.code.as_str();
    let excused = match kind {
        Kind::Get | Kind::LongGet | Kind::Put | Kind::KeyedPost | Kind::Upgrade => {
            answered && code == BROKEN && at_the_moment
        }
        Kind::Post | Kind::Unary | Kind::Stream => matches!(code, "upstream-reset" | BROKEN) && at_the_moment,
        Kind::LargePost => {
            matches!(code, "upstream-reset" | BROKEN) && at_the_moment
                || matches!(code, "app-unavailable" | "upstream-refused") && while_down
        }
        Kind::Tcp => code == BROKEN && (at_the_moment || !answered && while_down),
    };
    if excused {
        Verdict::Excused
    } else {
        Verdict::Forbidden("nothing explains it".to_owned())
    }
}

/// An error names the address that it is about; one that names another replica's is not explained by this one's fault.
fn names_no_other(detail: &str, disruption: &Disruption) -> bool {
    !detail.contains("127.0.0.1:") || disruption.addresses.iter().any(|a| detail.contains(&a.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{BROKEN, Disruption, Failure, HANGS, Kind, MARGIN, Outcome, Verdict, WRONG, judge};

    const SECOND: Duration = Duration::from_secs(1);

    /// Replica "a" was killed 10 s after `start`.
    fn kill(start: Instant) -> Disruption {
        Disruption {
            replica: "a".to_owned(),
            addresses: vec!["127.0.0.1:7001".parse().unwrap()],
            at: start + 10 * SECOND,
            until: Some(start + 10 * SECOND),
        }
    }

    fn outcome(kind: Kind, code: &str, began: Instant, ended: Instant) -> Outcome {
        Outcome {
            kind,
            id: 1,
            began,
            ended,
            replica: None,
            failure: Some(Failure {
                code: code.to_owned(),
                detail: String::new(),
            }),
        }
    }

    fn excused(outcome: &Outcome, disruption: &Disruption) -> bool {
        judge(outcome, 0, std::slice::from_ref(disruption)) == Verdict::Excused
    }

    #[test]
    fn a_failure_is_excused_only_at_the_moment_of_a_disruption() {
        let start = Instant::now();
        let kill = kill(start);
        let failed = |from: u64, to: u64| {
            let (from, to) = (start + SECOND * from as u32, start + SECOND * to as u32);
            excused(&outcome(Kind::Post, "upstream-reset", from, to), &kill)
        };
        assert!(failed(9, 10) && failed(9, 12) && failed(11, 12));
        assert!(!failed(8, 9), "it ended before");
        assert!(!failed(12, 13), "it began long after");
        assert_eq!(MARGIN, SECOND);
    }

    #[test]
    fn what_is_idempotent_may_only_break_off() {
        let start = Instant::now();
        let (kill, from, to) = (kill(start), start + 9 * SECOND, start + 11 * SECOND);
        for kind in [Kind::Get, Kind::LongGet, Kind::Put, Kind::KeyedPost] {
            assert!(!excused(&outcome(kind, "upstream-reset", from, to), &kill));
            let mut broken = outcome(kind, BROKEN, from, to);
            assert!(!excused(&broken, &kill), "nobody had answered");
            broken.replica = Some("a".to_owned());
            assert!(excused(&broken, &kill));
            broken.replica = Some("b".to_owned());
            assert!(!excused(&broken, &kill), "b was well");
        }
    }

    #[test]
    fn nothing_excuses_the_wrong_code_or_the_wrong_replica() {
        let start = Instant::now();
        let (kill, from, to) = (kill(start), start + 9 * SECOND, start + 11 * SECOND);
        for kind in Kind::ALL {
            for code in [
                WRONG,
                HANGS,
                "connect-failed",
                "no-endpoints",
                "upstream-refused",
                "tls-failed",
            ] {
                if (kind, code) == (Kind::LargePost, "upstream-refused") {
                    // While the app is down; the next test.
                    continue;
                }
                assert!(!excused(&outcome(kind, code, from, to), &kill), "{kind:?} {code}");
            }
        }
        let mut post = outcome(Kind::Post, "upstream-reset", from, to);
        post.failure.as_mut().unwrap().detail = "127.0.0.1:7002 closed the connection".to_owned();
        assert!(!excused(&post, &kill));
        post.failure.as_mut().unwrap().detail = "127.0.0.1:7001 closed the connection".to_owned();
        assert!(excused(&post, &kill));
    }

    #[test]
    fn an_app_that_is_down_excuses_what_cannot_be_sent_again() {
        let start = Instant::now();
        let mut down = kill(start);
        down.until = None;
        let (from, to) = (start + 20 * SECOND, start + 21 * SECOND);
        for code in ["app-unavailable", "upstream-refused"] {
            assert!(excused(&outcome(Kind::LargePost, code, from, to), &down));
            assert!(!excused(&outcome(Kind::Post, code, from, to), &down));
        }
        assert!(excused(&outcome(Kind::Tcp, BROKEN, from, to), &down));
        assert!(!excused(&outcome(Kind::Upgrade, BROKEN, from, to), &down));
    }

    #[test]
    fn executions_are_counted() {
        let now = Instant::now();
        let well = |kind| Outcome {
            failure: None,
            ..outcome(kind, "", now, now)
        };
        assert_eq!(judge(&well(Kind::Post), 1, &[]), Verdict::Well);
        assert_eq!(judge(&well(Kind::KeyedPost), 2, &[]), Verdict::Well);
        assert_eq!(judge(&well(Kind::Tcp), 0, &[]), Verdict::Well);
        assert!(matches!(judge(&well(Kind::Post), 2, &[]), Verdict::Forbidden(_)));
        assert!(matches!(judge(&well(Kind::Put), 0, &[]), Verdict::Forbidden(_)));
    }
}
