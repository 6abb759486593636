//! What a cluster tells its nodes: of a `KubeletConfiguration`, the address and the domain of its DNS. The rest of such a document is
//! for kubelets and is left alone.

use std::net::IpAddr;

use anyhow::Context;
use serde::Deserialize;

use crate::config::Config;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KubeletConfiguration {
    #[serde(default, rename = "clusterDNS")]
    cluster_dns: Vec<IpAddr>,
    #[serde(default)]
    cluster_domain: String,
}

/// Takes over what the document says.
///
/// # Errors
/// It is none.
pub(crate) fn adopt(config: &mut Config, text: &str) -> anyhow::Result<()> {
    let told: KubeletConfiguration = serde_saphyr::from_str(text)
        .context("the ConfigMap kube-system/kubelet-config holds no KubeletConfiguration; restart the master, which writes it anew")?;
    if !told.cluster_dns.is_empty() {
        config.cluster_dns = told.cluster_dns;
    }
    if !told.cluster_domain.is_empty() {
        config.cluster_domain = told.cluster_domain;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_taken_over_and_the_rest_stays() {
        let mut config = Config::default();
        adopt(&mut config, "kind: KubeletConfiguration\nmaxPods: 7\nclusterDNS:\n- 10.1.0.10\n")
            .unwrap();
        assert_eq!(config.cluster_dns, ["10.1.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.cluster_domain, "cluster.local");
        adopt(&mut config, r#"{"clusterDomain": "fleet.example"}"#).unwrap();
        assert_eq!(config.cluster_dns, ["10.1.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.cluster_domain, "fleet.example");
        assert!(adopt(&mut config, "clusterDNS: [here]").is_err());
    }
}
