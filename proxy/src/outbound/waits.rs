//! What an attempt is waited for: which limit ends it, and when. It protects a caller from a server that hangs, and this sidecar from
//! requests that nobody will finish. It does not find a client that takes no bytes of a response: hyper asks for none then.
//!
//! A limit is a moment (`timeouts.request`, `timeouts.backendRequest`), or it moves: `timeouts.responseHeaders` runs from the last
//! byte of the request, so that a long upload is no slow answer, and `timeouts.idle` from the last byte of all. These two need
//! [`Quiet`], which is there only where a policy asks for one of them.

use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use outrigger_proxy_transport::body::ClientBody;
use outrigger_proxy_transport::error::Reason;
use outrigger_proxy_transport::net::{Idle, Quiet};
use tokio::time::Instant;

use crate::model::AttemptRules;

/// The limits of a request that move.
#[derive(Clone)]
pub struct Moving {
    quiet: Rc<Quiet>,
    /// `timeouts.idle`.
    idle: Option<Duration>,
    /// `timeouts.responseHeaders`.
    headers: Option<Duration>,
}

/// What has ended an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The request's, or the attempt's: a moment.
    Deadline(Reason),
    Headers,
    Idle,
}

/// The limits of one attempt.
pub struct Waits<'a> {
    /// When the attempt has begun.
    pub began: Instant,
    pub deadline: Option<(Instant, Reason)>,
    pub moving: Option<&'a Moving>,
}

impl Moving {
    /// `None`: no policy asks for it.
    pub fn of(body: &ClientBody, idle: Option<Duration>, rules: &AttemptRules) -> Option<Self> {
        let headers = rules.response_headers;
        idle.or(headers)?;
        let quiet = Quiet::new();
        body.received().watch(&quiet);
        Some(Self { quiet, idle, headers })
    }

    /// The head of the response has come: what ends its body when nothing moves any more.
    pub fn answered(&self) -> Option<Idle> {
        self.quiet.moved();
        self.idle.map(|limit| Idle::new(Rc::clone(&self.quiet), limit))
    }
}

impl Waits<'_> {
    /// Ends with the limit that is reached. Without limits there is no timer, and no end.
    pub async fn over(&self) -> Limit {
        let Some(mut next) = self.next(self.began) else {
            return pending().await;
        };
        // Boxed: most requests have no limit (`outbound::sizes`).
        let mut sleep = Box::pin(tokio::time::sleep_until(next.0));
        loop {
            sleep.as_mut().await;
            let now = Instant::now();
            match self.next(now) {
                Some((at, limit)) if at <= now => return limit,
                Some(later) => next = later,
                None => return next.1,
            }
            sleep.as_mut().reset(next.0);
        }
    }

    /// The first of the limits as things stand, and which it is. One that cannot be reached yet is looked at again when it could be.
    fn next(&self, now: Instant) -> Option<(Instant, Limit)> {
        let deadline = self.deadline.map(|(at, reason)| (at, Limit::Deadline(reason)));
        let moving = self.moving.into_iter().flat_map(|moving| {
            let quiet = &moving.quiet;
            // An attempt after the first sends what came long before it.
            let sent = quiet.all_sent().map_or(now, |at| at.max(self.began));
            let last = quiet.last().max(self.began);
            let headers = moving.headers.map(|limit| (sent + limit, Limit::Headers));
            let idle = moving.idle.map(|limit| (last + limit, Limit::Idle));
            headers.into_iter().chain(idle)
        });
        deadline.into_iter().chain(moving).min_by_key(|(at, _)| *at)
    }
}

impl Limit {
    pub fn reason(self) -> Reason {
        match self {
            Limit::Deadline(reason) => reason,
            Limit::Headers => Reason::AttemptTimeout,
            Limit::Idle => Reason::IdleTimeout,
        }
    }

    /// The field that says it.
    pub fn field(self) -> &'static str {
        match self {
            Limit::Deadline(Reason::AttemptTimeout) => "timeouts.backendRequest",
            Limit::Deadline(_) => "timeouts.request and the caller's grpc-timeout",
            Limit::Headers => "timeouts.responseHeaders",
            Limit::Idle => "timeouts.idle",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Limit, Moving, Waits};
    use outrigger_proxy_transport::error::Reason;
    use outrigger_proxy_transport::net::Quiet;
    use std::rc::Rc;
    use std::time::Duration;
    use tokio::time::{Instant, sleep};

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// The limits in seconds, when bytes of the request come, when its last one does, and what ends it after how long.
    #[tokio::test(start_paused = true)]
    async fn each_limit_ends_what_it_is_for() {
        let (request, attempt) = (Reason::RequestTimeout, Reason::AttemptTimeout);
        let table: &[(_, _, _, &[u64], _, _)] = &[
            (
                Some((9, request)),
                None,
                None,
                &[],
                Some(0),
                (9, Limit::Deadline(request)),
            ),
            (Some((9, attempt)), Some(5), None, &[], Some(0), (5, Limit::Headers)),
            (
                Some((4, attempt)),
                Some(5),
                None,
                &[],
                Some(0),
                (4, Limit::Deadline(attempt)),
            ),
            // A long upload is no slow answer, and ends nothing that moves.
            (None, Some(5), None, &[3, 9, 13], Some(14), (19, Limit::Headers)),
            (None, None, Some(5), &[3, 7], Some(11), (16, Limit::Idle)),
            (None, Some(3), Some(5), &[4], None, (9, Limit::Idle)),
            (None, Some(9), Some(5), &[], Some(0), (5, Limit::Idle)),
        ];
        for &(deadline, headers, idle, bytes, last, (after, ended)) in table {
            let began = Instant::now();
            let moving = Moving {
                quiet: Quiet::new(),
                idle: idle.map(secs),
                headers: headers.map(secs),
            };
            let quiet = Rc::clone(&moving.quiet);
            let client = async {
                for &at in bytes {
                    tokio::time::sleep_until(began + secs(at)).await;
                    quiet.moved();
                }
                if let Some(last) = last {
                    tokio::time::sleep_until(began + secs(last)).await;
                    quiet.sent();
                }
                std::future::pending::<()>().await;
            };
            let waits = Waits {
                began,
                deadline: deadline.map(|(at, reason)| (began + secs(at), reason)),
                moving: Some(&moving),
            };
            let limit = tokio::select! {
                biased;
                () = client => unreachable!(),
                limit = waits.over() => limit,
            };
            assert_eq!(
                (began.elapsed(), limit),
                (secs(after), ended),
                "{deadline:?} {headers:?} {idle:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_there_is_no_end() {
        let waits = Waits {
            began: Instant::now(),
            deadline: None,
            moving: None,
        };
        tokio::select! {
            biased;
            limit = waits.over() => panic!("{limit:?}"),
            () = sleep(secs(1 << 30)) => {}
        }
    }
}
