//! The node's images over time: those nobody uses go when the disk fills up, archives dropped into a
//! folder are imported, and the Node says which images it has. It never pulls.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::ContainerImage;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::connection::chain;
use crate::context::Context;
use crate::events::Kind;
use crate::image::{CollectPolicy, Digest, Image, ImageUse, Reference, plan_collect};
use crate::node::Reported;
use crate::pod::registry::Registry;

/// How often the images are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Kubernetes 1.36, kubelet: images named in the Node's status.
const REPORTED_MAX: usize = 50;

/// What is remembered of an image's use; lost with the agent, as kubelet's.
#[derive(Debug, Clone, Copy)]
struct Seen {
    first: Instant,
    last_used: Option<Instant>,
}

pub(crate) struct Upkeep {
    context: Arc<Context>,
    registry: Arc<Registry>,
    report: watch::Sender<Reported>,
    seen: HashMap<String, Seen>,
    /// Archives that were imported (or refused), by when they were written.
    imported: HashMap<PathBuf, SystemTime>,
}

impl Upkeep {
    pub(crate) fn new(
        context: Arc<Context>,
        registry: Arc<Registry>,
        report: watch::Sender<Reported>,
    ) -> Upkeep {
        Upkeep { context, registry, report, seen: HashMap::new(), imported: HashMap::new() }
    }

    pub(crate) async fn run(mut self) {
        let mut tick = tokio::time::interval(LOOK_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.import().await;
            self.collect().await;
            let images = reported(self.context.engine.images.list());
            self.report.send_if_modified(|reported| {
                let changed = reported.images != images;
                reported.images = images;
                changed
            });
        }
    }

    async fn import(&mut self) {
        for path in archives(&self.context.config.image_drop_dir) {
            let Ok(written) = std::fs::metadata(&path).and_then(|meta| meta.modified()) else {
                continue;
            };
            if self.imported.get(&path) == Some(&written) {
                continue;
            }
            self.imported.insert(path.clone(), written);
            let (images, archive) = (self.context.engine.images.clone(), path.clone());
            match tokio::task::spawn_blocking(move || images.import(&archive)).await {
                Ok(Ok(found)) => info!(archive = %path.display(), images = found.len(), "imported"),
                Ok(Err(error)) => {
                    warn!(archive = %path.display(), error = %chain(&error), "not imported");
                }
                Err(error) => warn!(archive = %path.display(), %error, "not imported"),
            }
        }
    }

    async fn collect(&mut self) {
        let images = self.context.engine.images.clone();
        let disk = match images.observe_disk() {
            Ok(disk) => disk,
            Err(error) => {
                warn!(%error, "the image store's disk can't be observed");
                return;
            }
        };
        let now = Instant::now();
        let uses = self.uses(images.list(), now);
        let plan = plan_collect(&uses, disk, &CollectPolicy::default(), now);
        if plan.is_empty() {
            return;
        }
        info!(images = plan.len(), "the disk is filling up; unused images go");
        let name = self.context.config.node_name.clone();
        match tokio::task::spawn_blocking(move || images.apply_collect(&plan)).await {
            Ok(Ok(removed)) => info!(removed = removed.len(), "images collected"),
            Ok(Err(error)) => {
                let message = format!("failed to garbage collect images: {}", chain(&error));
                self.context.recorder.node(&name, Kind::Warning, "ImageGCFailed", message);
            }
            Err(error) => warn!(%error, "images were not collected"),
        }
    }

    fn uses(&mut self, images: Vec<Image>, now: Instant) -> Vec<ImageUse> {
        let in_use = full_names(self.registry.images_in_use());
        self.seen.retain(|id, _| images.iter().any(|image| image.id == *id));
        images
            .into_iter()
            .map(|image| {
                let seen = self
                    .seen
                    .entry(image.id.clone())
                    .or_insert(Seen { first: now, last_used: None });
                let used = is_used(&image, &in_use);
                if used {
                    seen.last_used = Some(now);
                }
                let Seen { first, last_used } = *seen;
                ImageUse { image, first_seen: first, last_used, in_use: used }
            })
            .collect()
    }
}

/// Names and ids of images, each as the image itself states it.
fn full_names(names: BTreeSet<String>) -> BTreeSet<String> {
    let full = |name: String| match name.parse::<Reference>() {
        _ if name.parse::<Digest>().is_ok() => name,
        Ok(reference) => match &reference.digest {
            Some(digest) => reference.by_digest(digest),
            None => reference.to_string(),
        },
        Err(_) => name,
    };
    names.into_iter().map(full).collect()
}

fn is_used(image: &Image, in_use: &BTreeSet<String>) -> bool {
    let mut names = image.tags.iter().chain(&image.digests).chain([&image.id]);
    names.any(|name| in_use.contains(name))
}

/// Files in the drop folder that are whole: not hidden, and not on their way.
fn archives(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or(".");
        let partial = name.starts_with('.') || name.ends_with(".part") || name.ends_with(".tmp");
        !partial && path.is_file()
    });
    paths.sort();
    paths
}

/// The largest images, as the Node's status names them.
fn reported(mut images: Vec<Image>) -> Vec<ContainerImage> {
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.id.cmp(&b.id)));
    images
        .into_iter()
        .take(REPORTED_MAX)
        .map(|image| ContainerImage {
            names: Some(image.digests.into_iter().chain(image.tags).collect()),
            size_bytes: i64::try_from(image.size_bytes).ok(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageConfig;

    #[test]
    fn an_image_is_in_use_by_tag_digest_or_id() {
        let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let image = |id: &str, tags: &[&str]| Image {
            id: digest(id),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            digests: vec![format!("q.io/app@{}", digest("d"))],
            layers: Vec::new(),
            config: ImageConfig::default(),
            size_bytes: 0,
            pinned: false,
        };
        let by = |name: &str, tags: &[&str]| {
            is_used(&image("1", tags), &full_names([name.to_owned()].into()))
        };
        assert!(by("app", &["docker.io/library/app:latest"]));
        assert!(by(&digest("1"), &[]), "its tag has moved to another image");
        assert!(by(&format!("q.io/app@{}", digest("d")), &[]));
        assert!(by(&format!("q.io/app:v1@{}", digest("d")), &[]));
        assert!(!by("app:v2", &["docker.io/library/app:latest"]));
        assert!(!by(&digest("2"), &[]));
        assert!(!by("", &[]));
    }

    #[test]
    fn only_whole_archives_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.tar", "a.tar.gz", ".hidden", "c.tar.part"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let names: Vec<_> = archives(dir.path())
            .into_iter()
            .map(|path| path.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["a.tar.gz", "b.tar"]);
        assert!(archives(&dir.path().join("none")).is_empty());
    }
}
