"""linkerd2-proxy in production shape against a control plane with fixed answers (`outrigger-bench linkerd-control`, one in
each pod). Between the proxies HTTP/1 is carried over HTTP/2, or as it is where no hint is given; opaque ports use Linkerd's
opaque transport. It starts no traces itself: with tracing, it would only pass on what comes in."""
import os
import lab

CASES = {"linkerd": "HTTP/1 carried over HTTP/2 between the proxies", "linkerd-h1": "HTTP/1 carried as HTTP/1"}
UID, OUTBOUND, INBOUND, CONTROL, ADMIN, PLANE = 2102, 4140, 4143, 4190, 4191, 8086


def program():
    return lab.program("linkerd2-proxy")


def ready(case):
    return ADMIN, "/ready"


def redirect(pod):
    lab.redirect(pod, OUTBOUND, INBOUND, [CONTROL, ADMIN], UID)


def csv(ports):
    return ",".join(map(str, ports))


def prepare(processes, case, tracing):
    for pod in ("client", "server"):
        processes.start(f"linkerd-control-{pod}", [
            lab.program("outrigger-bench"), "linkerd-control", "--addr", f"127.0.0.1:{PLANE}", "--certs", f"{lab.WORK}/certs",
            "--server", lab.IP["server"], "--opaque", csv(lab.TCP_PORTS), "--inbound-port", str(INBOUND),
            *(["--http2"] if case == "linkerd" else [])], pod=pod, uid=UID)


def start(processes, case, pod, tracing):
    certs, plane = f"{lab.WORK}/certs", f"127.0.0.1:{PLANE}"
    with open(f"{certs}/ca.pem") as f:
        anchors = f.read()
    env = {
        "CORES": "1", "CORES_MIN": "1", "CORES_MAX": "1",
        "LOG": "warn,linkerd=info,[{headers}]=off,[{request}]=off", "LOG_FORMAT": "plain",
        "DESTINATION_SVC_ADDR": plane, "POLICY_SVC_ADDR": plane, "IDENTITY_SVC_ADDR": plane,
        "DESTINATION_PROFILE_NETWORKS": lab.NET + "0/24", "POLICY_CLUSTER_NETWORKS": lab.NET + "0/24",
        "DESTINATION_PROFILE_SUFFIXES": "svc.cluster.local.",
        "DESTINATION_CONTEXT": f'{{"ns":"bench","nodeName":"n","pod":"{pod}"}}',
        "POLICY_WORKLOAD": f'{{"ns":"bench","pod":"{pod}"}}',
        "INBOUND_DEFAULT_POLICY": "all-unauthenticated",
        "CONTROL_LISTEN_ADDR": f"0.0.0.0:{CONTROL}", "ADMIN_LISTEN_ADDR": f"127.0.0.1:{ADMIN}",
        "OUTBOUND_LISTEN_ADDR": f"127.0.0.1:{OUTBOUND}", "OUTBOUND_LISTEN_ADDRS": f"127.0.0.1:{OUTBOUND}",
        "INBOUND_LISTEN_ADDR": f"0.0.0.0:{INBOUND}", "INBOUND_IPS": lab.IP[pod],
        "INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION": csv(lab.TCP_PORTS),
        "INBOUND_ACCEPT_KEEPALIVE": "10000ms", "OUTBOUND_CONNECT_KEEPALIVE": "10000ms",
        "INBOUND_ACCEPT_USER_TIMEOUT": "30s", "OUTBOUND_CONNECT_USER_TIMEOUT": "30s",
        "IDENTITY_DIR": f"{certs}/linkerd-{pod}", "IDENTITY_TOKEN_FILE": f"{certs}/linkerd-{pod}/token",
        "IDENTITY_TRUST_ANCHORS": anchors,
        "IDENTITY_LOCAL_NAME": f"{pod}.bench.serviceaccount.identity.linkerd.cluster.local",
        "SHUTDOWN_ENDPOINT_ENABLED": "false", "SHUTDOWN_GRACE_PERIOD": "1s",
    }
    if pod == "server":
        env["INBOUND_PORTS"] = csv(lab.HTTP_PORTS + lab.TCP_PORTS)
    return processes.start(f"{case}-{pod}", [program()], pod=pod, uid=UID,
                           env={"LINKERD2_PROXY_" + name: value for name, value in env.items()})
