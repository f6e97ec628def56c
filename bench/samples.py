"""Where the sidecars' CPU time goes: perf's samples of both during a test, by layer and as a flame graph."""
import collections, html, os, re, subprocess
from contextlib import contextmanager

import lab

FOLDER = f"{lab.WORK}/profile"
HERTZ = 499
# The innermost function that belongs to one of them says whose a sample is; the standard library's belong to who called them.
LAYERS = [
    ("allocation", r"malloc|calloc|realloc|cfree|_int_|unlink_chunk|tcmalloc|operator (?:new|delete)"),
    ("copies of memory", r"__mem|mem(?:cpy|move|set)|__libc_mem"),
    ("TLS", r"rustls|tokio_rustls|webpki|aws_lc|aes(?:ni)?_|gcm_|sha\d|EVP_|CRYPTO_|OPENSSL_|ml_?kem|x25519|bssl|SSL_"),
    ("HTTP libraries", r"(?:hyper|hyper_util|h2|httparse|http|http_body|bytes)::|nghttp2"),
    ("runtime", r"(?:tokio|mio)::|event_"),
    ("Outrigger", r"outrigger"),
    ("Envoy", r"Envoy|quic|absl"),
]
OWNER = re.compile("|".join(rf"(?P<layer{i}>(?<![A-Za-z0-9])(?:{pattern}))" for i, (_, pattern) in enumerate(LAYERS)))
# Some are inlined into what they call.
CALL = re.compile(r"__(?:x64|arm64|se)_sys_(\w+)|__sys_(\w+)|do_(writev|readv|epoll_wait)")


@contextmanager
def recording(name, processes):
    """Samples `processes`, and writes NAME.txt and NAME.svg."""
    os.makedirs(FOLDER, exist_ok=True)
    data = f"{FOLDER}/{name}.data"
    pids = ",".join(str(process.pid) for process in processes)
    perf = subprocess.Popen(["perf", "record", "-q", "-F", str(HERTZ), "--call-graph", "dwarf,16384", "-o", data, "-p", pids],
                            stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        perf.terminate()
        perf.wait()
        stacks = folded(data)
        os.remove(data)
        with open(f"{FOLDER}/{name}.txt", "w") as f:
            f.write(shares(stacks))
        with open(f"{FOLDER}/{name}.svg", "w") as f:
            f.write(flame_graph(stacks, name))


def folded(data):
    """{stack, from the outermost function in: samples}. A function is (name, whether it is the kernel's)."""
    said = subprocess.run(["perf", "script", "--no-inline", "-F", "ip,sym", "-i", data], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL).stdout
    stacks = collections.Counter()
    for block in said.split("\n\n"):
        frames = [line.split(None, 1) for line in block.splitlines() if line.strip()]
        stack = [(plain(frame[1] if len(frame) > 1 else "?"), frame[0].startswith("ffff")) for frame in reversed(frames)]
        if stack:
            stacks[tuple(stack)] += 1
    return stacks


def plain(name):
    """Without type parameters; of `<Type as Trait>::function`, the type's."""
    name = re.sub(r"::h[0-9a-f]{16}$|\+0x[0-9a-f]+$", "", name.strip())
    if name.startswith("<"):
        depth = 0
        for at, letter in enumerate(name):
            depth += (letter == "<") - (letter == ">" and name[at - 1] != "-")
            if depth == 0:
                name = name[1:at].split(" as ")[0] + name[at + 1:]
                break
    while (less := re.sub(r"<[^<>]*>", "", name.replace("->", ""))) != name:
        name = less
    return name.replace("::{{closure}}", "").lstrip("&") or "?"


def layer(stack):
    name, in_kernel = stack[-1]
    if in_kernel:
        calls = [found[found.lastindex] for name, _ in stack if (found := CALL.match(name))]
        return f"kernel: {calls[-1]}" if calls else "kernel: faults and interrupts"
    for name, _ in reversed(stack):
        if found := OWNER.search(name):
            return LAYERS[int(found.lastgroup.removeprefix("layer"))][0]
    return "other"


def shares(stacks):
    total = sum(stacks.values()) or 1
    layers, functions = collections.Counter(), collections.Counter()
    for stack, count in stacks.items():
        layers[layer(stack)] += count
        functions[stack[-1][0]] += count
    lines = [f"{total} samples of both sidecars, {HERTZ} a second", ""]
    lines += [f"{count / total:6.1%}  {name}" for name, count in layers.most_common() if count / total >= 0.002]
    lines += ["", "The functions themselves:", ""]
    return "\n".join(lines + [f"{count / total:6.1%}  {name}" for name, count in functions.most_common(40)]) + "\n"


def flame_graph(stacks, title, width=1400, row=15):
    """Each function as wide as its samples and those of what it calls; on top, what ran."""
    total = sum(stacks.values()) or 1
    root = [0, {}]
    for stack, count in stacks.items():
        node = root
        node[0] += count
        for frame in stack:
            node = node[1].setdefault(frame, [0, {}])
            node[0] += count
    boxes, deepest = [], 0

    def draw(node, left, depth):
        nonlocal deepest
        for (name, in_kernel), child in sorted(node[1].items()):
            size = child[0] / total * width
            if size >= 1:
                deepest = max(deepest, depth)
                boxes.append((left, depth, size, name, in_kernel, child[0]))
                draw(child, left, depth + 1)
            left += size
    draw(root, 0, 0)
    height = (deepest + 2) * row + 10
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="monospace" font-size="10">',
             f'<rect width="100%" height="100%" fill="#fff"/><text x="5" y="12" font-size="12">{html.escape(title)}: '
             f'{total} samples; brown is the kernel</text>']
    for left, depth, size, name, in_kernel, count in boxes:
        y = height - (depth + 1) * row
        letters = int(size / 6.2)
        text = name if len(name) <= letters else "…" + name[len(name) - letters + 1:]
        fill = "#d8b384" if in_kernel else "#9ecae1"
        parts.append(f'<g><title>{html.escape(name)}: {count / total:.1%}</title><rect x="{left:.1f}" y="{y}" '
                     f'width="{max(size - 0.3, 0.5):.1f}" height="{row - 1}" fill="{fill}"/>'
                     + (f'<text x="{left + 2:.1f}" y="{y + 11}">{html.escape(text)}</text>' if letters > 3 else "") + "</g>")
    return "\n".join(parts) + "\n</svg>\n"
