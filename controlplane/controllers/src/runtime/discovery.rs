//! Which kinds the API server serves, read from its discovery documents.

use super::Error;
use kube::{Client, core::ApiResource};

/// One kind that can be listed.
#[derive(Debug, Clone)]
pub(crate) struct ServedKind {
    pub(crate) api: ApiResource,
    pub(crate) namespaced: bool,
    verbs: Vec<String>,
}

impl ServedKind {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// Path of the collection.
    pub(crate) fn path(&self, namespace: &str) -> String {
        let root = if self.api.group.is_empty() { "api" } else { "apis" };
        if self.namespaced && !namespace.is_empty() {
            format!("/{root}/{}/namespaces/{namespace}/{}", self.api.api_version, self.api.plural)
        } else {
            format!("/{root}/{}/{}", self.api.api_version, self.api.plural)
        }
    }
}

/// The kinds in their preferred versions, and the group versions that did not answer.
#[derive(Debug, Default)]
pub(crate) struct Served {
    pub(crate) kinds: Vec<ServedKind>,
    pub(crate) unanswered: Vec<String>,
}

/// Asks the API server.
pub(crate) async fn discover(client: &Client) -> Result<Served, Error> {
    let mut served = Served::default();
    let core = client.list_core_api_resources("v1").await?;
    served.take(("", "v1"), core.resources);
    for group in client.list_api_groups().await?.groups {
        let Some(version) = group.preferred_version.as_ref().or(group.versions.first()) else {
            continue;
        };
        match client.list_api_group_resources(&version.group_version).await {
            Ok(list) => served.take((&group.name, &version.version), list.resources),
            Err(error) => {
                tracing::debug!(group_version = %version.group_version, %error, "no discovery");
                served.unanswered.push(version.group_version.clone());
            }
        }
    }
    Ok(served)
}

impl Served {
    fn take(
        &mut self,
        (group, version): (&str, &str),
        resources: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource>,
    ) {
        for r in resources.into_iter().filter(|r| !r.name.contains('/')) {
            let api_version =
                if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
            self.kinds.push(ServedKind {
                api: ApiResource {
                    group: group.to_owned(),
                    version: version.to_owned(),
                    api_version,
                    kind: r.kind,
                    plural: r.name,
                },
                namespaced: r.namespaced,
                verbs: r.verbs,
            });
        }
    }
}
