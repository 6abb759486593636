//! Manifests, indexes and configurations, of OCI and of Docker: what of them matters here, and the
//! choice of a platform. Pure.

use serde::{Deserialize, Serialize};

use super::ImageConfig;
use super::reference::Digest;

/// More layers than an overlay can have are refused before any is fetched.
const LAYERS_MAX: usize = 400;

/// A content descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) media_type: String,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: String,
}

/// A manifest of one image, or an index of several.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Manifest {
    #[serde(default)]
    pub(crate) config: Option<Descriptor>,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
}

/// An image's configuration file.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Configuration {
    #[serde(flatten)]
    pub(crate) platform: Platform,
    #[serde(default)]
    pub(crate) config: Option<ImageConfig>,
    #[serde(default)]
    pub(crate) rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub(crate) diff_ids: Vec<Digest>,
}

impl Platform {
    /// This machine.
    pub(crate) fn here() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        let variant = match architecture {
            "arm" => "v7",
            "arm64" => "v8",
            _ => "",
        };
        let text = str::to_owned;
        Platform { os: text("linux"), architecture: text(architecture), variant: text(variant) }
    }

    /// How well an image for `other` runs here: the lower the better, `None` not at all.
    fn rank(&self, other: &Platform) -> Option<u32> {
        if (&self.os, &self.architecture) != (&other.os, &other.architecture) {
            return None;
        }
        let version = |variant: &str| variant.strip_prefix('v')?.parse::<u32>().ok();
        match (version(&self.variant), version(&other.variant)) {
            (Some(ours), Some(theirs)) => ours.checked_sub(theirs),
            (None, Some(theirs)) => (theirs <= 1).then_some(0),
            (_, None) => {
                Some(u32::from(!self.variant.is_empty() && self.architecture == "arm") * 2)
            }
        }
    }

    /// An old image may not say what it is for.
    pub(crate) fn runs(&self, other: &Platform) -> bool {
        other.architecture.is_empty() || self.rank(other).is_some()
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(formatter, "/{}", self.variant) }
    }
}

impl Manifest {
    pub(crate) fn is_index(&self) -> bool {
        self.config.is_none() && !self.manifests.is_empty()
    }

    /// The best manifest of an index for a platform; the first of equals.
    pub(crate) fn choose(&self, platform: &Platform) -> Option<&Descriptor> {
        let ranked = self.manifests.iter().filter_map(|manifest| {
            let rank = match &manifest.platform {
                Some(theirs) => platform.rank(theirs)?,
                None => 1_000,
            };
            Some((rank, manifest))
        });
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, manifest)| manifest)
    }
}

/// Why a manifest and its configuration make no image.
pub(crate) fn check(manifest: &Manifest, configuration: &Configuration) -> Result<(), String> {
    let (layers, diff_ids) = (manifest.layers.len(), configuration.rootfs.diff_ids.len());
    if layers != diff_ids {
        return Err(format!("{layers} layers, but {diff_ids} diff ids"));
    }
    if layers == 0 || layers > LAYERS_MAX {
        return Err(format!("{layers} layers; 1 to {LAYERS_MAX} can be mounted"));
    }
    let foreign = manifest.layers.iter().find(|layer| layer.media_type.contains("foreign"));
    match foreign {
        Some(layer) => Err(format!("layer {} is not in the registry", layer.digest)),
        None => Ok(()),
    }
}

/// Name of each layer together with all below it, bottom first (the runtime's chain id).
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_platform_is_chosen() {
        let hex = |byte: char| byte.to_string().repeat(64);
        let text = format!(
            r#"{{"manifests":[
            {{"digest":"sha256:{}","size":1,"platform":{{"os":"unknown","architecture":"unknown"}}}},
            {{"digest":"sha256:{}","size":1,"platform":{{"os":"linux","architecture":"arm","variant":"v5"}}}},
            {{"digest":"sha256:{}","size":1,"platform":{{"os":"linux","architecture":"arm","variant":"v6"}}}},
            {{"digest":"sha256:{}","size":1,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}},
            {{"digest":"sha256:{}","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
            hex('a'),
            hex('b'),
            hex('c'),
            hex('d'),
            hex('e')
        );
        let manifest: Manifest = serde_json::from_str(&text).unwrap();
        assert!(manifest.is_index());
        let choose = |architecture: &str, variant: &str| {
            let platform = Platform {
                os: "linux".into(),
                architecture: architecture.into(),
                variant: variant.into(),
            };
            manifest.choose(&platform).map(|found| found.digest.hex().chars().next().unwrap())
        };
        assert_eq!(choose("arm", "v7"), Some('c'));
        assert_eq!(choose("arm64", "v8"), Some('d'));
        assert_eq!(choose("amd64", ""), Some('e'));
        assert_eq!(choose("riscv64", ""), None);
    }

    #[test]
    fn nulls_of_docker_are_empty() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["sh"],
            "Entrypoint":null,"Volumes":{"/data":{}},"Labels":null,"User":"","ExposedPorts":{}},
            "rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config = serde_json::from_str::<Configuration>(text).unwrap().config.unwrap();
        assert_eq!(config.cmd, ["sh"]);
        assert!(config.volumes.contains_key("/data"));
    }
}
