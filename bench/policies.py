"""Policies, the same for every contender, which writes them in its own words. Nothing of the benchmark is refused by them.

Who may call: twenty rules and one that asks for a token. The rules that let the benchmark's requests in stand last.
Traffic: at the server a limit for each identity, at the client ejection, a breaker, and ten routes, of which the last one is taken."""
import lab

ACCESS, TRAFFIC = "-access", "-traffic"  # of a contender's case that has them
SUFFIXES = (ACCESS, TRAFFIC)
ISSUER, AUDIENCE, GROUP = "https://login.bench", "bench", "dev"
FILES = f"{lab.WORK}/token"
WITH_TOKEN = "/orders/7"  # nobody may GET it without one

# accounts, methods, path: None: all. groups: of a token, which has to come beside the account.
DENY = [
    {"name": "internal", "accounts": None, "methods": None, "path": ("prefix", "/internal")},
    {"name": "no-deletes", "accounts": ["batch", "reports"], "methods": ["DELETE"], "path": None},
]
ALLOW = [
    *({"name": f"team-{n}", "accounts": [f"team-{n}", f"team-{n}-jobs"], "methods": ["GET", "POST"],
       "path": ("prefix", f"/team-{n}/v1")} for n in range(15)),
    {"name": "metrics", "accounts": ["prometheus"], "methods": ["GET"], "path": ("exact", "/metrics")},
    {"name": "grpc", "accounts": ["client"], "methods": ["POST"], "path": ("prefix", "/bench.Echo")},
    {"name": "root", "accounts": ["client"], "methods": ["GET"], "path": ("exact", "/")},
    {"name": "people", "accounts": ["client"], "methods": ["GET"], "path": ("prefix", "/orders"), "groups": [GROUP]},
]

PER_SECOND = 1_000_000  # for each identity
MOST = 100_000  # connections, requests, and requests that wait
FAILURES = 5  # in a row, which leave an endpoint out for so many seconds
LEFT_OUT = 10
ROUTES = [*(f"/team-{n}/v1" for n in range(9)), "/"]  # by prefix, all to the one backend


def without(case):
    """The same contender's case that has no policies. `None`: it is that."""
    return next((case.removesuffix(suffix) for suffix in SUFFIXES if case.endswith(suffix)), None)


def prepare():
    """Makes the issuer's key and the token."""
    lab.sh([lab.program("outrigger-bench"), "token", "--out", FILES, "--issuer", ISSUER, "--audience", AUDIENCE, "--groups", GROUP])


def jwks():
    with open(f"{FILES}/jwks.json") as f:
        return f.read()


def token():
    with open(f"{FILES}/token") as f:
        return f.read()
