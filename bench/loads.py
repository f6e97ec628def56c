"""What is put on the contenders, test by test. Each gives a dict: `n` requests (or `gb` transferred) for the CPU that they
took, `errors`, and its figures."""
import json, re, subprocess, time
import lab, policies

TOOL = lab.program("outrigger-bench")


def run(command, timeout=90):
    done = subprocess.run(lab.inside("client", command), text=True, capture_output=True, timeout=timeout)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-300:]}")
    return done.stdout


def microseconds(text):
    value, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def address(port):
    return f"{lab.IP['server']}:{port}"


def wrk_command(connections, seconds, path="/"):
    return ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s", "--latency", f"http://{address(lab.HTTP1)}{path}"]


def wrk(connections, seconds, path="/", header=None):
    said = run(wrk_command(connections, seconds, path) + (["-H", header] if header else []))
    errors = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", said)))
    for line in re.findall(r"Socket errors: (.*)", said):
        errors += sum(map(int, re.findall(r"\d+", line)))
    latency = {f"p{p}": microseconds(re.search(rf"^\s+{p}%\s+(\S+)", said, re.M)[1]) for p in (50, 99)}
    return {"n": int(re.search(r"(\d+) requests in", said)[1]), "errors": errors, "latency_us": latency,
            "per_second": float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])}


def h2load(seconds, grpc):
    command = ["h2load", "-t1", "-c8", "-m8", "-D", str(seconds)]
    path = "/"
    if grpc:
        message = f"{lab.WORK}/message.grpc"
        with open(message, "wb") as f:
            f.write(b"\0" + (128).to_bytes(4, "big") + b"q" * 128)
        command += ["-d", message, "-H", "content-type: application/grpc", "-H", "te: trailers"]
        path = "/bench.Echo/Call"
    said = run(command + [f"http://{address(lab.HTTP2)}{path}"])
    done, succeeded, failed, errored = map(int, re.search(
        r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", said).groups())
    return {"n": done, "per_second": succeeded / seconds, "errors": failed + errored}


def iperf3(seconds, down):
    ended = json.loads(run(["iperf3", "-c", lab.IP["server"], "-p", str(lab.IPERF), "-t", str(seconds), "-J",
                            *(["-R"] if down else [])]))["end"]["sum_received"]
    return {"gbit_per_second": ended["bits_per_second"] / 1e9, "gb": ended["bytes"] / 1e9, "errors": 0}


def ours(*arguments):
    return json.loads(run([TOOL, *map(str, arguments)]).splitlines()[0])


def rate(requests, seconds, connections=16, warmup=1):
    said = ours("rate", "--addr", address(lab.HTTP1), "--rate", requests, "--connections", connections,
                "--seconds", seconds, "--warmup", warmup)
    return {**said, "n": int(requests * (seconds + warmup))}


def connect(port, seconds):
    said = ours("connect", "--addr", address(port), "--seconds", seconds)
    return {**said, "n": said["ok"]}


def fortio(requests, seconds):
    """A second opinion on the latency. `-uniform`: else bursts of 16; `-r`: else buckets of 1 ms."""
    said = json.loads(run([lab.program("fortio"), "load", "-quiet", "-qps", str(requests), "-c", "16", "-nocatchup", "-uniform",
                           "-r", "0.00001", "-t", f"{seconds}s", "-p", "50,90,99,99.9", "-json", "-",
                           f"http://{address(lab.HTTP1)}/"]))
    histogram = said["DurationHistogram"]
    values = [p["Value"] * 1e6 for p in histogram["Percentiles"]]
    return {"n": histogram["Count"], "per_second": said["ActualQPS"],
            "errors": histogram["Count"] - said["RetCodes"].get("200", 0),
            "latency_us": dict(zip(("p50", "p90", "p99", "p999"), values))}


def victim(seconds):
    """A steady client beside one that saturates the same sidecars."""
    neighbour = subprocess.Popen(lab.inside("client", wrk_command(64, seconds + 2)), stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    try:
        return rate(200, seconds, connections=8, warmup=0.5)
    finally:
        neighbour.wait()


def hold(connections):
    """Connections that are open and idle; `meter` sees the memory meanwhile."""
    return {**ours("hold", "--addr", address(lab.HTTP1), "--connections", connections, "--seconds", 2), "n": connections}


def tests(seconds, with_policies):
    """{test: its function}. `seconds` is the length of the longest. `with_policies`: the one that sends a token as well."""
    short, long = max(3, seconds // 2), max(5, seconds * 3 // 2)
    found = {
        "h1": lambda: wrk(64, seconds),
        "h1-1000": lambda: wrk(1000, short),
        "h2": lambda: h2load(seconds, False),
        "grpc": lambda: h2load(seconds, True),
        "rate-500": lambda: rate(500, long),
        "rate-1000": lambda: rate(1000, long),
        "tcp-up": lambda: iperf3(short, False),
        "tcp-down": lambda: iperf3(short, True),
        "connect": lambda: connect(lab.TCP_HTTP, short),
        "victim": lambda: victim(max(4, short)),
        "hold-1000": lambda: hold(1000),
        "hold-10000": lambda: hold(10000),
    }
    if with_policies:
        found["h1-token"] = lambda: wrk(64, seconds, policies.WITH_TOKEN, f"Authorization: Bearer {policies.token()}")
    if lab.program("fortio"):
        found["fortio-1000"] = lambda: fortio(1000, seconds)
    return found
