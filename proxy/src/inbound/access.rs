//! Who may call the app, by the AccessPolicies that select this pod: what they decide on a request, and on a connection of bytes,
//! now and after each change.
//!
//! The decision itself is [`outrigger_access`]'s. Here are its facts, and what is told of it: it is counted, logged, and noted for
//! the access log and the span. Whoever is refused is told no more than that.

use std::borrow::Cow;
use std::cell::{Ref, RefCell};
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, Method};
use outrigger_access::jwt::Failure;
use outrigger_access::{self as policy, Access, Decision, Head, Tokens, Verdict};
use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy_transport::authority;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::headers::{asks_for_tls, named_for_this_hop};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::Caller;
use super::tokens::TokenRule;
use crate::call::Call;
use crate::context::Context;
use crate::telemetry::logging::LogLimit;
use crate::telemetry::{AccessDecision, AccessNote, Metrics};

/// How long a connection waits for the controller's first word on who may call. Meanwhile it has its place and nothing else, and
/// may be closed for another.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// What the policies of this pod say, as one worker knows them.
pub(super) struct AccessRule {
    updates: RefCell<watch::Receiver<Option<Arc<Access>>>>,
    /// What was taken of the updates: to read it takes no lock, and counts nothing that other workers count.
    current: RefCell<Option<Arc<Access>>>,
    /// Tells what goes on for long.
    changed: Notify,
    metrics: Arc<Metrics>,
    denied: LogLimit,
    audited: LogLimit,
    tokens: TokenRule,
}

/// What a decision is about.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    /// A connection that is not HTTP, or that is the app's own TLS.
    Bytes,
    /// A request as the app will see it.
    Request(&'a Parts, &'a Beside),
}

/// What is asked about beside the head of a request.
#[derive(Default)]
pub(super) struct Beside {
    /// The headers that do not come to the app because the client named them in `Connection`.
    named: HeaderMap,
    /// What was verified.
    tokens: Tokens,
}

impl Beside {
    /// These headers, and those that do not come to the app.
    pub(super) fn and_named<'a>(&self, headers: &'a HeaderMap) -> Cow<'a, HeaderMap> {
        let mut all = Cow::Borrowed(headers);
        if !self.named.is_empty() {
            all.to_mut().extend(self.named.clone());
        }
        all
    }
}

/// Why something is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The policies are not known yet.
    Unknown,
    Denied(Box<AccessNote>),
}

/// What its client hears of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Denied,
    NoToken,
    BadToken(Failure),
}

/// Of a request that no token came with, and that one might have let in.
const NO_TOKEN: &str = "token-required";

impl AccessRule {
    pub(super) fn new(context: &Context) -> Self {
        let updates = context.process.discovery.access();
        let current = updates.borrow().clone();
        Self {
            current: RefCell::new(current),
            updates: RefCell::new(updates),
            changed: Notify::new(),
            metrics: Arc::clone(context.metrics()),
            denied: LogLimit::default(),
            audited: LogLimit::default(),
            tokens: TokenRule::new(&context.process),
        }
    }

    /// The policies in force. `None`: they are not known yet.
    pub(super) fn current(&self) -> Ref<'_, Option<Arc<Access>>> {
        self.take_update();
        self.current.borrow()
    }

    /// Whoever asks takes an update too. Where nobody asks, the worker's sweep does, so that a connection that has been open for
    /// long ends within a second.
    pub(super) fn take_update(&self) {
        // An error means that discovery has ended: the last state stays.
        if !self.updates.borrow().has_changed().unwrap_or(false) {
            return;
        }
        let newest = self.updates.borrow_mut().borrow_and_update().clone();
        if let Some(access) = &newest {
            self.metrics.retain_access(|name| access.has_policy(name));
        }
        self.current.replace(newest);
        self.changed.notify_waiters();
    }

    /// Waits until the policies are known, at most for [`FIRST_WORD`].
    pub(super) async fn first_word(&self) {
        let mut updates = self.updates.borrow().clone();
        // Out of time, it is refused later.
        let _ = timeout(FIRST_WORD, updates.wait_for(Option::is_some)).await;
    }

    /// Headers of a request that the app will not see, by the client's word. It costs nothing where no policy is for the port.
    pub(super) fn named(&self, caller: &Caller, head: &Parts) -> HeaderMap {
        match &*self.current() {
            Some(access) if access.selects(caller.app.port()) => named_for_this_hop(&head.headers),
            _ => HeaderMap::new(),
        }
    }

    /// Lets a request in, or not. Its headers become those that the app is to get, as far as tokens change them.
    ///
    /// # Errors
    /// [`Reason::AccessDenied`], [`Reason::TokenRequired`], [`Reason::TokenInvalid`] and [`Reason::AccessUnknown`].
    pub(super) fn admit(
        &self,
        caller: &Caller,
        head: &mut Parts,
        named: HeaderMap,
        call: &mut Call,
    ) -> Result<Beside, ProxyError> {
        let access = self.current();
        let Some(access) = access.as_deref() else {
            return Err(ProxyError::new(
                Reason::AccessUnknown,
                "the called workload's sidecar has not heard yet whom it lets in; check that it reaches the controller",
            ));
        };
        let tokens = self.tokens.authenticate(access, caller.app.port(), &mut head.headers);
        let beside = Beside { named, tokens };
        match self.judge(access, caller, Subject::Request(head, &beside)) {
            Ok(note) => {
                call.request.access = note;
                Ok(beside)
            }
            Err((note, answer)) => {
                call.request.access = Some(note);
                Err(answer.error())
            }
        }
    }

    /// Asks the policies, and tells what they say. What they let in may have a note all the same.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn ask(&self, caller: &Caller, subject: Subject<'_>) -> Result<Option<Box<AccessNote>>, Refused> {
        let access = self.current();
        let access = access.as_deref().ok_or(Refused::Unknown)?;
        let judged = self.judge(access, caller, subject);
        judged.map_err(|(note, _)| Refused::Denied(note))
    }

    fn judge(
        &self,
        access: &Access,
        caller: &Caller,
        subject: Subject<'_>,
    ) -> Result<Option<Box<AccessNote>>, (Box<AccessNote>, Answer)> {
        if !access.selects(caller.app.port()) {
            return Ok(None);
        }
        let decision = decide(access, caller, subject);
        if let Some((note, answer)) = denial(&decision) {
            self.tell(caller, subject, &note);
            return Err((note, answer));
        }
        let (policy, rule) = by(&decision.verdict);
        self.metrics.access(AccessDecision::Allowed, policy, rule, "");
        let audited = decision.audit.iter().map(|audited| {
            let rule = audited.rule.unwrap_or_default();
            let note = note(AccessDecision::Audited, audited.policy, rule, "");
            self.tell(caller, subject, &note);
            note
        });
        // Of several, the first stands in the log and in the span; each is counted.
        Ok(audited.reduce(|first, _| first))
    }

    /// The app has taken what was let in: a request of this method, or a connection of bytes. Before that nothing is counted: of ports that
    /// nobody listens at, anybody could make a series.
    pub(super) fn count(&self, caller: &Caller, method: Option<&Method>) {
        let callers = self.metrics.callers();
        callers.count(caller.peer.as_ref(), caller.app.port(), method);
    }

    /// Waits until policies, which have changed, refuse what goes on.
    pub(super) async fn until_denied(&self, caller: &Caller, subject: Subject<'_>) -> AccessNote {
        loop {
            // From here on it hears of a change.
            let changed = self.changed.notified();
            let asked = check(self.current().as_deref(), caller, subject);
            if let Err(Refused::Denied(note)) = asked {
                self.tell(caller, subject, &note);
                self.metrics.error(Reason::AccessDenied);
                return *note;
            }
            changed.await;
        }
    }

    /// Counts and logs that something is refused, or would be.
    pub(super) fn tell(&self, caller: &Caller, subject: Subject<'_>, note: &AccessNote) {
        self.metrics
            .access(note.decision, &note.policy, &note.rule, note.reason);
        let what = match subject {
            Subject::Bytes => "a connection",
            Subject::Request(..) => "a request",
        };
        let (limit, verb) = match note.decision {
            AccessDecision::Audited => (&self.audited, "would be refused by a policy in Audit mode"),
            _ => (&self.denied, "is refused by a policy"),
        };
        limit.log(Instant::now(), |left_out| {
            tracing::info!(
                client = caller.address.map(tracing::field::display),
                peer = caller.peer.as_ref().map(SpiffeId::as_str),
                port = caller.app.port(),
                policy = note.policy,
                rule = note.rule,
                reason = note.reason,
                left_out,
                "{what} {verb}"
            );
        });
    }
}

/// Asks the policies, and tells nobody.
///
/// # Errors
/// Why it is refused.
pub(super) fn check(access: Option<&Access>, caller: &Caller, subject: Subject<'_>) -> Result<(), Refused> {
    let access = access.ok_or(Refused::Unknown)?;
    if !access.selects(caller.app.port()) {
        return Ok(());
    }
    denial(&decide(access, caller, subject)).map_or(Ok(()), |(note, _)| Err(Refused::Denied(note)))
}

fn decide<'a>(access: &'a Access, caller: &Caller, subject: Subject<'_>) -> Decision<'a> {
    let Subject::Request(head, beside @ Beside { named, tokens }) = subject else {
        return access.decide(&facts(caller, policy::Carries::Bytes));
    };
    let of = |headers: &HeaderMap| access.decide(&request(caller, head, headers, tokens));
    let mut decision = of(&head.headers);
    // RFC 9110 section 7.6.1 lets a client remove what a proxy before it may have written. What does not come to the app opens
    // nothing; what would be refused with it is refused.
    if !named.is_empty() && decision.verdict.is_allowed() {
        let with_them = of(&beside.and_named(&head.headers));
        if let Verdict::Denied(_) = with_them.verdict {
            return with_them;
        }
        add_audits(&mut decision, with_them);
    }
    // What follows is the app's own TLS, with requests in it that nobody asks about: so it is let in as that, or not at all.
    if asks_for_tls(&head.headers) && decision.verdict.is_allowed() {
        let of_bytes = access.decide(&facts(caller, policy::Carries::Bytes));
        if !of_bytes.verdict.is_allowed() {
            return of_bytes;
        }
        add_audits(&mut decision, of_bytes);
    }
    decision
}

/// What audited policies would refuse of another reading of the same request.
fn add_audits<'a>(decision: &mut Decision<'a>, other: Decision<'a>) {
    for audited in other.audit {
        if decision.audit.iter().all(|known| known.policy != audited.policy) {
            decision.audit.push(audited);
        }
    }
}

/// Of a request that is let in, with these headers.
pub(super) fn facts_of<'a>(
    caller: &'a Caller,
    head: &'a Parts,
    headers: &'a HeaderMap,
    beside: &'a Beside,
) -> policy::Facts<'a> {
    request(caller, head, headers, &beside.tokens)
}

fn request<'a>(caller: &'a Caller, head: &'a Parts, headers: &'a HeaderMap, tokens: &'a Tokens) -> policy::Facts<'a> {
    let head = Head {
        method: head.method.as_str(),
        path: head.uri.path(),
        host: authority::of(head),
        headers,
        tokens,
    };
    facts(caller, policy::Carries::Http(head))
}

/// The address is the TCP peer's. A pod that calls itself has its own.
fn facts<'a>(caller: &'a Caller, carries: policy::Carries<'a>) -> policy::Facts<'a> {
    let address = caller.address.map_or(caller.app.ip(), |address| address.ip());
    policy::Facts {
        port: caller.app.port(),
        caller: policy::Caller {
            identity: caller.peer.as_ref(),
            address: Some(address.to_canonical()),
        },
        carries,
    }
}

/// Who refuses, and what the client hears of it. `None`: it is let in.
fn denial(decision: &Decision<'_>) -> Option<(Box<AccessNote>, Answer)> {
    let (answer, reason) = match decision.verdict {
        Verdict::Allowed(_) => return None,
        Verdict::InvalidToken { why, .. } => (Answer::BadToken(why), why.code()),
        Verdict::Refused { wants_token: true, .. } => (Answer::NoToken, NO_TOKEN),
        _ if decision.ambiguous_path => (Answer::Denied, "ambiguous-path"),
        Verdict::Denied(_) | Verdict::Refused { .. } => (Answer::Denied, ""),
    };
    let (policy, rule) = by(&decision.verdict);
    Some((note(AccessDecision::Denied, policy, rule, reason), answer))
}

impl Answer {
    /// It says nothing of policies.
    fn error(self) -> ProxyError {
        match self {
            Self::Denied => ProxyError::new(
                Reason::AccessDenied,
                "the policies of the called workload do not let this request in; which of them, the log of its sidecar says",
            ),
            Self::NoToken => ProxyError::new(
                Reason::TokenRequired,
                "the policies of the called workload do not let this request in without a token; which of them, the log of its sidecar says",
            ),
            Self::BadToken(why) => ProxyError::new(Reason::TokenInvalid, why.told()),
        }
    }
}

/// The policy that decided, and its rule; "" where there is none.
fn by<'a>(verdict: &Verdict<'a>) -> (&'a str, &'a str) {
    match *verdict {
        Verdict::Allowed(None) => ("", ""),
        Verdict::Allowed(Some(by)) | Verdict::Denied(by) => (by.policy, by.rule),
        Verdict::Refused { exclusive: policy, .. } | Verdict::InvalidToken { policy, .. } => (policy, ""),
    }
}

fn note(decided: AccessDecision, policy: &str, rule: &str, reason: &'static str) -> Box<AccessNote> {
    Box::new(AccessNote {
        decision: decided,
        policy: policy.to_owned(),
        rule: rule.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::IpAddr;

    use outrigger_api::access as proto;
    use outrigger_api::access::{condition, http_condition, source};
    use outrigger_api::discovery::{NamedMatch, StringMatch, string_match};
    use outrigger_proxy_transport::net::Term;

    use super::*;
    use crate::inbound::introduction::Introduction;

    fn caller(address: Option<&str>) -> Caller {
        Caller {
            app: "10.0.0.1:80".parse().unwrap(),
            peer: None,
            address: address.map(|address| address.parse().unwrap()),
            term: Term::default(),
            introduction: Introduction::default(),
        }
    }

    #[test]
    fn the_address_is_the_tcp_peers_and_of_a_pod_that_calls_itself_its_own() {
        for (address, expected) in [
            (Some("10.0.0.2:4711"), "10.0.0.2"),
            (Some("[::ffff:10.0.0.2]:4711"), "10.0.0.2"),
            (Some("[fd00::2]:4711"), "fd00::2"),
            (None, "10.0.0.1"),
        ] {
            let caller = caller(address);
            let expected: IpAddr = expected.parse().unwrap();
            let facts = facts(&caller, policy::Carries::Bytes);
            assert_eq!((facts.port, facts.caller.address), (80, Some(expected)), "{address:?}");
        }
    }

    /// One with a rule for everybody who sends this header.
    fn of_header(deny: bool) -> proto::Policy {
        let anybody = source::Kind::Any(proto::Anybody {});
        let value = StringMatch {
            kind: Some(string_match::Kind::Exact("1".to_owned())),
        };
        let header = http_condition::Kind::Header(NamedMatch {
            name: "x".to_owned(),
            value: Some(value),
        });
        let all = vec![proto::HttpCondition { kind: Some(header) }];
        let conditions = [
            condition::Kind::Sources(proto::Sources {
                any: vec![proto::Source { kind: Some(anybody) }],
            }),
            condition::Kind::Http(proto::HttpMatches {
                any: vec![proto::HttpMatch { all }],
            }),
        ];
        proto::Policy {
            name: if deny { "shop/denies" } else { "shop/allows" }.to_owned(),
            deny,
            exclusive: !deny,
            rules: vec![proto::Rule {
                name: "0".to_owned(),
                conditions: conditions.map(|kind| proto::Condition { kind: Some(kind) }).into(),
            }],
            ..proto::Policy::default()
        }
    }

    /// A rule that needs HTTP lets no TLS of the app in, also where a request asks for it.
    #[test]
    fn tls_within_a_request_is_for_whom_bytes_are_for() {
        let request = |upgrade: &'static str| {
            let request = http::Request::get("/").header("x", "1").header("upgrade", upgrade);
            request.body(()).unwrap().into_parts().0
        };
        let mut of_bytes = of_header(false);
        of_bytes.rules[0].conditions.truncate(1);
        for (policy, upgrade, allowed) in [
            (of_header(false), "websocket", true),
            (of_header(false), "TLS/1.3", false),
            (of_header(false), "websocket, tls/1.2", false),
            (of_bytes.clone(), "TLS/1.3", true),
        ] {
            let (head, beside) = (request(upgrade), Beside::default());
            let subject = Subject::Request(&head, &beside);
            let of = |enforced, audited| Access::new(&proto::Access { enforced, audited });
            let enforced = of(vec![policy.clone()], Vec::new());
            let decision = decide(&enforced, &caller(None), subject);
            assert_eq!(decision.verdict.is_allowed(), allowed, "{upgrade}");
            let audited = of(Vec::new(), vec![policy]);
            let decision = decide(&audited, &caller(None), subject);
            assert!(decision.verdict.is_allowed());
            assert_eq!(decision.audit.is_empty(), allowed, "{upgrade}");
        }
    }

    /// What a client says is for this hop alone opens nothing, and what it would close stays closed: in Audit mode too.
    #[test]
    fn a_header_that_does_not_come_to_the_app_only_closes() {
        let head = |headers: &[&'static str]| {
            let mut request = http::Request::get("/");
            for name in headers {
                request = request.header(*name, "1");
            }
            request.body(()).unwrap().into_parts().0
        };
        let named: HeaderMap = head(&["x"]).headers;
        let none = HeaderMap::new();
        // Which policy; the headers that the app gets, and those that it does not; whether it is allowed.
        for (deny, headers, named, allowed) in [
            (false, &["x"][..], &none, true),
            (false, &[], &none, false),
            (false, &[], &named, false),
            (true, &["x"], &none, false),
            (true, &[], &none, true),
            (true, &[], &named, false),
        ] {
            let (policy, head) = (of_header(deny), head(headers));
            let of = |enforced, audited| Access::new(&proto::Access { enforced, audited });
            let beside = Beside {
                named: named.clone(),
                ..Beside::default()
            };
            let subject = Subject::Request(&head, &beside);
            let case = format!("denies: {deny}, {headers:?}, {named:?}");
            let enforced = of(vec![policy.clone()], Vec::new());
            let decision = decide(&enforced, &caller(None), subject);
            assert_eq!(decision.verdict.is_allowed(), allowed, "{case}");
            let audited = of(Vec::new(), vec![policy.clone()]);
            let decision = decide(&audited, &caller(None), subject);
            assert!(decision.verdict.is_allowed(), "{case}");
            let refusals: Vec<&str> = decision.audit.iter().map(|audited| audited.policy).collect();
            let expected: Vec<&str> = if allowed { Vec::new() } else { vec![&policy.name] };
            assert_eq!(refusals, expected, "{case}");
        }
    }
}
