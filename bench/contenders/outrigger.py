"""Outrigger as it is injected: its own capture, its controller with fixed answers, and every default."""
import json, os, time
import lab, policies

CASES = {"outrigger": "as injected: every default but the place that spans go to",
         "outrigger" + policies.ACCESS: "the same with AccessPolicies (--policies)",
         "outrigger" + policies.TRAFFIC: "the same with a RateLimitPolicy, a TrafficPolicy and ten routes (--policies)"}
OTHER = "outrigger-other"
# Two builds, round by round: runs one after the other differ by more than most changes give.
if lab.program(OTHER):
    CASES[OTHER] = "another build of it, for comparison"
UID, ADMIN, CONTROLLER = 2140, 14190, 14150


def program():
    return lab.program("outrigger-proxy")


def ready(case):
    return ADMIN, "/readyz"


def redirect(pod):
    lab.sh(lab.inside(pod, [program(), "init"]))


def csv(ports):
    return ",".join(map(str, ports))


def rule(rule):
    said = {"name": rule["name"], "sources": [{"type": "Any"}]}
    if rule["accounts"]:
        said["sources"] = [{"type": "ServiceAccount", "serviceAccount": {"name": name}} for name in rule["accounts"]]
    if "groups" in rule:
        claims = [{"name": "groups", "values": rule["groups"]}]
        said["requires"] = [{"type": "JWT", "jwt": {"provider": "login", "claims": claims}}]
    http = {}
    if rule["methods"]:
        http["methods"] = rule["methods"]
    if rule["path"]:
        kind, value = rule["path"]
        http["paths"] = [{"type": {"exact": "Exact", "prefix": "PathPrefix"}[kind], "value": value}]
    return {**said, "httpAttributes": [http]} if http else said


def access_policies():
    """The specs of two AccessPolicies."""
    provider = {"name": "login", "issuer": policies.ISSUER, "audiences": [policies.AUDIENCE], "jwks": {"inline": policies.jwks()}}
    return [{"targetRefs": [], "action": "Deny", "rules": [rule(r) for r in policies.DENY]},
            {"targetRefs": [], "jwt": {"providers": [provider]}, "rules": [rule(r) for r in policies.ALLOW]}]


def traffic():
    """The specs of a RateLimitPolicy and a TrafficPolicy, and the prefixes of routes."""
    each = {"per": [{"type": "Identity"}], "rate": {"requests": policies.PER_SECOND, "interval": "1s"}, "scope": "Pod"}
    most = {"maxConnections": policies.MOST, "maxPendingRequests": policies.MOST, "maxRequests": policies.MOST}
    ejection = {"consecutiveFailures": policies.FAILURES, "baseEjectionTime": f"{policies.LEFT_OUT}s",
                "successRate": {"threshold": 85}}
    return {"limits": {"targetRefs": [], "limits": [each]},
            "traffic": {"targetRefs": [], "limits": most, "ejection": ejection}, "routes": policies.ROUTES}


def prepare(processes, case, tracing):
    command = [lab.program("outrigger-bench"), "control", "--addr", f"{lab.IP['control']}:{CONTROLLER}", "--out",
               f"{lab.WORK}/outrigger", "--server", lab.IP["server"], "--ports", csv(lab.HTTP_PORTS), "--opaque", csv(lab.TCP_PORTS)]
    for suffix, option, specs in ((policies.ACCESS, "--access", access_policies), (policies.TRAFFIC, "--traffic", traffic)):
        if case.endswith(suffix):
            file = f"{lab.WORK}/{case}.json"
            with open(file, "w") as f:
                json.dump(specs(), f, indent=1)
            command += [option, file]
    processes.start("outrigger-control", lab.inside("control", command))
    # It listens last; what asks before that tries again, which is not what is measured.
    with lab.Inside("control"):
        end = time.monotonic() + 5
        while time.monotonic() < end and not listens(CONTROLLER):
            time.sleep(0.01)


def listens(port):
    with open("/proc/thread-self/net/tcp") as f:
        return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in list(f)[1:])


def start(processes, case, pod, tracing):
    files = f"{lab.WORK}/outrigger"
    env = {
        "NAMESPACE": "bench", "POD": f"{pod}-1", "WORKLOAD": pod, "SERVICE_ACCOUNT": pod, "POD_IPS": lab.IP[pod],
        "CONTROLLER": f"{lab.IP['control']}:{CONTROLLER}",
        "CONTROLLER_ID": "spiffe://cluster.local/ns/outrigger/sa/outrigger-controller",
        "TOKEN_FILE": f"{files}/token-{pod}", "TRUST_BUNDLE_FILE": f"{files}/ca.crt",
        # What a Service's ports without a name say to the client, an annotation says to the server's sidecar.
        "OPAQUE_PORTS": csv(lab.TCP_PORTS),
    }
    if tracing:
        env |= {"TRACING_ENDPOINT": f"http://{lab.IP['control']}:4317", "TRACING_SAMPLE_RATIO": "0.01"}
    return processes.start(f"{case}-{pod}", [lab.program(OTHER) if case == OTHER else program(), "run"], pod=pod, uid=UID,
                           env={f"OUTRIGGER_{name}": value for name, value in env.items()})
