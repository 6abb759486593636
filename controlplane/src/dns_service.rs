//! Owns the Service that holds the address of the cluster's DNS. It selects no pods: every node answers at that address itself. It
//! keeps the address from other Services, and says it to nodes and people where they look for it.

use anyhow::Context;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use kube::api::{Api, ObjectMeta, PostParams};

use crate::config::Config;

const NAMESPACE: &str = "kube-system";
/// As in every other cluster.
const NAME: &str = "kube-dns";
const PORT: i32 = 53;

fn render(config: &Config) -> Service {
    let labels = [
        ("k8s-app", "kube-dns"),
        ("kubernetes.io/cluster-service", "true"),
        ("kubernetes.io/name", "CoreDNS"),
    ];
    let port = |name: &str, protocol: &str| ServicePort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port: PORT,
        ..ServicePort::default()
    };
    Service {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some(config.cluster_dns.to_string()),
            ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Makes the Service where there is none. One that is there stays, whatever its address: nodes use it.
///
/// # Errors
/// The API server does not answer as it should.
pub async fn ensure(client: kube::Client, config: &Config) -> anyhow::Result<()> {
    let services: Api<Service> = Api::namespaced(client, NAMESPACE);
    let found = services.get_opt(NAME).await.context("reading the Service of the cluster's DNS")?;
    if let Some(found) = found {
        let address = found.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
        if address != config.cluster_dns.to_string() {
            let wanted = config.cluster_dns;
            tracing::warn!(%address, %wanted, "Service kube-system/kube-dns has another address than --cluster-dns");
        }
        return Ok(());
    }
    match services.create(&PostParams::default(), &render(config)).await {
        Ok(_) => {
            tracing::info!(address = %config.cluster_dns, "made the Service of the cluster's DNS")
        }
        // Another master was quicker.
        Err(_) if services.get_opt(NAME).await.is_ok_and(|found| found.is_some()) => {}
        // Not worth a master that does not start: pods resolve without it.
        Err(error) => tracing::warn!(%error, "the Service of the cluster's DNS could not be made"),
    }
    Ok(())
}
