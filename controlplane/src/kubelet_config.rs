//! Owns what the master tells nodes about the cluster: the ConfigMap `kube-system/kubelet-config`, where kubeadm keeps it too, with a
//! `KubeletConfiguration`. `agent join` reads it; the master's flags decide what it says.

use std::collections::BTreeMap;

use anyhow::Context;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ObjectMeta, PostParams};
use serde_json::json;

use crate::config::Config;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kubelet-config";
const KEY: &str = "kubelet";

/// The document, in JSON, which is YAML too.
fn render(config: &Config) -> String {
    format!(
        "{:#}\n",
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "clusterDNS": [config.cluster_dns.to_string()],
            "clusterDomain": config.cluster_domain,
        })
    )
}

/// Makes the ConfigMap say what the configuration does.
///
/// # Errors
/// The API server does not answer as it should.
pub async fn ensure(client: kube::Client, config: &Config) -> anyhow::Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let data = Some(BTreeMap::from([(KEY.to_owned(), render(config))]));
    let found = maps.get_opt(NAME).await.context("reading what nodes are told of the cluster")?;
    let written = match found {
        Some(found) if found.data == data => return Ok(()),
        Some(found) => {
            maps.replace(NAME, &PostParams::default(), &ConfigMap { data, ..found }).await
        }
        None => {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let map = ConfigMap { metadata, data, ..ConfigMap::default() };
            maps.create(&PostParams::default(), &map).await
        }
    };
    match written {
        Ok(_) => {
            tracing::info!(domain = config.cluster_domain, dns = %config.cluster_dns, "told nodes of the cluster")
        }
        // Not worth a master that does not start; another one may have been quicker.
        Err(error) => tracing::warn!(%error, "what nodes are told of the cluster was not written"),
    }
    Ok(())
}
