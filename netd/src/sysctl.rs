//! The kernel settings that pod traffic needs, and what they were before.
//!
//! The old value is on disk before the new one is in the kernel, so that `restore` is right after a crash too.
//! Must not touch any setting whose value serves already.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{link, saved};

const ROOT: &str = "/proc/sys/net";

/// One changed setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    before: String,
    after: String,
}

/// What forwarding needs. `ip_forward` resets `accept_redirects`, which is saved along so that it comes back as it was; IPv6
/// forwarding makes the kernel deaf to router advertisements, which a link that lives on them must hear all the same.
fn wanted(ipv6: bool) -> io::Result<Vec<(String, Option<&'static str>)>> {
    let mut wanted = vec![
        ("ipv4/conf/all/accept_redirects".to_owned(), None),
        ("ipv4/ip_forward".to_owned(), Some("1")),
    ];
    if ipv6 {
        wanted.push(("ipv6/conf/all/forwarding".to_owned(), Some("1")));
        if read("ipv6/conf/all/forwarding")? != "1" {
            for entry in fs::read_dir(Path::new(ROOT).join("ipv6/conf"))? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                let setting = format!("ipv6/conf/{name}/accept_ra");
                let of_host = !["all", "default", "lo"].contains(&name.as_str())
                    && !name.starts_with(link::PREFIX);
                if of_host && read(&setting).is_ok_and(|value| value == "1") {
                    wanted.push((setting, Some("2")));
                }
            }
        }
    }
    Ok(wanted)
}

/// Sets what is not set; returns the names of those that were changed.
pub(crate) fn apply(state_dir: &Path, ipv6: bool) -> io::Result<Vec<String>> {
    let path = state_dir.join(saved::SYSCTLS);
    let wanted = wanted(ipv6)?;
    let lacking: Vec<_> = wanted
        .iter()
        .filter_map(|(name, value)| value.map(|value| (name.clone(), value)))
        .filter(|(name, value)| read(name).is_ok_and(|now| now != *value))
        .collect();
    if lacking.is_empty() {
        return Ok(Vec::new());
    }
    let mut changes: BTreeMap<String, Change> = saved::load(&path)?.unwrap_or_default();
    for (name, value) in &wanted {
        let before = read(name)?;
        let after = value.map_or_else(|| before.clone(), str::to_owned);
        if before != after || value.is_none() {
            changes.entry(name.clone()).or_insert(Change { before, after });
        }
    }
    saved::store(&path, &changes)?;
    for (name, value) in &lacking {
        fs::write(file(name), value)?;
    }
    Ok(lacking.into_iter().map(|(name, _)| name).collect())
}

/// Puts back what `apply` changed, unless somebody else changed it since.
pub(crate) fn restore(state_dir: &Path) -> io::Result<()> {
    let path = state_dir.join(saved::SYSCTLS);
    let changes: BTreeMap<String, Change> = saved::load(&path)?.unwrap_or_default();
    let side_effects = |name: &str| name.ends_with("accept_redirects");
    // Forwarding first: turning it off resets accept_redirects, which then gets its own value back.
    let (last, first): (Vec<_>, Vec<_>) = changes.iter().partition(|(name, _)| side_effects(name));
    for (name, change) in first.into_iter().chain(last) {
        match read(name) {
            Ok(now) if side_effects(name) || now == change.after => {
                fs::write(file(name), &change.before)?;
            }
            // Somebody's own value, or a link that is gone.
            _ => {}
        }
    }
    saved::remove(&path)
}

fn file(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

fn read(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(file(name))?.trim().to_owned())
}
