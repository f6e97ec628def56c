"""ztunnel in dedicated mode, one for each pod: TCP in HBONE (HTTP/2 CONNECT in mTLS). It knows no HTTP: the tests of HTTP go
through it as TCP. Built with the feature `testing`, for FAKE_CA: both sign their certificates with a test CA of its own."""
import lab

CASES = {"ztunnel": "HBONE, layer 4 only; it logs a line for each connection, as it does by default"}
UID, OUTBOUND, INBOUND, HBONE, READY, STATS = 2102, 15001, 15006, 15008, 15021, 15020


def program():
    return lab.program("ztunnel")


def ready(case):
    return READY, "/healthz/ready"


def redirect(pod):
    lab.redirect(pod, OUTBOUND, INBOUND, [HBONE, READY, STATS], UID)


def start(processes, case, pod, tracing):
    file = f"{lab.WORK}/ztunnel.yaml"
    with open(file, "w") as f:
        f.write("workloads:\n")
        for name in ("client", "server"):
            f.write(f"""- uid: cluster1//v1/Pod/bench/{name}
  name: {name}
  namespace: bench
  serviceAccount: {name}
  workloadIps: ["{lab.IP[name]}"]
  protocol: HBONE
  node: local
  network: ""
  services: {{}}
""")
        f.write("policies: []\nservices: []\n")
    return processes.start(f"{case}-{pod}", [program()], pod=pod, uid=UID, env={
        "FAKE_CA": "true", "XDS_ADDRESS": "", "LOCAL_XDS_PATH": file, "PROXY_MODE": "dedicated",
        "PROXY_WORKLOAD_INFO": f"bench/{pod}/{pod}", "ENABLE_ORIG_SRC": "false",
        "ZTUNNEL_WORKER_THREADS": "1", "RUST_LOG": "info", "NODE_NAME": "local",
        "INSTANCE_IP": lab.IP[pod], "POD_NAME": pod, "POD_NAMESPACE": "bench"})
