//! Which capabilities a container has: the usual set, and what its pod adds and drops.
//!
//! Owns the names and the default set; must not apply anything.

use std::collections::BTreeSet;

use super::SpecError;
use crate::protocol::ContainerSpec;

/// Linux's capabilities by number.
const NAMES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container has unless its pod says otherwise; the set that Docker and containerd give.
const DEFAULT: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The container's capabilities by name. `ALL` is read first, then single names; a capability that
/// the monitor itself lacks (`available`, a mask) can't be given and is left out.
///
/// # Errors
/// On a name that is no capability.
pub(crate) fn effective(
    spec: &ContainerSpec,
    available: u64,
) -> Result<Vec<&'static str>, SpecError> {
    let known = || {
        let numbered = NAMES.iter().copied().enumerate();
        numbered.filter(|(number, _)| available >> number & 1 == 1).map(|(_, name)| name)
    };
    if spec.privileged {
        return Ok(known().collect());
    }
    let mut set: BTreeSet<&'static str> = DEFAULT.iter().copied().collect();
    if spec.capabilities.add.iter().any(|name| is_all(name)) {
        set = known().collect();
    }
    if spec.capabilities.drop.iter().any(|name| is_all(name)) {
        set.clear();
    }
    for name in spec.capabilities.add.iter().filter(|name| !is_all(name)) {
        set.insert(parse(name)?);
    }
    for name in spec.capabilities.drop.iter().filter(|name| !is_all(name)) {
        set.remove(parse(name)?);
    }
    Ok(known().filter(|name| set.contains(name)).collect())
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL")
}

fn parse(name: &str) -> Result<&'static str, SpecError> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    NAMES
        .iter()
        .copied()
        .find(|known| *known == full)
        .ok_or_else(|| SpecError::Capability(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Capabilities;

    fn names(add: &[&str], drop: &[&str]) -> Result<Vec<&'static str>, SpecError> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = Capabilities { add: owned(add), drop: owned(drop) };
        effective(&ContainerSpec { capabilities, ..ContainerSpec::default() }, u64::MAX)
    }

    #[test]
    fn adds_and_drops() {
        assert_eq!(names(&[], &[]).unwrap().len(), 14);
        assert_eq!(names(&["NET_ADMIN"], &["ALL"]).unwrap(), ["CAP_NET_ADMIN"]);
        assert_eq!(names(&["cap_net_admin"], &["KILL"]).unwrap().len(), 14);
        assert_eq!(names(&["ALL"], &["SYS_ADMIN"]).unwrap().len(), 40);
        let scarce = effective(&ContainerSpec::default(), 0b101).unwrap();
        assert_eq!(scarce, ["CAP_CHOWN"]);
        assert_eq!(names(&["FLY"], &[]).unwrap_err(), SpecError::Capability("FLY".into()));
    }
}
