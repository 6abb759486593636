//! Which images go when the disk fills up: kubelet's rules, as a pure plan.
//!
//! Above the high threshold, unused images go in the order in which they were last used, until the
//! disk is below the low one. One that has been here for a moment only stays: its pod may be on its
//! way.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Image;

/// Thresholds (kubelet's `imageGCHighThresholdPercent`, `imageGCLowThresholdPercent`,
/// `imageMinimumGCAge`, `imageMaximumGCAge`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CollectPolicy {
    pub(crate) high_percent: u64,
    pub(crate) low_percent: u64,
    pub(crate) age_min: Duration,
    /// Unused for so long, an image goes without any pressure.
    pub(crate) age_max: Option<Duration>,
}

impl Default for CollectPolicy {
    fn default() -> CollectPolicy {
        CollectPolicy {
            high_percent: 85,
            low_percent: 80,
            age_min: Duration::from_secs(120),
            age_max: None,
        }
    }
}

/// Bytes of the store's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskUsage {
    pub(crate) capacity_bytes: u64,
    pub(crate) available_bytes: u64,
}

/// An image and what is known of its use; kept in memory, as kubelet does.
#[derive(Clone, Debug)]
pub(crate) struct ImageUse {
    pub(crate) image: Image,
    pub(crate) first_seen: Instant,
    /// `None`: not since this agent runs.
    pub(crate) last_used: Option<Instant>,
    pub(crate) in_use: bool,
}

/// Ids of the images to remove, in order.
pub(crate) fn plan_collect(
    images: &[ImageUse],
    disk: DiskUsage,
    policy: &CollectPolicy,
    now: Instant,
) -> Vec<String> {
    let mut unused: Vec<&ImageUse> =
        images.iter().filter(|image| !image.in_use && !image.image.pinned).collect();
    unused.sort_by_key(|image| (image.last_used, image.first_seen));
    let is_old = |image: &&ImageUse| {
        let since = image.last_used.unwrap_or(image.first_seen);
        policy.age_max.is_some_and(|age| now.saturating_duration_since(since) >= age)
    };
    let used = disk.capacity_bytes.saturating_sub(disk.available_bytes);
    let used_percent = (used * 100).checked_div(disk.capacity_bytes).unwrap_or(0);
    let mut to_free = match used_percent >= policy.high_percent {
        true => used.saturating_sub(disk.capacity_bytes * policy.low_percent / 100),
        false => 0,
    };
    let mut plan = Vec::new();
    for image in unused {
        let is_new = now.saturating_duration_since(image.first_seen) < policy.age_min;
        if is_old(&image) || (to_free > 0 && !is_new) {
            to_free = to_free.saturating_sub(image.image.size_bytes);
            plan.push(image.image.id.clone());
        }
    }
    plan
}

pub(super) fn observe_disk(dir: &Path) -> io::Result<DiskUsage> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(DiskUsage {
        capacity_bytes: stat.f_blocks * stat.f_frsize,
        available_bytes: stat.f_bavail * stat.f_frsize,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageConfig;

    #[test]
    fn the_longest_unused_goes_first_until_it_is_enough() {
        let start = Instant::now();
        let now = start + Duration::from_secs(1000);
        let image = |id: &str, used: Option<u64>, in_use: bool, pinned: bool, seen: u64| ImageUse {
            image: Image {
                id: id.into(),
                tags: vec![],
                digests: vec![],
                layers: vec![],
                config: ImageConfig::default(),
                size_bytes: 6,
                pinned,
            },
            first_seen: start + Duration::from_secs(seen),
            last_used: used.map(|used| start + Duration::from_secs(used)),
            in_use,
        };
        let images = [
            image("recent", Some(500), false, false, 0),
            image("old", Some(10), false, false, 0),
            image("never", None, false, false, 0),
            image("running", Some(1), true, false, 0),
            image("pinned", None, false, true, 0),
            image("new", None, false, false, 990),
        ];
        let disk = |available_bytes| DiskUsage { capacity_bytes: 100, available_bytes };
        let policy = CollectPolicy::default();
        let plan = |available| plan_collect(&images, disk(available), &policy, now);
        assert!(plan(16).is_empty());
        assert_eq!(plan(15), ["never"]);
        assert_eq!(plan(9), ["never", "old"]);
        assert_eq!(plan(0), ["never", "old", "recent"]);
        let aged = CollectPolicy { age_max: Some(Duration::from_secs(900)), ..policy };
        assert_eq!(plan_collect(&images, disk(90), &aged, now), ["never", "old"]);
        let nothing = DiskUsage { capacity_bytes: 0, available_bytes: 0 };
        assert!(plan_collect(&images, nothing, &CollectPolicy::default(), now).is_empty());
    }
}
