"""Two pods as network namespaces on a bridge, and the processes in them.

All addresses are inside the namespaces; nothing outside them is changed.
"""
import ctypes, os, shutil, signal, socket, subprocess, time
from contextlib import nullcontext

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORK = os.path.join(ROOT, "target", "bench")
TARGET = f"{os.uname().machine}-unknown-linux-gnu"
NET = "10.78.0."
IP = {"control": NET + "1", "client": NET + "2", "server": NET + "3"}
NAMESPACE = {pod: f"outrigger-bench-{pod}" for pod in IP}
# The app's ports. Sidecars must not look into the bytes of the last two.
HTTP1, HTTP2, TCP_HTTP, IPERF = 8080, 8081, 8090, 5201
HTTP_PORTS, TCP_PORTS = [HTTP1, HTTP2], [TCP_HTTP, IPERF]
BODY = 1024
HOST = "app.bench.svc.cluster.local"


def program(name):
    """Its path: what the variable NAME_BIN says, what was built for this, or from PATH; None when it is not there."""
    variable = os.environ.get(name.upper().replace("-", "_") + "_BIN")
    built = (f"{ROOT}/target/{TARGET}/dist/{name}", f"{ROOT}/target/release/{name}", f"{WORK}/bin/{name}")
    for path in (variable, *built):
        if path and os.path.exists(path):
            return os.path.realpath(path)
    return shutil.which(name)


def sh(command, check=True, **more):
    return subprocess.run(command, check=check, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more).stdout


def inside(pod, command):
    return ["ip", "netns", "exec", NAMESPACE[pod], *command]


class Processes:
    """What was started, to be ended."""

    def __init__(self):
        self.all = []

    def start(self, name, command, env=None, pod=None, uid=None):
        """In a pod and as a user, if they are given. Not by `ip netns exec` and `setpriv`: they take longer than the
        start of a sidecar."""
        os.makedirs(f"{WORK}/log", exist_ok=True)
        user = {"user": uid, "group": uid, "extra_groups": []} if uid else {}
        with open(f"{WORK}/log/{name}.log", "w") as log, Inside(pod) if pod else nullcontext():
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                       env={**os.environ, **(env or {})}, cwd=WORK, start_new_session=True, **user)
        self.all.append(process)
        return process

    def stop(self):
        for process in self.all:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 2
        for process in self.all:
            try:
                process.wait(max(0.05, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.all.clear()


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            return [int(child) for child in f.read().split()]
    except OSError:
        return []


def cpu_seconds(pid, tree=False):
    """User and system time."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + (sum(cpu_seconds(child, True) for child in children(pid)) if tree else 0)


def rss_kib(pid, field="VmRSS"):
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith(field + ":"):
                return int(line.split()[1])
    return 0


def network_up():
    network_down()
    for name in NAMESPACE.values():
        sh(["ip", "netns", "add", name])
    control = inside("control", [])
    sh([*control, "ip", "link", "add", "br0", "type", "bridge"])
    sh([*control, "ip", "addr", "add", IP["control"] + "/24", "dev", "br0"])
    sh([*control, "ip", "link", "set", "br0", "up"])
    for pod in ("client", "server"):
        end, own = f"v-{pod}", inside(pod, [])
        sh([*control, "ip", "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE[pod]])
        sh([*control, "ip", "link", "set", end, "master", "br0", "up"])
        sh([*own, "ip", "addr", "add", IP[pod] + "/24", "dev", "eth0"])
        sh([*own, "ip", "link", "set", "eth0", "up"])
        # Above every port of a sidecar: a poll of a port that is not listened on yet can be given that very port as its
        # source, connect to itself, and hold it.
        for key, value in (("ip_local_port_range", "20000 65000"), ("tcp_tw_reuse", "1"), ("tcp_max_tw_buckets", "20000")):
            sh([*own, "sysctl", "-qw", f"net.ipv4.{key}={value}"])
    for pod in NAMESPACE:
        sh(inside(pod, ["ip", "link", "set", "lo", "up"]))


def network_down():
    for name in NAMESPACE.values():
        sh(["ip", "netns", "del", name], check=False)


def redirect(pod, outbound, inbound, skip_inbound, uid):
    """What an injected init container does: all but the sidecar's own connections are redirected to it."""
    rules = ["*nat", "-A OUTPUT -p tcp -m owner --uid-owner {} -j RETURN".format(uid), "-A OUTPUT -o lo -j RETURN",
             f"-A OUTPUT -p tcp -j REDIRECT --to-ports {outbound}"]
    rules += [f"-A PREROUTING -p tcp --dport {port} -j RETURN" for port in skip_inbound]
    rules += [f"-A PREROUTING -p tcp -j REDIRECT --to-ports {inbound}", "COMMIT", ""]
    sh(inside(pod, ["iptables-restore"]), input="\n".join(rules))


def apps(processes):
    """In the pod "server": nginx (HTTP/1.1, one worker), a server of HTTP/2, iperf3."""
    folder = f"{WORK}/nginx"
    os.makedirs(folder + "/tmp", exist_ok=True)
    temporary = " ".join(f"{kind}_temp_path {folder}/tmp/{kind};" for kind in
                         ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    with open(folder + "/nginx.conf", "w") as f:
        f.write(f"""
user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; daemon off;
worker_rlimit_nofile 30000;
events {{ worker_connections 24000; }}
http {{
  access_log off; {temporary}
  keepalive_requests 1000000000; keepalive_timeout 600s; server_tokens off;
  server {{ listen {HTTP1} backlog=4096; listen {TCP_HTTP} backlog=4096;
    location / {{ default_type text/plain; return 200 "{'x' * BODY}"; }} }}
}}
""")
    server = program("outrigger-bench")
    return {
        "nginx": processes.start("nginx", inside("server", ["nginx", "-c", folder + "/nginx.conf", "-p", folder])),
        "http2": processes.start("http2-server", inside("server", [
            server, "http2-server", "--addr", f"0.0.0.0:{HTTP2}", "--size", str(BODY)])),
        "iperf3": processes.start("iperf3", inside("server", ["iperf3", "-s", "-p", str(IPERF)])),
    }


class Inside:
    """This very process in a pod's network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, pod):
        self.pod = pod

    def enter(self, fd):
        if self.libc.setns(fd, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(fd)

    def __enter__(self):
        self.before = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.enter(os.open(f"/var/run/netns/{NAMESPACE[self.pod]}", os.O_RDONLY))

    def __exit__(self, *_):
        self.enter(self.before)


def status(host, port, path="/", timeout=1.0):
    """The status of a GET in the current namespace, or 0."""
    try:
        with socket.create_connection((host, port), timeout) as stream:
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            head = b""
            while len(head) < 12:
                some = stream.recv(4096)
                if not some:
                    break
                head += some
        return int(head[9:12])
    except (OSError, ValueError):
        return 0


def wait_for_200(pod, host, port, path="/", seconds=15.0):
    """How long it took, in seconds; None when it did not come."""
    began = time.monotonic()
    with Inside(pod):
        while time.monotonic() - began < seconds:
            if status(host, port, path) == 200:
                return time.monotonic() - began
            time.sleep(0.001)
    return None
