//! ImageLocality: prefers nodes that have the pod's images already, weighed by how widely an image is spread.

use crate::{
    node::NodeInfo,
    plugin::{Check, ClusterEvent, Plugin, SCORE_MAX},
    pod::PodInfo,
    snapshot::Snapshot,
};

/// Below this many bytes an image is fetched so fast that it does not count (Kubernetes: 23 MB).
const BYTES_MIN: i64 = 23 * 1024 * 1024;
/// At this many bytes per container the score is full (Kubernetes: 1000 MB).
const BYTES_MAX_PER_CONTAINER: i64 = 1000 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct ImageLocality;

struct Image {
    name: String,
    nodes: i64,
}

struct Prepared {
    images: Vec<Image>,
    nodes: i64,
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }
    fn prepare<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> Option<Box<dyn Check + 'a>> {
        let mut images: Vec<Image> = pod
            .needs
            .images
            .iter()
            .map(|name| Image { name: normalized(name), nodes: 0 })
            .collect();
        let mut nodes = 0;
        for node in snapshot.nodes() {
            nodes += 1;
            if node.images.is_empty() {
                continue;
            }
            for image in &mut images {
                image.nodes += i64::from(node.images.contains_key(&image.name));
            }
        }
        images
            .iter()
            .any(|i| i.nodes > 0)
            .then(|| Box::new(Prepared { images, nodes }) as Box<dyn Check>)
    }
    fn wakes(&self, _: ClusterEvent) -> bool {
        false
    }
}

impl Check for Prepared {
    fn scores(&self) -> bool {
        true
    }
    fn score(&self, node: &NodeInfo) -> i64 {
        let present = self.images.iter().filter_map(|i| Some((node.images.get(&i.name)?, i.nodes)));
        let bytes: i64 = present.map(|(size, on)| size / self.nodes.max(1) * on).sum();
        let containers = i64::try_from(self.images.len()).unwrap_or(1).max(1);
        let top = BYTES_MAX_PER_CONTAINER * containers;
        SCORE_MAX * (bytes.clamp(BYTES_MIN, top) - BYTES_MIN) / (top - BYTES_MIN)
    }
}

/// `busybox` means `busybox:latest`.
fn normalized(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}
