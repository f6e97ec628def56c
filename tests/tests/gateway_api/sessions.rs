//! Sessions by cookie on a real cluster: a client that sends back what it was given stays at one pod, and a value of nobody's is as good as none.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use outrigger_tests::kube::{Kubectl, eventually};

use super::own::SOON;

const COOKIE: &str = "stay";

/// A Service of pods of all versions, and its route.
const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: all-of-echo}
spec: {selector: {app: echo}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: sessions}
spec:
  parentRefs: [{group: '', kind: Service, name: all-of-echo, port: 80}]
  rules:
  - sessionPersistence: {type: Cookie, sessionName: stay}
    backendRefs: [{name: all-of-echo, port: 80}]
";

pub(super) async fn all(routes: &Kubectl) -> Result<()> {
    routes.apply(OBJECTS).await?;
    eventually("sessions", SOON, async || {
        let route = routes.get(["httproute/sessions"]).await?;
        super::own::conditions_are(&route, "Accepted", "ResolvedRefs")
    })
    .await?;
    eventually("a session, and requests of none", SOON, async || {
        let first = ask(routes, None, 1).await?;
        let value = first.cookie.context("no cookie")?;
        let stays = ask(routes, Some(&value), 40).await?;
        ensure!(stays.pods == first.pods, "{:?}, and then {:?}", first.pods, stays.pods);
        ensure!(stays.cookie.is_none(), "it has one already");
        let nobody = ask(routes, None, 40).await?;
        ensure!(nobody.pods.len() > 1, "all at {:?}", nobody.pods);
        // One character is another one.
        let (start, end) = value.split_at(value.len() / 2);
        let other = if end.starts_with('A') { 'B' } else { 'A' };
        let forged = format!("{start}{other}{}", &end[1..]);
        for stranger in [&*forged, "of-nobody"] {
            let refused = ask(routes, Some(stranger), 40).await?;
            ensure!(
                refused.pods.len() > 1,
                "{stranger} leads all to one pod: {:?}",
                refused.pods
            );
            let new = refused.cookie.context("nothing in the place of a stranger's value")?;
            ensure!(new != stranger, "it is believed");
        }
        Ok(())
    })
    .await?;
    routes
        .run_with_input(["delete", "--wait=true", "-f", "-"], OBJECTS)
        .await?;
    println!("holds: sessions by cookie");
    Ok(())
}

/// What came of some requests.
struct Seen {
    pods: BTreeSet<String>,
    /// The last that was set.
    cookie: Option<String>,
}

async fn ask(routes: &Kubectl, cookie: Option<&str>, count: usize) -> Result<Seen> {
    let exec = ["exec", "deploy/client", "-c", "echo", "--", "client"];
    let mut args: Vec<_> = exec.map(str::to_owned).into();
    args.extend(["--count".to_owned(), count.to_string()]);
    if let Some(value) = cookie {
        args.extend(["-H".to_owned(), format!("Cookie:{COOKIE}={value}")]);
    }
    args.push("http://all-of-echo/".to_owned());
    let printed = routes.run(args).await?;
    // Of each request it prints "[0] ResponseHeader=Set-Cookie:stay=…; HttpOnly; …" and "[0 body] Hostname=echo-v1-…".
    let pods = printed.lines().filter_map(|line| line.split_once("body] Hostname="));
    let pods: BTreeSet<_> = pods.map(|(_, pod)| pod.to_owned()).collect();
    ensure!(!pods.is_empty(), "no answer:\n{printed}");
    let set = format!("ResponseHeader=Set-Cookie:{COOKIE}=");
    let cookies = printed.lines().filter_map(|line| line.split_once(&*set));
    let mut cookie = cookies.map(|(_, rest)| rest.split(';').next().unwrap_or(rest).trim().to_owned());
    Ok(Seen {
        pods,
        cookie: cookie.next_back(),
    })
}
