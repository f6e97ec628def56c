"""Who may call, the same for every contender: twenty rules and one that asks for a token. Each contender writes them in its own
words. The rules that let the benchmark's requests in stand last."""
import lab

SUFFIX = "-policies"  # of a contender's case that has them
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


def prepare():
    """Makes the issuer's key and the token."""
    lab.sh([lab.program("outrigger-bench"), "token", "--out", FILES, "--issuer", ISSUER, "--audience", AUDIENCE, "--groups", GROUP])


def jwks():
    with open(f"{FILES}/jwks.json") as f:
        return f.read()


def token():
    with open(f"{FILES}/token") as f:
        return f.read()
