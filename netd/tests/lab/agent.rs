//! Netd on a host of the lab, as the agent drives it.

use std::sync::Arc;
use std::time::Duration;

use netd::{Config, HostPort, Netd, PodAttachment, PodNetwork, Readiness};

use super::{Api, Host};

/// A node's configuration, with its folders in the host's.
pub(crate) fn config(host: &Host, ip: &str) -> Config {
    let mut config = Config::new(host.name.clone(), vec![ip.parse().unwrap()]);
    config.run_dir = host.dir.join("run");
    config.state_dir = host.dir.join("state");
    config.upstream_resolv_conf = host.dir.join("resolv.conf");
    config
}

async fn ready(netd: &Netd) {
    let wait = async {
        netd.readiness().wait_for(|state| *state == Readiness::Ready).await.unwrap();
        netd.programmed().wait_for(|programmed| *programmed).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(15), wait).await.expect("ready in time");
}

/// Starts netd on a host and waits until pods can come.
pub(crate) fn start(host: &Host, ip: &str, api: &Api) -> Arc<Netd> {
    start_with(host, config(host, ip), api)
}

/// The same with a configuration of its own.
pub(crate) fn start_with(host: &Host, config: Config, api: &Api) -> Arc<Netd> {
    let api = api.clone();
    host.run(move || async move {
        let netd = Netd::start(config, api.client()).await.unwrap();
        ready(&netd).await;
        Arc::new(netd)
    })
}

/// Attaches a pod without host ports.
pub(crate) fn attach(host: &Host, netd: &Arc<Netd>, uid: &str) -> PodNetwork {
    attach_with_ports(host, netd, uid, Vec::new())
}

/// Attaches a pod.
pub(crate) fn attach_with_ports(
    host: &Host,
    netd: &Arc<Netd>,
    uid: &str,
    host_ports: Vec<HostPort>,
) -> PodNetwork {
    let pod = PodAttachment {
        uid: uid.to_owned(),
        namespace: "default".to_owned(),
        name: uid.to_owned(),
        host_ports,
    };
    let netd = netd.clone();
    host.run(move || async move { netd.attach(pod).await.unwrap() })
}
