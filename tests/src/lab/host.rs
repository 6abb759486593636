//! One host of a lab: its namespaces, which a holder process keeps, and what runs in them.
//!
//! The holder is PID 1 of the host's PID namespace: when it is killed, the kernel kills all that ran
//! there, as a power cut does. Folders of the host's own are laid over `/etc`, `/var/lib` and
//! `/var/log`; `/run` is a tmpfs and is lost with the power.

use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Addresses, Lab};
use crate::shell::{run, wait_for};

/// How long a holder or a killed process may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// A host of a lab.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name; a node's Kubernetes name.
    pub name: String,
    /// Its address on the switch.
    pub ip: Ipv4Addr,
    /// Its folder.
    pub dir: PathBuf,
    addresses: Addresses,
    position: u8,
    lab_binary: PathBuf,
}

impl Host {
    pub(super) fn new(lab: &Lab, name: &str, position: u8) -> Host {
        let addresses = lab.addresses();
        Host {
            name: name.to_owned(),
            ip: addresses.ip(position),
            dir: lab.dir.join(name),
            addresses,
            position,
            lab_binary: lab.binary("lab"),
        }
    }

    /// PID, as the machine sees it, of the host's holder; an error when the host has no power.
    pub fn holder(&self) -> Result<u32> {
        let text = fs::read_to_string(self.dir.join("holder.pid"))
            .with_context(|| format!("host {} has no power", self.name))?;
        let pid: u32 = text.trim().parse()?;
        if !Path::new(&format!("/proc/{pid}")).exists() {
            bail!("host {} has no power; `scripts/lab start {}`", self.name, self.name);
        }
        Ok(pid)
    }

    /// A command that runs inside the host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let pid = self.holder()?.to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-m", "-n", "-p", "-u", "--"]).arg(program);
        Ok(command)
    }

    /// Runs `words` inside the host and gives its standard output.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let Some((program, arguments)) = words.split_first() else { bail!("nothing to run") };
        let mut command = self.command(program)?;
        crate::shell::capture(command.args(arguments))?
            .success()
            .with_context(|| format!("on {}: `{}`", self.name, words.join(" ")))
    }

    /// Starts `command` (made by [`Host::command`]) in the background; its output goes to `log`.
    pub fn spawn(&self, mut command: Command, log: &str) -> Result<()> {
        use std::os::unix::process::CommandExt;
        let path = self.dir.join(log);
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        command.process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// Gives the host power: namespaces, its link to the switch, its folders.
    pub fn power_on(&self) -> Result<()> {
        if self.holder().is_ok() {
            bail!("host {} is running", self.name);
        }
        for folder in ["etc", ".etc-work", "var/lib", "var/log"] {
            fs::create_dir_all(self.dir.join(folder))?;
        }
        self.hide_machines_configuration()?;
        self.plug()?;
        self.start_holder()
    }

    /// The machine may be a node or a master itself; what it is configured as is nothing to a host of the lab.
    fn hide_machines_configuration(&self) -> Result<()> {
        let own = self.dir.join("etc/flotilla");
        if own.exists() || !Path::new("/etc/flotilla").exists() {
            return Ok(());
        }
        fs::create_dir(&own)?;
        let opaque = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&own, "trusted.overlay.opaque", b"y", opaque)
            .with_context(|| format!("cannot hide /etc/flotilla behind {}", own.display()))
    }

    fn plug(&self) -> Result<()> {
        let netns = self.addresses.netns(&self.name);
        let port = self.addresses.port(self.position);
        let switch = self.addresses.switch();
        let cidr = format!("{}/24", self.ip);
        let gateway = self.addresses.ip(1).to_string();
        // A namespace of a host that lost its power is made anew: nothing in the kernel survives.
        run(&["ip", "netns", "add", &netns])?;
        let peer = format!("{port}e");
        run(&["ip", "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", &peer])?;
        run(&["ip", "-n", &switch, "link", "set", &peer, "netns", &netns])?;
        run(&["ip", "-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
        // As a machine keeps its card: its neighbours need not learn another address.
        let mac = self.addresses.mac(self.position);
        run(&["ip", "-n", &netns, "link", "set", &peer, "name", "eth0", "address", &mac])?;
        run(&["ip", "-n", &netns, "link", "set", "lo", "up"])?;
        run(&["ip", "-n", &netns, "addr", "add", &cidr, "dev", "eth0"])?;
        run(&["ip", "-n", &netns, "link", "set", "eth0", "up"])?;
        run(&["ip", "-n", &netns, "route", "add", "default", "via", &gateway])?;
        Ok(())
    }

    fn start_holder(&self) -> Result<()> {
        use std::os::unix::process::CommandExt;
        let ready = self.dir.join("holder.ready");
        remove_if_there(&ready)?;
        let log = File::create(self.dir.join("holder.log"))?;
        let netns = format!("--net=/run/netns/{}", self.addresses.netns(&self.name));
        let mut command = Command::new("nsenter");
        command.args([&netns, "--", "unshare", "--mount", "--pid", "--uts", "--fork"]);
        command.args(["--kill-child", "--mount-proc", "--propagation", "private", "--"]);
        command.arg(&self.lab_binary).args(["hold", &self.name]).arg(&self.dir);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let mut child = command.spawn().context("cannot run nsenter (package util-linux)")?;
        let parent = child.id();
        let pid = wait_for("the holder's process", DEADLINE, || {
            let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
            let first = children.split_whitespace().next().context("not yet forked")?;
            Ok(first.to_owned())
        })?;
        fs::write(self.dir.join("holder.pid"), &pid)?;
        std::thread::spawn(move || child.wait());
        wait_for("the host's folders", DEADLINE, || {
            fs::metadata(&ready).with_context(|| {
                fs::read_to_string(self.dir.join("holder.log")).unwrap_or_default()
            })
        })?;
        Ok(())
    }

    /// Takes the power away: everything on the host dies at once; its folders stay.
    pub fn power_off(&self) -> Result<()> {
        if let Ok(pid) = self.holder() {
            signal(pid, libc::SIGKILL)?;
            wait_for("the host's processes to die", DEADLINE, || {
                if Path::new(&format!("/proc/{pid}")).exists() {
                    bail!("{pid} lives")
                }
                Ok(())
            })?;
        }
        remove_if_there(&self.dir.join("holder.pid"))?;
        self.remove_cgroups()?;
        let netns = self.addresses.netns(&self.name);
        if Path::new("/run/netns").join(&netns).exists() {
            run(&["ip", "netns", "del", &netns])?;
        }
        let (switch, port) = (self.addresses.switch(), self.addresses.port(self.position));
        if !Path::new("/run/netns").join(&switch).exists() {
            return Ok(());
        }
        // The kernel takes the port away with the namespace of its other end, in its own time.
        wait_for("the host's port to go", DEADLINE, || {
            if run(&["ip", "-n", &switch, "link", "show", &port]).is_err() {
                return Ok(());
            }
            run(&["ip", "-n", &switch, "link", "del", &port]).map(drop)
        })
    }

    fn remove_cgroups(&self) -> Result<()> {
        let below = self.addresses.cgroup(&self.name);
        remove_cgroups(&below)?;
        for root in cgroup_roots()? {
            if let Some(lab) = root.join(below.trim_start_matches('/')).parent() {
                drop(fs::remove_dir(lab)); // refused until the lab's last host goes
            }
        }
        Ok(())
    }

    /// Cuts or heals the host's link, at the switch.
    pub fn set_link(&self, state: &str) -> Result<()> {
        let (switch, port) = (self.addresses.switch(), self.addresses.port(self.position));
        run(&["ip", "-n", &switch, "link", "set", &port, state]).map(drop)
    }

    /// Cuts or heals the link between this host and another one, all others left alone; packets are
    /// dropped without a word on this side.
    pub fn set_link_to(&self, other: &Host, state: &str) -> Result<()> {
        let netns = self.addresses.netns(&self.name);
        let table = format!("cut-{}", other.name);
        let nft = |words: &[&str]| {
            let mut all = vec!["ip", "netns", "exec", &netns, "nft"];
            all.extend(words);
            run(&all).map(drop)
        };
        if state == "up" {
            return nft(&["delete", "table", "ip", &table]);
        }
        let ip = other.ip;
        nft(&[&format!(
            "table ip {table} {{ \
             chain in {{ type filter hook input priority -300; ip saddr {ip} drop; }}; \
             chain out {{ type filter hook output priority -300; ip daddr {ip} drop; }}; }}"
        )])
    }

    /// PIDs, as the machine sees them, of the host's processes whose command line contains all of
    /// `words`, in any depth of PID namespaces below the host's own.
    pub fn pids(&self, words: &[&str]) -> Result<Vec<u32>> {
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", self.holder()?))?;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            if fs::read_link(format!("/proc/{pid}/ns/pid")).ok().as_ref() != Some(&namespace) {
                continue;
            }
            let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if words.iter().all(|word| line.contains(word)) {
                found.push(pid);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Sends `signal_number` to exactly the processes that [`Host::pids`] finds; an error when none.
    pub fn kill(&self, words: &[&str], signal_number: i32) -> Result<Vec<u32>> {
        let pids = self.pids(words)?;
        if pids.is_empty() {
            bail!("nothing that matches {words:?} runs on {}", self.name);
        }
        for pid in &pids {
            signal(*pid, signal_number)?;
        }
        Ok(pids)
    }
}

/// Sends a signal to a process of the machine; one that is gone already is no error.
pub(super) fn signal(pid: u32, number: i32) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("PID 0")?;
    let signal = rustix::process::Signal::from_named_raw(number)
        .with_context(|| format!("no signal {number}"))?;
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot signal {pid:?}")),
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Mount points of every cgroup hierarchy of this machine.
pub(super) fn cgroup_roots() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (_, target, kind) = (words.next()?, words.next()?, words.next()?);
            kind.starts_with("cgroup").then(|| PathBuf::from(target))
        })
        .collect())
}

/// Removes a cgroup and all below it from every hierarchy, once its processes are gone.
pub fn remove_cgroups(below: &str) -> Result<()> {
    wait_for("cgroups to empty", DEADLINE, || {
        for root in cgroup_roots()? {
            remove_tree(&root.join(below.trim_start_matches('/')))?;
        }
        Ok(())
    })
}

fn remove_tree(dir: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The holder's life: lays the host's folders over the machine's, says so, then reaps orphans.
/// Runs as PID 1 of the host's namespaces and never returns unless the set-up fails.
pub fn hold(name: &str, dir: &Path) -> Result<()> {
    let at = |path: &str| dir.join(path).to_string_lossy().into_owned();
    run(&["hostname", name])?;
    run(&["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
    let overlay = format!("lowerdir=/etc,upperdir={},workdir={}", at("etc"), at(".etc-work"));
    run(&["mount", "-t", "overlay", "-o", &overlay, "overlay", "/etc"])?;
    run(&["mount", "--bind", &at("var/lib"), "/var/lib"])?;
    run(&["mount", "--bind", &at("var/log"), "/var/log"])?;
    fs::write("/etc/hostname", format!("{name}\n"))?;
    let mut ready = File::create(dir.join("holder.ready"))?;
    ready.write_all(b"ready\n")?;
    drop(ready);
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(500)), // no child to wait for
        }
    }
}
