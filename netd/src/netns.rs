//! Network namespaces of pods: made by a thread of their own, held by a bind mount, entered by nobody else.
//!
//! Must not change the namespaces of any other thread. A pin is a file under `<run_dir>/netns` with the namespace
//! mounted on it; the kernel frees namespace and links when the last pin and process are gone.

use std::fs::File;
use std::future::Future;
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

use crate::worker;

/// Name of the threads that enter a namespace; they end there.
const THREAD: &str = "netns";
/// The namespace of the calling thread, as a file.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";
/// `statfs` type of a namespace file.
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// What a container's server may do unprivileged, as containerd and CRI-O allow it in a pod's own namespace.
const SYSCTLS: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
];

/// Whether `pin` holds a namespace (and isn't merely a file left by a reboot).
pub(crate) fn is_pinned(pin: &Path) -> bool {
    rustix::fs::statfs(pin).is_ok_and(|stat| i128::from(stat.f_type) == i128::from(NSFS_MAGIC))
}

/// Makes a namespace and pins it.
pub(crate) async fn create(pin: &Path) -> io::Result<()> {
    let pin = pin.to_owned();
    worker::run(THREAD, move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
        for (path, value) in SYSCTLS {
            std::fs::write(path, value)?;
        }
        File::create(&pin)?;
        nix::mount::mount(Some(OWN_NETNS), &pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    })
    .await?
}

/// Runs `work` inside of the namespace that `pin` holds.
pub(crate) async fn enter<F, Fut, T, E>(pin: &Path, work: F) -> Result<T, E>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, E>>,
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    let pin = File::open(pin)?;
    worker::run(THREAD, move || {
        nix::sched::setns(pin, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
        block_on(work())
    })
    .await?
}

fn block_on<Fut, T, E>(future: Fut) -> Result<T, E>
where
    Fut: Future<Output = Result<T, E>>,
    E: From<io::Error>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(future)
}

/// Takes a pin away; succeeds when there is none. The kernel cleans the namespace up by itself.
pub(crate) fn unpin(pin: &Path) -> io::Result<()> {
    while is_pinned(pin) {
        match nix::mount::umount2(pin, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match std::fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
