//! Pods without a cluster: network namespaces on a bridge of their own, with IPv4 and IPv6.
//!
//! Nothing of it touches the machine's own network: the bridge is in a namespace too. Names begin with `otr-test-` and the
//! process's ID; what a killed run left behind is removed by the next one.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

pub mod mesh;

const PREFIX: &str = "otr-test-";
const NAMESPACES: &str = "/run/netns";

/// A bridge to which pods are plugged. Dropping it removes everything.
pub struct Lab {
    /// The namespace of the bridge: what is outside the pods.
    outside: Namespace,
    pods: AtomicU8,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// # Panics
    /// When the tests do not run as root, or the machine has no network namespaces.
    pub fn new() -> Self {
        assert!(
            Uid::effective().is_root(),
            "these tests make network namespaces, and need root: run them with sudo, or leave them to tests/run"
        );
        static LEFTOVERS: OnceLock<()> = OnceLock::new();
        LEFTOVERS.get_or_init(remove_leftovers);
        static LABS: AtomicUsize = AtomicUsize::new(0);
        let lab = LABS.fetch_add(1, Ordering::Relaxed);
        let outside = Namespace::new(format!("{PREFIX}{}-{lab}", std::process::id()));
        outside.ip("link add br0 type bridge");
        outside.ip("addr add 10.77.0.1/24 dev br0");
        outside.ip("-6 addr add fd77::1/64 dev br0 nodad");
        outside.ip("link set br0 up");
        Self {
            outside,
            pods: AtomicU8::new(2),
        }
    }

    /// A pod with an address of each family.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn pod(&self, name: &str) -> Pod {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let namespace = Namespace::new(format!("{}-{name}", self.outside.name));
        let bridge = &self.outside.name;
        namespace.ip(&format!("link add eth0 type veth peer name v{number} netns {bridge}"));
        self.outside.ip(&format!("link set v{number} master br0 up"));
        let v4 = Ipv4Addr::new(10, 77, 0, number);
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number));
        namespace.ip(&format!("addr add {v4}/24 dev eth0"));
        namespace.ip(&format!("-6 addr add {v6}/64 dev eth0 nodad"));
        namespace.ip("link set eth0 up");
        namespace.ip("route add default via 10.77.0.1");
        namespace.ip("-6 route add default via fd77::1");
        Pod {
            namespace,
            v4: v4.into(),
            v6: v6.into(),
        }
    }

    /// A place on the bridge that is no pod.
    pub fn outside(&self) -> &Namespace {
        &self.outside
    }
}

/// A network namespace with the addresses of a pod.
pub struct Pod {
    namespace: Namespace,
    pub v4: IpAddr,
    pub v6: IpAddr,
}

impl Pod {
    /// The pod's addresses with a port.
    pub fn addresses(&self, port: u16) -> [SocketAddr; 2] {
        [SocketAddr::new(self.v4, port), SocketAddr::new(self.v6, port)]
    }
}

impl std::ops::Deref for Pod {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// A network namespace; its loopback is up. Dropping it removes it.
pub struct Namespace {
    name: String,
}

impl Namespace {
    fn new(name: String) -> Self {
        ip(&["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs a program in here to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(program);
        let output = command.args(arguments).stdin(Stdio::null()).output();
        output.unwrap_or_else(|error| panic!("{program} does not start: {error}"))
    }

    /// Starts a program in here that ends with the guard.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&self, command: &mut Command) -> Running {
        let child = command.stdin(Stdio::null()).spawn();
        Running(child.unwrap_or_else(|error| panic!("{command:?} does not start: {error}")))
    }

    /// A command in here.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs code in here, on a thread of its own. Threads that it starts are in here too.
    ///
    /// # Panics
    /// When the code does, or the namespace is gone.
    pub fn enter<T: Send>(&self, code: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.join();
                code()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A tokio runtime whose sockets are in here. Blocking work that it starts is too.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn runtime(&self) -> tokio::runtime::Runtime {
        let path = self.path();
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder
            .worker_threads(1)
            .enable_all()
            .on_thread_start(move || enter(File::open(&path)));
        builder.build().unwrap_or_else(|error| panic!("no runtime: {error}"))
    }

    fn join(&self) {
        enter(File::open(self.path()));
    }

    fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.name)
    }

    /// Changes its links, addresses or routes.
    ///
    /// # Panics
    /// When it cannot be done.
    pub fn ip(&self, arguments: &str) {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split(' '));
        ip(&all);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A failure shows as a leftover, which the next run removes.
        _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// A process that is asked to end when the guard is dropped, and made to where it does not.
pub struct Running(Child);

impl Running {
    /// SIGTERM, and its exit status.
    ///
    /// # Panics
    /// When it does not end within a minute.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        self.signal(Signal::SIGTERM);
        self.0
            .wait()
            .unwrap_or_else(|error| panic!("a process cannot be waited for: {error}"))
    }

    /// Its exit status, once it ends by itself.
    ///
    /// # Panics
    /// When it does not within the limit.
    pub fn wait(&mut self, limit: Duration) -> std::process::ExitStatus {
        let began = Instant::now();
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return status,
                Ok(None) => assert!(began.elapsed() < limit, "a process does not end within {limit:?}"),
                Err(error) => panic!("a process cannot be waited for: {error}"),
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process. `ip netns exec` and `setpriv` become the program that they start.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Sends a signal. `ip netns exec` and `setpriv` become the program that they start, so it gets there.
    pub fn signal(&self, signal: Signal) {
        // An ID that does not fit cannot be.
        if let Ok(id) = i32::try_from(self.0.id()) {
            _ = kill(Pid::from_raw(id), signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.runs() {
            _ = self.0.kill();
            _ = self.0.wait();
        }
    }
}

/// The path of one of the workspace's programs, which every user can execute: where it is, or else a copy of it. It is taken
/// from `OUTRIGGER_BINARIES`, or else built as cargo does by default.
///
/// # Panics
/// When it cannot be built or copied.
pub fn program(package: &str) -> PathBuf {
    static COPYING: Mutex<()> = Mutex::new(());
    let _copying = COPYING.lock();
    let copy = std::env::temp_dir().join(format!("{PREFIX}{}-{package}", std::process::id()));
    if copy.exists() {
        return copy;
    }
    let folder = std::env::var_os("OUTRIGGER_BINARIES").map_or_else(
        || {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let built = Command::new(cargo)
                .args(["build", "--quiet", "--package", package, "--bin", package])
                .status();
            assert!(built.is_ok_and(|status| status.success()), "{package} does not build");
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug")
        },
        PathBuf::from,
    );
    let built = folder.join(package);
    if anybody_executes(&built) {
        return built;
    }
    if let Err(error) = std::fs::copy(&built, &copy) {
        panic!("{} cannot be copied to {}: {error}", built.display(), copy.display());
    }
    copy
}

fn anybody_executes(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    let executable = |part: &Path| {
        part.metadata()
            .is_ok_and(|metadata| metadata.permissions().mode() & 1 == 1)
    };
    path.ancestors().all(executable)
}

fn enter(namespace: std::io::Result<File>) {
    let entered = namespace.map(|file| setns(file, CloneFlags::CLONE_NEWNET));
    assert!(
        matches!(entered, Ok(Ok(()))),
        "the network namespace cannot be entered: {entered:?}"
    );
}

/// Of runs whose process is gone.
fn remove_leftovers() {
    for folder in [Path::new(NAMESPACES), &std::env::temp_dir()] {
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            let Some(process) = process else { continue };
            if Path::new("/proc").join(process).exists() {
                continue;
            }
            if folder == Path::new(NAMESPACES) {
                _ = Command::new("ip").args(["netns", "delete", name]).status();
            } else {
                _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("the program ip (package iproute2) does not start: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {errors}", arguments.join(" "));
}
