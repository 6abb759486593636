//! Which node port a Service's port gets. A port is taken when its key exists. Must not look at addresses.

use crate::{key::ROOT, random};

/// The key that says whose a node port is.
pub(super) fn key(port: u16) -> Vec<u8> {
    format!("{ROOT}ranges/servicenodeports/{port}").into_bytes()
}

/// A port of the range that is not taken.
pub(super) fn pick((first, last): (u16, u16), is_taken: impl Fn(u16) -> bool) -> Option<u16> {
    let size = u64::from(last.checked_sub(first)?) + 1;
    let offset = random::below(size);
    (0..size)
        .filter_map(|i| u16::try_from(u64::from(first) + (offset + i) % size).ok())
        .find(|port| !is_taken(*port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_port_is_given_out_once() {
        let mut taken = HashSet::new();
        while let Some(port) = pick((30000, 30009), |p| taken.contains(&p)) {
            assert!(taken.insert(port));
        }
        assert_eq!(taken.len(), 10);
    }
}
