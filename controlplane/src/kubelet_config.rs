//! Owns what the master tells nodes about the cluster: the ConfigMap `kube-system/kubelet-config`, where kubeadm keeps it too, with a
//! `KubeletConfiguration`, and beside it a document of ours with the ranges of addresses. `agent join` reads it; the master's flags decide what it says.

use std::collections::BTreeMap;

use anyhow::Context;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ObjectMeta, PostParams};
use serde_json::json;

use crate::config::Config;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kubelet-config";
/// Key of the `KubeletConfiguration`.
const KUBELET: &str = "kubelet";
/// Key of the ranges, of which a `KubeletConfiguration` has none.
const NETWORK: &str = "network";

/// The documents by key, in JSON, which is YAML too.
fn render(config: &Config) -> BTreeMap<String, String> {
    let kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "clusterDNS": [config.cluster_dns.to_string()],
        "clusterDomain": config.cluster_domain,
    });
    let network = json!({
        "clusterCIDRs": config.cluster_cidrs,
        "serviceCIDRs": config.service_cidrs,
    });
    [(KUBELET, kubelet), (NETWORK, network)]
        .map(|(key, document)| (key.to_owned(), format!("{document:#}\n")))
        .into()
}

/// Makes the ConfigMap say what the configuration does.
///
/// # Errors
/// The API server does not answer as it should.
pub async fn ensure(client: kube::Client, config: &Config) -> anyhow::Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let data = Some(render(config));
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cli::RunArgs;

    #[test]
    fn nodes_are_told_dns_and_ranges() {
        let text = "cluster-cidr = [\"10.42.0.0/16\", \"fd42::/56\"]\n\
                    service-cluster-ip-range = \"10.77.0.0/16\"";
        let config = Config::merge(&RunArgs::default(), text, Path::new("c.toml")).unwrap();
        let documents = render(&config);
        let read =
            |key: &str| -> serde_json::Value { serde_json::from_str(&documents[key]).unwrap() };
        assert_eq!(read("kubelet")["clusterDNS"], json!(["10.77.0.10"]));
        let ranges = json!({"clusterCIDRs": ["10.42.0.0/16", "fd42::/56"], "serviceCIDRs": ["10.77.0.0/16"]});
        assert_eq!(read("network"), ranges);
    }
}
