//! What the terminal shows: a few lines that are drawn again in place, or a line each second where there is no terminal.

use std::io::{IsTerminal, Write};

use super::stats::Now;

/// Where the status goes.
pub(super) struct Screen {
    json: bool,
    live: bool,
    /// Lines of the status that stand above the cursor.
    drawn: usize,
}

/// What the status tells besides the rates.
pub(super) struct Facts {
    pub(super) traces: u64,
    pub(super) spans: u64,
    pub(super) peers: usize,
    pub(super) trouble: Option<String>,
}

impl Screen {
    /// `json`: standard output belongs to the JSON.
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            live: !json && std::io::stdout().is_terminal(),
            drawn: 0,
        }
    }

    /// What runs, and where to look.
    pub(super) fn banner(&self, page: &str, shop: &str, otlp: Option<&str>) {
        let also = otlp
            .map(|url| format!("  OTLP    {url}   every span goes there too\n"))
            .unwrap_or_default();
        let (bold, dim, off) = self.styles();
        self.print(&format!(
            "
  {bold}Outrigger{off}: a shop of four services, and a sidecar beside each. The services
  speak plain HTTP and gRPC; the sidecars put mutual TLS, retries and traces
  between them.

      load ──▶ web ──▶ orders ─┬─▶ inventory   {dim}fails some of the time{off}
                               └─▶ payments    {dim}gRPC, sometimes slow{off}

  Traces  {bold}{page}{off}   {dim}the newest requests as waterfalls{off}
  Shop    {bold}{shop}{off}   {dim}buy something; then find it among the traces{off}
{also}
"
        ));
    }

    /// One line that stays.
    pub(super) fn say(&mut self, line: &str) {
        self.drawn = 0;
        self.print(&format!("  {line}\n"));
    }

    /// The status of the second that is over.
    pub(super) fn status(&mut self, now: &Now, facts: &Facts) {
        let text = if self.live {
            self.block(now, facts)
        } else {
            line(now, facts)
        };
        let up = if self.drawn > 0 {
            format!("\x1b[{}A\x1b[J", self.drawn)
        } else {
            String::new()
        };
        self.drawn = if self.live { text.lines().count() } else { 0 };
        self.print(&format!("{up}{text}"));
    }

    fn block(&self, now: &Now, facts: &Facts) -> String {
        let (bold, dim, off) = self.styles();
        let seconds = now.elapsed_s as u64;
        let after = percent(now.success_after);
        let (good, bad) = ("\x1b[32m", "\x1b[31m");
        let colour = if now.failed == 0 { good } else { bad };
        // A line that wraps could not be drawn over.
        let short = |trouble: &String| trouble.chars().take(76).collect::<String>();
        let trouble = facts
            .trouble
            .as_ref()
            .map(|trouble| format!("  {bad}{}{off}\n", short(trouble)));
        let trouble = trouble.unwrap_or_default();
        format!(
            "  {dim}{:02}:{:02}{off}     {bold}{:.1}{off} requests/s   p50 {bold}{:.1} ms{off}   p99 {bold}{:.1} ms{off}\n  \
             success   {bad}{}{off} with one attempt  →  {colour}{bold}{after}{off} with retries   {dim}{:.1} retries/s{off}\n  \
             mTLS      {bold}{}{off} identities seen, {bold}{}{off} connections, TLS 1.3\n  \
             traces    {bold}{}{off}, {} spans\n{trouble}  {dim}Ctrl-C ends everything.{off}\n",
            seconds / 60,
            seconds % 60,
            now.requests_per_s,
            now.p50_ms,
            now.p99_ms,
            percent(now.success_before),
            now.retries_per_s,
            facts.peers,
            now.mtls_connections,
            facts.traces,
            facts.spans,
        )
    }

    fn print(&self, text: &str) {
        let printed = if self.json {
            std::io::stderr().lock().write_all(text.as_bytes())
        } else {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        };
        drop(printed); // nobody looks, and the demo goes on
    }

    fn styles(&self) -> (&'static str, &'static str, &'static str) {
        if self.live {
            ("\x1b[1m", "\x1b[2m", "\x1b[0m")
        } else {
            ("", "", "")
        }
    }
}

fn line(now: &Now, facts: &Facts) -> String {
    let trouble = facts
        .trouble
        .as_ref()
        .map(|trouble| format!("; {trouble}"))
        .unwrap_or_default();
    format!(
        "  {:3.0} s  {:.1} requests/s  success {} with one attempt, {} with retries ({:.1}/s)  p50 {:.1} ms  p99 {:.1} ms  \
         {} mTLS connections, {} identities  {} traces{trouble}\n",
        now.elapsed_s,
        now.requests_per_s,
        percent(now.success_before),
        percent(now.success_after),
        now.retries_per_s,
        now.p50_ms,
        now.p99_ms,
        now.mtls_connections,
        facts.peers,
        facts.traces,
    )
}

/// "99.9 %"; 100 % only for all.
pub(super) fn percent(share: f64) -> String {
    let tenths = (share * 1e3).floor().min(1e3);
    if tenths % 10.0 == 0.0 {
        format!("{:.0} %", tenths / 10.0)
    } else {
        format!("{:.1} %", tenths / 10.0)
    }
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn a_hundred_percent_means_all() {
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent(0.85), "85 %");
        assert_eq!(percent(0.8512), "85.1 %");
        assert_eq!(percent(0.0), "0 %");
        assert_eq!(percent(0.9999), "99.9 %");
    }
}
