//! What the host is and how it fares: read from `/proc`, `/etc` and `statvfs`. It only reads.

use std::path::Path;

use nix::sys::statvfs::statvfs;

/// What doesn't change while the agent runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    pub(crate) cpus: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) storage_bytes: u64,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) hugepages: Vec<(String, u64)>,
}

/// What is left, now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Headroom {
    pub(crate) memory_available_bytes: u64,
    /// Shares of the data folder's file system, 0 to 1.
    pub(crate) storage_available: f64,
    pub(crate) inodes_available: f64,
    pub(crate) pids: u64,
    pub(crate) pids_max: u64,
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn meminfo(field: &str) -> u64 {
    let found = text("/proc/meminfo").lines().find_map(|line| {
        let rest = line.strip_prefix(field)?.strip_prefix(':')?;
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    found.unwrap_or(0) * 1024
}

fn os_image() -> String {
    let release = text("/etc/os-release");
    let found = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    found.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

fn hugepages() -> Vec<(String, u64)> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let mut sizes: Vec<(String, u64)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kilobytes: u64 =
                name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let pages: u64 = text(entry.path().join("nr_hugepages").to_str()?).parse().ok()?;
            let size = match kilobytes {
                k if k >= 1 << 20 => format!("{}Gi", k >> 20),
                k if k >= 1 << 10 => format!("{}Mi", k >> 10),
                k => format!("{k}Ki"),
            };
            Some((format!("hugepages-{size}"), pages * kilobytes * 1024))
        })
        .collect();
    sizes.sort();
    sizes
}

pub(crate) fn observe_host(data_dir: &Path) -> Host {
    let storage = statvfs(data_dir).map(|fs| fs.blocks() * fs.fragment_size()).unwrap_or(0);
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let machine_id = text("/etc/machine-id");
    let uuid = text("/sys/class/dmi/id/product_uuid");
    Host {
        cpus: u64::try_from(cpus).unwrap_or(1),
        memory_bytes: meminfo("MemTotal"),
        storage_bytes: storage,
        kernel: text("/proc/sys/kernel/osrelease"),
        os_image: os_image(),
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        boot_id: text("/proc/sys/kernel/random/boot_id"),
        hugepages: hugepages(),
    }
}

fn share(part: u64, whole: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a share needs no more than 52 bits")]
    let share = part as f64 / whole.max(1) as f64;
    share
}

pub(crate) fn observe_headroom(data_dir: &Path) -> Headroom {
    let (storage_available, inodes_available) = match statvfs(data_dir) {
        Ok(fs) => {
            let inodes =
                if fs.files() == 0 { 1.0 } else { share(fs.files_available(), fs.files()) };
            // As df does: what is reserved for others is no capacity of ours.
            let used = fs.blocks().saturating_sub(fs.blocks_free());
            (share(fs.blocks_available(), used + fs.blocks_available()), inodes)
        }
        Err(_) => (1.0, 1.0),
    };
    // `0.10 0.20 0.30 2/345 6789`: running and all scheduling entities.
    let loadavg = text("/proc/loadavg");
    let pids = loadavg.split_whitespace().nth(3).and_then(|field| field.split_once('/'));
    Headroom {
        memory_available_bytes: meminfo("MemAvailable"),
        storage_available,
        inodes_available,
        pids: pids.and_then(|(_, all)| all.parse().ok()).unwrap_or(0),
        pids_max: text("/proc/sys/kernel/pid_max").parse().unwrap_or(u64::MAX),
    }
}

/// The architecture in Go's words.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}
