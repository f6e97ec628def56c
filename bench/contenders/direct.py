"""No sidecar: the limit."""

CASES = {"direct": "no sidecar"}


def program():
    return None
