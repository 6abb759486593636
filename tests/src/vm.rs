//! A Debian 12 machine with systemd, udev and cgroup v2 under QEMU's own processor (no KVM needed):
//! made from Debian's packages, kept in the build folder, booted straight into its kernel.
//!
//! What the machine is to do is a shell script that a unit runs at each boot; it talks through the
//! serial line and ends with `VM-RESULT passed` or `VM-RESULT failed: …`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ring::digest::{SHA256, digest};

use crate::shell::{capture, has_program, run};

/// Packages of the machine beside Debian's smallest set.
const PACKAGES: &str = "systemd,systemd-sysv,udev,dbus,kmod,initramfs-tools,linux-image-cloud-amd64,\
    iproute2,nftables,iptables,curl,procps,busybox-static,ca-certificates,util-linux,\
    libnftnl11,libmnl0,libelf1,zlib1g,libseccomp2";
/// Size of its disk.
const DISK: &str = "4G";
/// How long it may run in all; it is emulated.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Why no machine can be run here, if so.
#[must_use]
pub fn obstacle() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some("the machine of this suite is an amd64 one".to_owned());
    }
    ["qemu-system-x86_64", "mmdebstrap", "mkfs.ext4"]
        .into_iter()
        .find(|program| !has_program(program))
        .map(|program| format!("{program} is not installed"))
}

/// A machine to be run once.
#[derive(Debug)]
pub struct Machine {
    dir: PathBuf,
    root: PathBuf,
}

impl Machine {
    /// Makes a machine's root folder in `dir`, from a base that is kept in `cache`.
    pub fn make(cache: &Path, dir: &Path) -> Result<Machine> {
        let base = base(cache)?;
        fs::create_dir_all(dir)?;
        let root = dir.join("root");
        fs::create_dir_all(&root)?;
        run(&["tar", "-C", &root.to_string_lossy(), "-xf", &base.to_string_lossy()])?;
        Ok(Machine { dir: dir.to_path_buf(), root })
    }

    /// Copies a file or folder of this machine to a path in the new one.
    pub fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let target = self.root.join(to.trim_start_matches('/'));
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        run(&["cp", "-aL", &from.to_string_lossy(), &target.to_string_lossy()]).map(drop)
    }

    /// Boots the machine with `script` and prints what it says, until it gives its result.
    pub fn run(&self, script: &str) -> Result<()> {
        let steps = self.root.join("usr/local/sbin/vm-steps");
        fs::write(&steps, script)?;
        run(&["chmod", "755", &steps.to_string_lossy()])?;
        let disk = self.dir.join("disk.img");
        let (root, disk) = (self.root.to_string_lossy(), disk.to_string_lossy());
        run(&["mkfs.ext4", "-q", "-F", "-d", &root, &disk, DISK])?;
        let boot = |name: &str| -> Result<String> {
            let found = fs::read_dir(self.root.join("boot"))?
                .flatten()
                .find(|entry| entry.file_name().to_string_lossy().starts_with(name))
                .with_context(|| format!("no {name} in /boot"))?;
            Ok(found.path().to_string_lossy().into_owned())
        };
        let drive = format!("file={disk},format=raw,if=virtio,cache=unsafe");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"]);
        command.args(["-nographic", "-nodefaults", "-serial", "stdio", "-drive", &drive]);
        command.args(["-nic", "user,model=virtio-net-pci,restrict=on"]);
        command.args(["-kernel", &boot("vmlinuz")?, "-initrd", &boot("initrd")?]);
        command.args(["-append", "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0"]);
        follow(&mut command)
    }
}

/// Reads the serial line until the result, the end of the machine or the deadline.
fn follow(command: &mut Command) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().context("cannot run qemu-system-x86_64")?;
    let lines = BufReader::new(child.stdout.take().context("no serial line")?).lines();
    let (sender, receiver) = mpsc::sync_channel(1024);
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let start = Instant::now();
    let outcome = loop {
        let Some(left) = DEADLINE.checked_sub(start.elapsed()) else {
            break Err(anyhow::anyhow!("no result within {DEADLINE:?}"));
        };
        match receiver.recv_timeout(left) {
            Ok(line) => {
                println!(
                    "         vm {:>4.0} s  {}",
                    start.elapsed().as_secs_f32(),
                    line.trim_end()
                );
                if let Some((_, result)) = line.split_once("VM-RESULT ") {
                    break match result.trim() {
                        "passed" => Ok(()),
                        other => Err(anyhow::anyhow!("{other}")),
                    };
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                break Err(anyhow::anyhow!("the machine ended without a result"));
            }
        }
    };
    child.kill()?;
    child.wait()?;
    drop(receiver);
    reader.join().ok();
    outcome
}

/// The base root file system as a tar file, made once per list of packages.
fn base(cache: &Path) -> Result<PathBuf> {
    let key: String = digest(&SHA256, format!("{PACKAGES}{STEPS_UNIT}").as_bytes()).as_ref()[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let tar = cache.join(format!("debian12-{key}.tar"));
    if tar.exists() {
        return Ok(tar);
    }
    fs::create_dir_all(cache)?;
    let scratch = cache.join(format!("making-{}", std::process::id()));
    let made = cache.join(format!("making-{}.tar", std::process::id()));
    let include = format!("--include={PACKAGES}");
    let output = capture(Command::new("mmdebstrap").args([
        "--variant=minbase",
        "--aptopt=Acquire::Languages \"none\"",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        &include,
        "bookworm",
        &scratch.to_string_lossy(),
    ]))?;
    if output.code != 0 {
        bail!("mmdebstrap failed: {}", output.stderr);
    }
    let at = |path: &str| scratch.join(path);
    fs::write(at("etc/hostname"), "debian12\n")?;
    fs::write(at("etc/hosts"), "127.0.0.1 localhost debian12\n")?;
    fs::write(at("etc/fstab"), "/dev/vda / ext4 defaults 0 1\n")?;
    fs::write(
        at("etc/systemd/network/10-any.network"),
        "[Match]\nName=en* eth*\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\n",
    )?;
    fs::write(at("etc/systemd/system/vm-steps.service"), STEPS_UNIT)?;
    let chroot = |words: &[&str]| -> Result<String> {
        let place = scratch.to_string_lossy().into_owned();
        let mut all = vec!["chroot", place.as_str()];
        all.extend(words);
        run(&all)
    };
    chroot(&["systemctl", "enable", "systemd-networkd", "vm-steps"])?;
    chroot(&[
        "systemctl",
        "mask",
        "serial-getty@ttyS0",
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
    ])?;
    run(&["tar", "-C", &scratch.to_string_lossy(), "-cf", &made.to_string_lossy(), "."])?;
    fs::remove_dir_all(&scratch)?;
    fs::rename(&made, &tar)?;
    Ok(tar)
}

const STEPS_UNIT: &str = "\
[Unit]
Description=Steps of the test
After=multi-user.target network-online.target
Wants=network-online.target

[Service]
Type=exec
ExecStart=/usr/local/sbin/vm-steps
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity

[Install]
WantedBy=graphical.target multi-user.target
";
