//! What a host's kernel and file system hold, as sorted lines, so that two moments can be compared.
//!
//! Left out, because they change by themselves: counters, ages of neighbours, kernel threads, PIDs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Host, host::cgroup_roots};
use crate::shell::{capture, wait_for};

/// Commands whose output is taken line by line, each with the word its lines begin with.
const COMMANDS: &[(&str, &[&str])] = &[
    ("nft", &["nft", "--stateless", "list", "ruleset"]),
    ("iptables", &["iptables-save"]),
    ("iptables-legacy", &["iptables-legacy-save"]),
    ("link", &["ip", "-o", "link", "show"]),
    ("address", &["ip", "-o", "addr", "show"]),
    ("route", &["ip", "-4", "route", "show", "table", "all"]),
    ("route6", &["ip", "-6", "route", "show", "table", "all"]),
    ("neighbour", &["ip", "neigh", "show", "nud", "permanent"]),
    ("rule", &["ip", "rule", "show"]),
    ("netns", &["ip", "netns", "list"]),
    ("process", &["ps", "-eo", "args", "--no-headers"]),
];

/// Folders whose files are listed, with what may lie in them.
const FOLDERS: &[&str] =
    &["/etc", "/run", "/var/lib", "/var/log", "/usr/local", "/opt", "/root/.kube"];
/// Parts of those folders that other programs write to all the time.
const BUSY: &[&str] = &[
    "/run/udev",
    "/run/systemd/journal",
    "/run/log",
    "/var/log/journal",
    "/var/log/wtmp",
    "/var/log/lastlog",
    "/var/log/btmp",
    "/var/lib/apt",
    "/var/lib/dpkg",
    "/var/cache",
    "/var/lib/systemd",
    "/run/user",
    "/run/lock",
    "/run/systemd",
    "/usr/local/share",
    "/root/.kube/cache",
    "/etc/alternatives",
];
/// Files are told apart by size and time of change up to this many entries.
const FILES_MAX: usize = 200_000;

/// How long the kernel may take to make sure that nobody else has a new IPv6 address.
const SETTLE_DEADLINE: Duration = Duration::from_secs(20);

/// The state of a host of a lab, once its addresses are settled.
pub fn of_host(host: &Host) -> Result<BTreeSet<String>> {
    wait_for("IPv6 addresses to settle", SETTLE_DEADLINE, || {
        let tentative = host.run(&["ip", "-o", "-6", "address", "show", "tentative"])?;
        ensure!(tentative.is_empty(), "{tentative}");
        Ok(())
    })?;
    let mut lines = collect(|words| {
        let (program, arguments) = words.split_first().context("empty command")?;
        capture(host.command(program)?.args(arguments))
    })?;
    let listed = host.run(&[
        "find",
        "/etc",
        "/run",
        "/var/lib",
        "/var/log",
        "-xdev",
        "-printf",
        "%y %p %s %l\\n",
    ])?;
    for line in listed.lines().filter(|line| !busy(line)) {
        lines.insert(format!("file {line}"));
    }
    for (name, value) in sysctls(|path| host.run(&["cat", path]))? {
        lines.insert(format!("sysctl {name} = {value}"));
    }
    let mounts = host.run(&["cat", "/proc/1/mountinfo"])?;
    // Namespaces of labs that are this machine's own come and go, out of the host's sight.
    let own = |line: &String| !line.starts_with("mount /run/netns/fl");
    lines.extend(mounts.lines().map(mount_line).filter(own));
    let below = format!("/flotilla-lab-{}/{}", host.ip.octets()[2], host.name);
    lines.extend(cgroups(Path::new(below.trim_start_matches('/')))?);
    Ok(lines)
}

/// The state of this machine.
pub fn of_machine() -> Result<BTreeSet<String>> {
    let mut lines = collect(|words| {
        let (program, arguments) = words.split_first().context("empty command")?;
        capture(Command::new(program).args(arguments))
    })?;
    for folder in FOLDERS {
        walk(Path::new(folder), &mut lines);
    }
    for (name, value) in sysctls(|path| Ok(fs::read_to_string(path)?))? {
        lines.insert(format!("sysctl {name} = {value}"));
    }
    lines.extend(fs::read_to_string("/proc/self/mountinfo")?.lines().map(mount_line));
    lines.extend(cgroups(Path::new(""))?);
    Ok(lines)
}

/// Lines that stand in one snapshot only: `-` gone, `+` new.
#[must_use]
pub fn diff(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    let gone = before.difference(after).map(|line| format!("- {line}"));
    let new = after.difference(before).map(|line| format!("+ {line}"));
    gone.chain(new).collect()
}

fn collect(
    mut run: impl FnMut(&[&str]) -> Result<crate::shell::Output>,
) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for (kind, words) in COMMANDS {
        let Ok(output) = run(words) else { continue };
        let mut section = String::new();
        for line in output.stdout.lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') || ignored(kind, line) {
                continue;
            }
            if *kind == "nft" || kind.starts_with("iptables") {
                if line.ends_with('{') || line.starts_with('*') {
                    section = line.to_owned();
                }
                lines.insert(format!("{kind} [{section}] {}", without_counters(line)));
            } else {
                lines.insert(format!("{kind} {}", without_ages(line)));
            }
        }
    }
    Ok(lines)
}

fn ignored(kind: &str, line: &str) -> bool {
    match kind {
        "process" => {
            line.starts_with('[')
                || [
                    "(udev-worker)",
                    "ps -eo",
                    "nsenter",
                    "find /etc",
                    "cat /proc",
                    "lab snapshot",
                    "kubectl",
                ]
                .iter()
                .any(|word| line.contains(word))
        }
        _ => false,
    }
}

/// `:FORWARD ACCEPT [12:3400]` loses its counters.
fn without_counters(line: &str) -> String {
    match (line.starts_with(':'), line.rfind(" [")) {
        (true, Some(at)) => line[..at].to_owned(),
        _ => line.to_owned(),
    }
}

/// `expires 86sec` and interface numbers change by themselves.
fn without_ages(line: &str) -> String {
    let mut words = line.split_whitespace().peekable();
    let mut kept = Vec::new();
    let numbered = line.split_once(": ").is_some_and(|(head, _)| head.parse::<u32>().is_ok());
    if numbered {
        words.next();
    }
    while let Some(word) = words.next() {
        if matches!(word, "expires" | "valid_lft" | "preferred_lft") {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

/// Mount point, kind and source; identifiers are the kernel's own business.
fn mount_line(line: &str) -> String {
    let mut words = line.split(' ');
    let target = words.nth(4).unwrap_or_default();
    let rest = line.split_once(" - ").map_or("", |(_, rest)| rest);
    let kind = rest.split(' ').take(2).collect::<Vec<_>>().join(" ");
    format!("mount {target} {kind}")
}

fn sysctls(mut read: impl FnMut(&str) -> Result<String>) -> Result<Vec<(String, String)>> {
    const NAMES: &[&str] = &[
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/conf/default/rp_filter",
        "net/ipv4/conf/all/route_localnet",
        "net/ipv4/conf/all/arp_ignore",
        "net/ipv4/conf/all/proxy_arp",
        "net/ipv4/conf/all/forwarding",
        "net/ipv4/conf/default/forwarding",
        "net/ipv6/conf/default/forwarding",
        "net/ipv4/conf/all/send_redirects",
        "net/netfilter/nf_conntrack_max",
        "kernel/panic",
        "vm/overcommit_memory",
        "kernel/panic_on_oops",
        "fs/inotify/max_user_instances",
        "fs/inotify/max_user_watches",
    ];
    let mut values = Vec::new();
    for name in NAMES {
        if let Ok(value) = read(&format!("/proc/sys/{name}")) {
            values.push(((*name).to_owned(), value.trim().to_owned()));
        }
    }
    Ok(values)
}

fn cgroups(below: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for root in cgroup_roots()? {
        let mut waiting = vec![root.join(below)];
        while let Some(dir) = waiting.pop() {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            lines.push(format!("cgroup {}", dir.display()));
            let folders = entries.flatten().filter(|entry| entry.path().is_dir());
            waiting.extend(folders.map(|entry| entry.path()));
        }
    }
    Ok(lines)
}

fn busy(line: &str) -> bool {
    BUSY.iter().any(|part| line.contains(part))
}

fn walk(top: &Path, lines: &mut BTreeSet<String>) {
    let mut waiting = vec![top.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let Ok(meta) = path.symlink_metadata() else { continue };
        let shown = path.display().to_string();
        if busy(&shown) || lines.len() > FILES_MAX {
            continue;
        }
        if meta.is_dir() {
            lines.insert(format!("file d {shown}"));
            let Ok(entries) = fs::read_dir(&path) else { continue };
            waiting.extend(entries.flatten().map(|entry| entry.path()));
        } else {
            lines.insert(format!("file f {shown} {}", meta.len()));
        }
    }
}
