//! What a cluster tells its nodes: of a `KubeletConfiguration`, the address and the domain of its DNS; of the document beside it, the
//! ranges of addresses. The rest of a `KubeletConfiguration` is for kubelets and is left alone.

use std::net::IpAddr;

use anyhow::Context;
use netd::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::Config;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct KubeletConfiguration {
    #[serde(rename = "clusterDNS")]
    cluster_dns: Vec<IpAddr>,
    cluster_domain: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Network {
    #[serde(rename = "clusterCIDRs")]
    cluster_cidrs: Vec<IpNet>,
    #[serde(rename = "serviceCIDRs")]
    service_cidrs: Vec<IpNet>,
}

/// Takes over what the documents say; what they don't is left as it is.
///
/// # Errors
/// One can't be read.
pub(crate) fn adopt(config: &mut Config, documents: &Value) -> anyhow::Result<()> {
    let kubelet: KubeletConfiguration = read(documents, "kubelet")?;
    let network: Network = read(documents, "network")?;
    if !kubelet.cluster_domain.is_empty() {
        config.cluster_domain = kubelet.cluster_domain;
    }
    replace(&mut config.cluster_dns, kubelet.cluster_dns);
    replace(&mut config.cluster_cidrs, network.cluster_cidrs);
    replace(&mut config.service_cidrs, network.service_cidrs);
    Ok(())
}

fn read<T: DeserializeOwned + Default>(documents: &Value, key: &str) -> anyhow::Result<T> {
    let Some(text) = documents[key].as_str() else { return Ok(T::default()) };
    serde_saphyr::from_str(text).with_context(|| {
        format!("{key:?} of the ConfigMap kube-system/kubelet-config can't be read; restart the master, which writes it anew")
    })
}

fn replace<T>(place: &mut Vec<T>, told: Vec<T>) {
    if !told.is_empty() {
        *place = told;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_said_is_taken_over_and_the_rest_stays() {
        let mut config = Config::default();
        adopt(&mut config, &Value::Null).unwrap();
        assert_eq!(config, Config::default());
        let kubelet = "kind: KubeletConfiguration\nmaxPods: 7\nclusterDNS:\n- 10.1.0.10\n";
        adopt(&mut config, &json!({"kubelet": kubelet})).unwrap();
        assert_eq!(config.cluster_dns, ["10.1.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.cluster_domain, "cluster.local");
        let network = r#"{"clusterCIDRs": ["10.42.0.0/16", "fd42::/56"]}"#;
        let kubelet = r#"{"clusterDomain": "fleet.example"}"#;
        adopt(&mut config, &json!({"kubelet": kubelet, "network": network})).unwrap();
        assert_eq!(config.cluster_dns, ["10.1.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.cluster_domain, "fleet.example");
        let netd = crate::run::netd_config(&config, Vec::new());
        assert_eq!(
            netd.cluster_cidrs,
            ["10.42.0.0/16", "fd42::/56"].map(|cidr| cidr.parse().unwrap())
        );
        assert_eq!(netd.service_cidrs, [netd::SERVICE_CIDR]);
        adopt(&mut config, &json!({"network": r#"{"serviceCIDRs": ["10.77.0.0/16"]}"#})).unwrap();
        let netd = crate::run::netd_config(&config, Vec::new());
        assert_eq!(netd.service_cidrs, ["10.77.0.0/16".parse().unwrap()]);
        assert!(adopt(&mut config, &json!({"kubelet": "clusterDNS: [here]"})).is_err());
    }
}
