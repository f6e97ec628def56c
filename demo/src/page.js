"use strict";
const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const colour = service => getComputedStyle(document.documentElement).getPropertyValue(`--${service}`) ? `var(--${service})` : "var(--accent)";
const number = (value, digits = 1) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const count = value => value.toLocaleString("en");
const ms = value => value < 10 ? number(value, 2) : value < 100 ? number(value, 1) : number(value, 0);
const percent = share => share >= 1 ? "100 %" : `${number(Math.floor(share * 1000) / 10)} %`;
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
const retries = n => `${n} ${n === 1 ? "retry" : "retries"}`;

/** Makes an element; text is always text, never markup. */
function make(tag, { cls, text, style, ...rest } = {}, ...children) {
  const element = document.createElement(tag);
  if (cls) element.className = cls;
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(style ?? {})) element.style.setProperty(name, value);
  Object.assign(element, rest);
  element.append(...children);
  return element;
}
function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

let state = null;      // the last answer of /api/state
let trace = null;      // the trace that is shown
let wanted = null;     // the ID of the one that was asked for
let selected = null;   // the ID of the span whose attributes are shown
let filter = "all";

// ---- the numbers ----

function showNumbers() {
  const now = state.now;
  $("rps").textContent = number(now.requests_per_s);
  $("total").textContent = `${count(now.requests)} in all, ${now.failed ? count(now.failed) : "none"} failed`;
  $("total").className = now.failed ? "bad" : "";
  $("before").textContent = percent(now.success_before);
  $("after").textContent = percent(now.success_after);
  $("after").className = now.success_after < 1 ? "bad" : "good";
  $("retries").textContent = number(now.retries_per_s);
  $("retries-total").textContent = `${count(now.retries)} in all`;
  $("p50").textContent = ms(now.p50_ms);
  $("p99").textContent = ms(now.p99_ms);
  $("identities").textContent = state.identities.length;
  $("identities").title = state.identities.join("\n");
  $("connections").textContent = `${plural(now.mtls_connections, "connection")}, TLS 1.3`;
  $("shop").href = state.shop;
}

// ---- who calls whom ----

const NODES = { load: [58, 100], web: [250, 100], orders: [442, 100], inventory: [796, 42], payments: [796, 158] };
const NOTES = { load: "customers", web: "HTTP", orders: "HTTP", inventory: "sometimes fails", payments: "gRPC, sometimes slow" };
const wires = new Map();

function drawTopology() {
  const svg = $("topology");
  for (const { from, to } of state.now.edges) {
    const [x1, y1] = NODES[from], [x2, y2] = NODES[to];
    const straight = y1 === y2;
    const [a, b] = [x1 + 61, x2 - (straight ? 61 : 81)];
    const bend = a + 36;
    const path = straight ? `M${a} ${y1}H${b}` : `M${a} ${y1}C${bend} ${y1} ${bend - 22} ${y2} ${bend + 22} ${y2}H${b}`;
    const [x, y] = [((straight ? a : bend + 22) + b) / 2, y2];
    const rate = draw("text", { x, y: y - 13, "text-anchor": "middle" });
    const again = draw("text", { x, y: y + 22, "text-anchor": "middle", class: "warn" });
    const flow = draw("path", { d: path, class: "flow", stroke: colour(from) });
    const lock = draw("g", { class: "lock", transform: `translate(${x - 5} ${y - 7})` },
      draw("circle", { cx: 5, cy: 7, r: 10, fill: "var(--panel)" }),
      draw("path", { d: "M1 6h8v7h-8zM2.6 6v-2a2.4 2.4 0 0 1 4.8 0v2h-1.4v-2a1 1 0 0 0-2 0v2z" }));
    svg.append(draw("path", { d: path, class: "wire" }), flow, lock, rate, again);
    wires.set(`${from} ${to}`, { rate, again, flow, wide: !straight });
  }
  for (const [name, [x, y]] of Object.entries(NODES)) {
    const c = colour(name);
    const wide = name === "inventory" || name === "payments" ? 74 : 54;
    svg.append(
      draw("rect", { class: "app", x: x - wide, y: y - 26, width: 2 * wide, height: 52, rx: 10, stroke: c }),
      Object.assign(draw("text", { x, y: y - 3, "text-anchor": "middle", "font-weight": 650 }), { textContent: name }),
      Object.assign(draw("text", { x, y: y + 14, "text-anchor": "middle", class: "dim" }), { textContent: NOTES[name] }));
    if (name !== "load") svg.append(draw("circle", { class: "sidecar", cx: x - wide, cy: y, r: 7, fill: c }));
    if (name === "load" || name === "web" || name === "orders") svg.append(draw("circle", { class: "sidecar", cx: x + wide, cy: y, r: 7, fill: c }));
  }
}

function showTopology() {
  if (!wires.size) drawTopology();
  for (const edge of state.now.edges) {
    const wire = wires.get(`${edge.from} ${edge.to}`);
    wire.rate.textContent = `${number(edge.attempts_per_s)}/s`;
    const failing = edge.success < 1 ? `${number(100 - edge.success * 100)} % fail` : "";
    const retried = wire.wide && edge.retries_per_s >= .05 ? `, ${number(edge.retries_per_s)} retries/s` : "";
    wire.again.textContent = failing + (failing && retried);
    wire.flow.style.display = edge.attempts_per_s > 0 ? "" : "none";
  }
}

// ---- success over time ----

function showChart() {
  const points = state.history, svg = $("chart");
  svg.replaceChildren();
  if (points.length < 2) return;
  const lowest = Math.min(...points.map(p => Math.min(p.success_before, p.success_after)), .9);
  const floor = Math.max(0, Math.floor((lowest - .04) * 20) / 20);
  const y = share => 8 + (1 - share) / (1 - floor) * 192;
  const x = i => i / (points.length - 1) * 420;
  const line = field => points.map((p, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(p[field]).toFixed(1)}`).join("");
  $("axis").replaceChildren();
  for (let step = 0; step <= 2; step++) {
    const share = 1 - step * (1 - floor) / 2;
    svg.append(draw("line", { class: "grid", x1: 0, x2: 420, y1: y(share), y2: y(share) }));
    const box = svg.getBoundingClientRect(), panel = svg.parentElement.getBoundingClientRect();
    const label = make("span", { text: `${number(share * 100, 0)} %` });
    label.style.top = `${box.top - panel.top + y(share) / 210 * box.height - (step ? 1 : -14)}px`;
    $("axis").append(label);
  }
  svg.append(draw("path", { class: "area", d: `${line("success_after")}${[...points].map((p, i) => [p, i]).reverse()
    .map(([p, i]) => `L${x(i).toFixed(1)} ${y(p.success_before).toFixed(1)}`).join("")}Z` }));
  svg.append(draw("path", { d: line("success_before"), stroke: "var(--bad)" }), draw("path", { d: line("success_after"), stroke: "var(--good)" }));
}

// ---- the list ----

function chip(text, c) { return make("span", { cls: "chip", text, style: { "--c": c } }); }

function showList() {
  for (const button of $("filter").children) button.classList.toggle("on", button.dataset.filter === filter);
  const slow = Math.max(20, 1.5 * state.now.p50_ms);
  const chosen = state.traces.filter(t => filter === "all" || (filter === "retried" ? t.retries > 0 : t.duration_ms > slow));
  const longest = Math.max(1, ...state.traces.map(t => t.duration_ms));
  $("traces").replaceChildren(...chosen.map(t => {
    const width = `${Math.max(1.5, t.duration_ms / longest * 100)}%`;
    const tint = t.failed ? "var(--bad)" : t.retries ? "var(--warn)" : "var(--accent)";
    const marks = make("span", { cls: "right" });
    if (t.failed) marks.append(chip("failed", "var(--bad)"), " ");
    if (t.retries) marks.append(chip(retries(t.retries), "var(--warn)"));
    return make("li", {}, make("button", { cls: t.id === wanted ? "on" : "", onclick: () => select(t.id) },
      make("span", { text: `${ms(t.duration_ms)} ms` }), marks,
      make("span", { cls: "sub", text: t.name ?? "arriving …" }),
      make("span", { cls: "sub", text: `${plural(t.spans, "span")} · ${new Date(t.start_ms).toLocaleTimeString("en-GB")}` }),
      make("span", { cls: "meter" }, make("i", { style: { width, background: tint } }))));
  }));
}

// ---- the waterfall ----

async function select(id) {
  wanted = id;
  location.replace(`#${id}`);
  showList();
  const answer = await fetch(`/api/traces/${id}`).catch(() => null);
  if (!answer?.ok || wanted !== id) return;
  trace = await answer.json();
  selected = null;
  showTrace();
}

function showTrace() {
  const marks = make("span", { cls: "right" });
  if (trace.retries) marks.append(chip(retries(trace.retries), "var(--warn)"));
  if (trace.whole) marks.append(chip("complete", "var(--good)"));
  for (const service of trace.services) marks.append(chip(service, colour(service)));
  $("title").replaceChildren(make("strong", { text: `${ms(trace.duration_ms)} ms` }),
    make("span", { text: plural(trace.spans.length, "span") }), make("code", { text: trace.id }), marks);
  const total = Math.max(trace.duration_ms, 1e-6);
  const lane = make("div", { cls: "lane" }, ...[0, .25, .5, .75, 1].map(at =>
    make("span", { text: `${ms(total * at)} ms`, style: { left: `${at * 100}%` } })));
  $("waterfall").replaceChildren(
    make("div", { cls: "ticks" }, make("div", { cls: "label", text: "▢ client   ■ server" }), lane),
    ...trace.spans.map(span => row(span, total)));
  showDetail();
}

function row(span, total) {
  const left = Math.min(span.offset_ms / total * 100, 99.5), width = Math.min(span.duration_ms / total * 100, 100 - left);
  const time = make("span", { cls: "ms", text: `${ms(span.duration_ms)} ms`, style: { left: `${left + width}%` } });
  if (span.error) time.append(make("b", { cls: "bad", text: `✗ ${span.attributes["error.type"] ?? "error"}` }));
  if (span.retry) time.append(make("b", { cls: span.error ? "bad" : "good", text: `${span.error ? "" : "✓ "}retry ${span.retry}` }));
  const lane = make("div", { cls: "lane guides" }, make("i", { cls: "bar-of", style: { left: `${left}%`, width: `${width}%` } }), time);
  const classes = ["row", span.kind, span.error && "error", span.retry && "retry", !span.depth && "root", span.id === selected && "on"];
  const element = make("div", { cls: classes.filter(Boolean).join(" "), style: { "--c": colour(span.service), "--depth": span.depth } },
    make("div", { cls: "label" }, make("i", { cls: "dot" }), make("b", { text: span.service }), make("span", { text: span.name })), lane);
  element.onclick = () => { selected = selected === span.id ? null : span.id; showTrace(); };
  element.onmousemove = event => showTip(span, event);
  element.onmouseleave = () => { $("tip").hidden = true; };
  return element;
}

function facts(span, names) {
  return names.filter(name => span.attributes[name] !== undefined && span.attributes[name] !== null)
    .map(name => [name, String(span.attributes[name])]);
}

const TOLD = ["http.response.status_code", "rpc.grpc.status_code", "error.type", "http.request.resend_count", "network.peer.address",
  "network.peer.port", "outrigger.peer.identity", "outrigger.mtls"];

function showTip(span, event) {
  const tip = $("tip");
  const list = make("dl", {}, ...facts(span, TOLD).flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })]));
  tip.replaceChildren(make("strong", { text: `${span.service} · ${span.kind} · ${span.name}` }), list);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.min(event.clientX + 16, innerWidth - box.width - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 16, innerHeight - box.height - 8)}px`;
}

function showDetail() {
  const span = trace.spans.find(s => s.id === selected), detail = $("detail");
  detail.classList.toggle("on", Boolean(span));
  if (!span) return detail.replaceChildren();
  const close = make("button", { text: "✕", title: "close", onclick: () => { selected = null; showTrace(); } });
  const all = [["span", span.id], ["parent", span.parent ?? "none: the trace begins here"], ...facts(span, Object.keys(span.attributes))];
  detail.replaceChildren(
    make("h3", {}, make("span", { text: `${span.name}` }), chip(`${span.service} · ${span.kind}`, colour(span.service)), close),
    make("dl", {}, ...all.map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value })))));
}

// ---- each second ----

async function refresh() {
  try {
    const answer = await fetch("/api/state");
    state = await answer.json();
    $("live").classList.remove("off");
    $("live").lastElementChild.textContent = `${count(state.trace_count)} traces, ${count(state.span_count)} spans`;
    showNumbers();
    showTopology();
    showChart();
    showList();
    // What is not whole yet may still be growing; and at the start, something worth looking at.
    if (!wanted && (location.hash || state.longest)) await select(location.hash.slice(1) || state.longest);
    else if (wanted && (!trace || !trace.whole)) await select(wanted);
  } catch {
    $("live").classList.add("off");
    $("live").lastElementChild.textContent = "the demo has ended";
  }
  setTimeout(refresh, 1000);
}

$("filter").onclick = event => {
  if (!event.target.dataset.filter) return;
  filter = event.target.dataset.filter;
  if (state) showList();
};
addEventListener("keydown", event => {
  const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
  if (!step || !state) return;
  const buttons = [...$("traces").querySelectorAll("button")];
  const next = buttons[Math.max(0, buttons.findIndex(button => button.classList.contains("on")) + step)];
  if (next) { event.preventDefault(); next.click(); next.scrollIntoView({ block: "nearest" }); }
});
refresh();
