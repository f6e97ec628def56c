#!/usr/bin/env python3
"""report.py FILE [--plot SVG]: the tables of what `bench/run --json FILE` has written."""
import json, statistics, sys

from policies import SUFFIXES, without

OURS, OTHER = "outrigger", "outrigger-other"
LAYER_4 = "ztunnel"  # it does less: never the peer that ours is held against in HTTP


def both(test):
    """CPU of both sidecars for one request, in µs."""
    return lambda r: sum(r["tests"][test]["cpu_s"].values()) / r["tests"][test]["n"] * 1e6 if r["rss_idle_kib"] else None


def figure(test, *keys):
    def get(result):
        value = result["tests"][test]
        for key in keys:
            value = value[key]
        return value
    return get


def cpu_per_gb(test):
    return lambda r: sum(r["tests"][test]["cpu_s"].values()) / r["tests"][test]["gb"] if r["rss_idle_kib"] else None


def largest(get):
    """Of the two sidecars, in MiB for memory."""
    return lambda r: max(get(r).values()) / 1024


# (row, how it is got, digits, whether less is better, whether layer 4 peers count)
ROWS = [
    ("HTTP/1.1, 64 connections: requests/s", figure("h1", "per_second"), 0, False, False),
    ("… CPU µs a request", both("h1"), 1, True, False),
    ("HTTP/1.1 with a token: requests/s", figure("h1-token", "per_second"), 0, False, False),
    ("… CPU µs a request", both("h1-token"), 1, True, False),
    ("HTTP/1.1, 1,000 connections: requests/s", figure("h1-1000", "per_second"), 0, False, False),
    ("… CPU µs a request", both("h1-1000"), 1, True, False),
    ("HTTP/2, 8 × 8: requests/s", figure("h2", "per_second"), 0, False, False),
    ("… CPU µs a request", both("h2"), 1, True, False),
    ("gRPC, 8 × 8: requests/s", figure("grpc", "per_second"), 0, False, False),
    ("… CPU µs a request", both("grpc"), 1, True, False),
    ("500 requests/s: CPU µs a request", both("rate-500"), 1, True, False),
    ("… p50 µs", figure("rate-500", "latency_us", "p50"), 0, True, False),
    ("… p99 µs", figure("rate-500", "latency_us", "p99"), 0, True, False),
    ("… p99.9 µs", figure("rate-500", "latency_us", "p999"), 0, True, False),
    ("1,000 requests/s: CPU µs a request", both("rate-1000"), 1, True, False),
    ("… p50 µs", figure("rate-1000", "latency_us", "p50"), 0, True, False),
    ("… p99 µs", figure("rate-1000", "latency_us", "p99"), 0, True, False),
    ("… p99.9 µs", figure("rate-1000", "latency_us", "p999"), 0, True, False),
    ("1,000 requests/s by fortio: p50 µs", figure("fortio-1000", "latency_us", "p50"), 0, True, False),
    ("… p99 µs", figure("fortio-1000", "latency_us", "p99"), 0, True, False),
    ("TCP up: Gbit/s", figure("tcp-up", "gbit_per_second"), 2, False, True),
    ("… CPU s a GB", cpu_per_gb("tcp-up"), 2, True, True),
    ("TCP down: Gbit/s", figure("tcp-down", "gbit_per_second"), 2, False, True),
    ("… CPU s a GB", cpu_per_gb("tcp-down"), 2, True, True),
    ("new connections/s, opaque port", figure("connect", "per_second"), 0, False, False),
    ("… CPU µs a connection", both("connect"), 0, True, False),
    ("200 requests/s beside a neighbour that saturates: p99 µs", figure("victim", "latency_us", "p99"), 0, True, False),
    ("RSS MiB, idle", largest(lambda r: r["rss_idle_kib"]), 1, True, True),
    ("… 64 connections under load", largest(lambda r: r["tests"]["h1"]["rss_kib"]), 1, True, True),
    ("… 1,000 connections under load", largest(lambda r: r["tests"]["h1-1000"]["rss_kib"]), 1, True, True),
    ("… 1,000 idle connections", largest(lambda r: r["tests"]["hold-1000"]["rss_kib"]), 1, True, True),
    ("… 10,000 idle connections", largest(lambda r: r["tests"]["hold-10000"]["rss_kib"]), 1, True, True),
    ("ready after exec, ms", lambda r: max(r["ready_ms"].values()), 1, True, True),
]


def values(results, case, get):
    found = []
    for result in results:
        if result["case"] != case:
            continue
        try:
            value = get(result)
        except (KeyError, ValueError, ZeroDivisionError):
            continue
        if value is not None:
            found.append(value)
    return found


def tables(results):
    cases = list(dict.fromkeys(result["case"] for result in results))
    rounds = max(result["round"] for result in results)
    lines = [f"Medians of {rounds} rounds (least–most). Ratio: {OURS} to the best peer of that row"
             f" ({LAYER_4} counts for TCP and memory only).", "",
             "| | " + " | ".join(cases) + " | ratio |", "|---" * (len(cases) + 2) + "|"]
    for name, get, digits, less, layer_4 in ROWS:
        cells, medians = [], {}
        for case in cases:
            found = values(results, case, get)
            if not found:
                cells.append("–")
                continue
            medians[case] = statistics.median(found)
            spread = f" ({min(found):,.{digits}f}–{max(found):,.{digits}f})" if len(found) > 1 else ""
            cells.append(f"{medians[case]:,.{digits}f}{spread}")
        if not medians:
            continue
        peers = [value for case, value in medians.items() if case not in ("direct", OURS, OTHER) and not without(case) and (layer_4 or case != LAYER_4)]
        ratio = f"{medians[OURS] / (min if less else max)(peers):.2f}" if OURS in medians and peers else "–"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {ratio} |")
    lines += costs(results, cases)
    lines += ["", "| | TLS, plaintext on the wire | agreed | resumed | a client without a sidecar gets | errors |", "|---" * 6 + "|"]
    for case in cases:
        own = [result for result in results if result["case"] == case]
        errors = {}
        for result in own:
            for name, test in result["tests"].items():
                count = test.get("errors", 0) if "failed" not in test else test["failed"]
                if count:
                    errors[name] = count
            if "failed" in result:
                errors["all"] = result["failed"]
        wire = own[0].get("wire")
        if wire:
            agreed = ", ".join(wire["ciphers"] + wire["groups"]) or "–"
            lines.append(f"| {case} | {wire['tls']}, {wire['plaintext']} | {agreed} | {wire['resumed']}/{wire['handshakes']} | "
                         f"{wire['without_sidecar'] or 'nothing'} | {errors or 'none'} |")
        else:
            lines.append(f"| {case} | – | – | – | – | {errors or 'none'} |")
    other = [test["other_cores"] for result in results for test in result["tests"].values() if "other_cores" in test]
    if other:
        lines += ["", f"Beside it, the machine used {statistics.median(other):.2f} cores (median), {max(other):.2f} at most."]
    return "\n".join(lines)


def costs(results, cases):
    """What policies cost a contender: its CPU for a request with them, by that without them in the same round."""
    pairs = [(case, case + suffix) for suffix in SUFFIXES for case in cases if case + suffix in cases]
    if not pairs:
        return []
    lines = ["", "CPU for a request with policies, by that without (median of the rounds' ratios, least–most):", "",
             "| | " + " | ".join(case for _, case in pairs) + " |", "|---" * (len(pairs) + 1) + "|"]
    for test in dict.fromkeys(test for result in results for test in result["tests"]):
        cells = []
        for pair in pairs:
            without, beside = ({result["round"]: result for result in results if result["case"] == case} for case in pair)
            ratios = []
            for number in without.keys() & beside.keys():
                try:
                    ratios.append(both(test)(beside[number]) / both(test)(without[number]))
                except (KeyError, ZeroDivisionError):
                    continue  # it failed, or its figures are of another kind
            cells.append(f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})" if ratios else "–")
        if any(cell != "–" for cell in cells):
            lines.append(f"| {test} | " + " | ".join(cells) + " |")
    return lines


def plot(results, file):
    """Requests a second and CPU for a request, as bars."""
    cases = [case for case in dict.fromkeys(result["case"] for result in results) if case != "direct"]
    charts = [ROWS[0], ROWS[1], ROWS[14], ROWS[15]]
    bar, gap, width, label = 18, 5, 360, 90
    height = len(cases) * (bar + gap) + 40
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * (width + label + 30)}" height="{2 * height}" '
             'font-family="system-ui, sans-serif" font-size="12" fill="#57606a">']
    titles = ["HTTP/1.1, 64 connections: requests/s (more is better)", "HTTP/1.1, 64 connections: CPU µs a request (less is better)",
              "1,000 requests/s: CPU µs a request (less is better)", "1,000 requests/s: p50 µs (less is better)"]
    for index, ((_, get, digits, _, _), title) in enumerate(zip(charts, titles)):
        left, top = (index % 2) * (width + label + 30), (index // 2) * height
        medians = {case: statistics.median(values(results, case, get) or [0]) for case in cases}
        most = max(medians.values()) or 1
        parts.append(f'<text x="{left + 5}" y="{top + 18}" font-weight="600">{title}</text>')
        for row, (case, value) in enumerate(medians.items()):
            y = top + 30 + row * (bar + gap)
            color = "#1f6feb" if case == OURS else "#8c959f"
            length = value / most * (width - 60)
            parts.append(f'<text x="{left + label}" y="{y + 13}" text-anchor="end">{case}</text>'
                         f'<rect x="{left + label + 6}" y="{y}" width="{length:.0f}" height="{bar}" rx="2" fill="{color}"/>'
                         f'<text x="{left + label + length + 11:.0f}" y="{y + 13}">{value:,.{digits}f}</text>')
    with open(file, "w") as f:
        f.write("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    with open(sys.argv[1]) as f:
        loaded = json.load(f)
    print(tables(loaded))
    if "--plot" in sys.argv:
        plot(loaded, sys.argv[sys.argv.index("--plot") + 1])
