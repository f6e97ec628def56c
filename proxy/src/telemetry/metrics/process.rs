//! What the kernel says about this process.

use std::fs;

use nix::sys::resource::{UsageWho, getrusage};

pub(super) struct Process {
    pub(super) resident_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) cpu_seconds: Option<f64>,
}

pub(super) fn read() -> Process {
    Process {
        resident_bytes: fs::read_to_string("/proc/self/status")
            .ok()
            .as_deref()
            .and_then(resident),
        open_fds: fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count() as u64),
        cpu_seconds: getrusage(UsageWho::RUSAGE_SELF).ok().map(|usage| {
            let seconds = |time: nix::sys::time::TimeVal| {
                #[expect(clippy::cast_precision_loss, reason = "seconds of CPU time are far below 2^53")]
                let (whole, micros) = (time.tv_sec() as f64, time.tv_usec() as f64);
                whole + micros / 1e6
            };
            seconds(usage.user_time()) + seconds(usage.system_time())
        }),
    }
}

/// `VmRSS` of /proc/self/status, in bytes; the file says kB and means KiB.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
