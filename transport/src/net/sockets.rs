//! Whether the app still lives, as the kernel tells: the containers of a pod share its network namespace, and
//! `/proc/net/tcp` shows every socket in it, with its owner.

use std::io::{BufRead, BufReader};

use nix::unistd::geteuid;

/// Of IPv4 and of IPv6; the second is absent where the kernel has no IPv6.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// Whether another user than this process's own has a TCP socket open in this network namespace, listening or connected.
/// False as well where the kernel does not say.
pub fn others_have_one() -> bool {
    let own = geteuid().as_raw();
    TABLES.iter().any(|table| {
        let Ok(file) = std::fs::File::open(table) else {
            return false;
        };
        let mut lines = BufReader::new(file).lines().skip(1).map_while(Result::ok);
        lines.any(|line| is_open_for_another(&line, own))
    })
}

/// A line of the table (Linux, Documentation/networking/proc_net_tcp.rst). A socket that no process holds any more
/// (TIME_WAIT, or FIN_WAIT after an exit) has the inode 0.
fn is_open_for_another(line: &str, own: u32) -> bool {
    let mut fields = line.split_ascii_whitespace().skip(7);
    let owner = fields.next().and_then(|uid| uid.parse::<u32>().ok());
    let inode = fields.nth(1).and_then(|inode| inode.parse::<u64>().ok());
    owner.is_some_and(|uid| uid != own) && inode.is_some_and(|inode| inode != 0)
}

#[cfg(test)]
mod tests {
    use super::is_open_for_another;

    #[test]
    fn an_open_socket_of_another_user() {
        let line = |state: &str, uid: u32, inode: u32| {
            format!(
                "   0: 0100007F:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5}        0 {inode} 1 \
                 0000000000000000 100 0 0 10 0"
            )
        };
        assert!(is_open_for_another(&line("0A", 1000, 31337), 2140), "listening");
        assert!(is_open_for_another(&line("01", 0, 31338), 2140), "connected, of root");
        assert!(!is_open_for_another(&line("01", 2140, 31339), 2140), "our own");
        assert!(!is_open_for_another(&line("06", 0, 0), 2140), "TIME_WAIT");
        assert!(!is_open_for_another("not a socket", 2140));
    }
}
