//! The kernel settings that pod traffic needs, and what they were before.
//!
//! The old value is on disk before the new one is in the kernel, so that `restore` is right after a crash too.
//! Must not touch any setting whose value serves already.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::saved;

const ROOT: &str = "/proc/sys/net";

/// One changed setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    before: String,
    after: String,
}

/// What forwarding needs. `ip_forward` resets `accept_redirects`, which is saved along so that it comes back as it was.
fn wanted(ipv6: bool) -> Vec<(&'static str, Option<&'static str>)> {
    let mut wanted = vec![("ipv4/conf/all/accept_redirects", None), ("ipv4/ip_forward", Some("1"))];
    if ipv6 {
        wanted.push(("ipv6/conf/all/forwarding", Some("1")));
    }
    wanted
}

/// Sets what is not set; returns the names of those that were changed.
pub(crate) fn apply(state_dir: &Path, ipv6: bool) -> io::Result<Vec<&'static str>> {
    let path = state_dir.join(saved::SYSCTLS);
    let mut changes: BTreeMap<String, Change> = saved::load(&path)?.unwrap_or_default();
    let wanted = wanted(ipv6);
    let lacking: Vec<_> = wanted
        .iter()
        .filter_map(|(name, value)| value.map(|value| (*name, value)))
        .filter(|(name, value)| read(name).is_ok_and(|now| now != *value))
        .collect();
    if lacking.is_empty() {
        return Ok(Vec::new());
    }
    for (name, value) in &wanted {
        let before = read(name)?;
        let after = value.map_or_else(|| before.clone(), str::to_owned);
        if before != after || value.is_none() {
            changes.entry((*name).to_owned()).or_insert(Change { before, after });
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
        if side_effects(name) || read(name)? == change.after {
            fs::write(file(name), &change.before)?;
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
