//! What a pod refers to: the secrets, config maps, claims and the service account that its node must be able to read.
//!
//! Pure: reads a stored pod's bytes. A mirror pod refers to nothing (its node made it).

use crate::lookup::decode;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// What a reference is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReferenceKind {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
}

/// The references of one pod; all are in the pod's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodReferences {
    list: Box<[(ReferenceKind, Box<str>)]>,
}

impl PodReferences {
    /// The pod's node (empty when it has none) and its references.
    pub(crate) fn of_pod(value: &[u8]) -> Result<(Box<str>, Self), serde_json::Error> {
        let pod: Pod = decode(value)?;
        let node = pod.spec.node_name.clone().into_boxed_str();
        if node.is_empty() || pod.metadata.annotations.contains_key(MIRROR_ANNOTATION) {
            return Ok((node, Self::default()));
        }
        let mut found = Collector::default();
        found.pod(pod);
        Ok((node, Self { list: found.list.into_boxed_slice() }))
    }

    /// The references of a pod that is not stored yet, the service account left out.
    pub(crate) fn of_spec(spec: &Value) -> Result<Self, serde_json::Error> {
        let mut spec: Spec = decode(spec.to_string().as_bytes())?;
        spec.service_account_name.clear();
        let mut found = Collector::default();
        found.pod(Pod { spec, metadata: Meta::default() });
        Ok(Self { list: found.list.into_boxed_slice() })
    }

    /// The plural of the first reference's kind.
    pub(crate) fn first_kind(&self) -> Option<&'static str> {
        let (kind, _) = self.list.first()?;
        Some(match kind {
            ReferenceKind::Secret => "secrets",
            ReferenceKind::ConfigMap => "configmaps",
            ReferenceKind::Claim => "persistentvolumeclaims",
            ReferenceKind::ServiceAccount => "serviceaccounts",
        })
    }

    pub(crate) fn refers(&self, kind: ReferenceKind, name: &str) -> bool {
        self.list.iter().any(|(of, known)| *of == kind && &**known == name)
    }
}

#[derive(Default)]
struct Collector {
    list: Vec<(ReferenceKind, Box<str>)>,
}

impl Collector {
    fn add(&mut self, kind: ReferenceKind, name: String) {
        let item = (kind, name.into_boxed_str());
        if !item.1.is_empty() && !self.list.contains(&item) {
            self.list.push(item);
        }
    }

    fn pod(&mut self, pod: Pod) {
        let Pod { metadata, spec } = pod;
        self.add(ReferenceKind::ServiceAccount, spec.service_account_name);
        for secret in spec.image_pull_secrets {
            self.add(ReferenceKind::Secret, secret.name);
        }
        let containers = spec.containers.into_iter().chain(spec.init_containers);
        for container in containers.chain(spec.ephemeral_containers) {
            self.container(container);
        }
        for volume in spec.volumes {
            if volume.ephemeral.is_some() {
                let claim = format!("{}-{}", metadata.name, volume.name);
                self.add(ReferenceKind::Claim, claim);
            }
            self.volume(volume);
        }
    }

    fn container(&mut self, container: Container) {
        for source in container.env_from {
            self.add(ReferenceKind::Secret, source.secret_ref.name);
            self.add(ReferenceKind::ConfigMap, source.config_map_ref.name);
        }
        for variable in container.env {
            self.add(ReferenceKind::Secret, variable.value_from.secret_key_ref.name);
            self.add(ReferenceKind::ConfigMap, variable.value_from.config_map_key_ref.name);
        }
    }

    fn volume(&mut self, volume: Volume) {
        self.add(ReferenceKind::Secret, volume.secret.secret_name);
        self.add(ReferenceKind::Secret, volume.azure_file.secret_name);
        self.add(ReferenceKind::ConfigMap, volume.config_map.name);
        self.add(ReferenceKind::Claim, volume.persistent_volume_claim.claim_name);
        self.add(ReferenceKind::Secret, volume.csi.node_publish_secret_ref.name);
        for source in [
            volume.iscsi,
            volume.cephfs,
            volume.rbd,
            volume.flex_volume,
            volume.scale_io,
            volume.storageos,
        ] {
            self.add(ReferenceKind::Secret, source.secret_ref.name);
        }
        for source in volume.projected.sources {
            self.add(ReferenceKind::Secret, source.secret.name);
            self.add(ReferenceKind::ConfigMap, source.config_map.name);
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Pod {
    metadata: Meta,
    spec: Spec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Meta {
    name: String,
    annotations: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
    service_account_name: String,
    image_pull_secrets: Vec<Named>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
    volumes: Vec<Volume>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    env: Vec<Variable>,
    env_from: Vec<EnvFrom>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Variable {
    value_from: ValueFrom,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ValueFrom {
    secret_key_ref: Named,
    config_map_key_ref: Named,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct EnvFrom {
    secret_ref: Named,
    config_map_ref: Named,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Volume {
    name: String,
    secret: SecretName,
    azure_file: SecretName,
    config_map: Named,
    persistent_volume_claim: ClaimName,
    projected: Projected,
    csi: Csi,
    iscsi: WithSecret,
    cephfs: WithSecret,
    rbd: WithSecret,
    flex_volume: WithSecret,
    #[serde(rename = "scaleIO")]
    scale_io: WithSecret,
    storageos: WithSecret,
    ephemeral: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SecretName {
    secret_name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ClaimName {
    claim_name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Projected {
    sources: Vec<Source>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Source {
    secret: Named,
    config_map: Named,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Csi {
    node_publish_secret_ref: Named,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WithSecret {
    secret_ref: Named,
}
