//! From the API's create to Running, the image present: what a person waits for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

use super::{Spread, Table};
use crate::lab::Lab;

/// Pods that are created, one after the other.
const RUNS: usize = 100;
/// How long one may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Adds the latency of `RUNS` pods, created one after the other.
pub fn measure(lab: &Lab, table: &mut Table) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let spread = runtime.block_on(latencies(lab))?;
    table.row("API create to Running", spread.to_string(), "p50 < 150 ms, p99 < 400 ms");
    Ok(())
}

async fn latencies(lab: &Lab) -> Result<Spread> {
    let file = Kubeconfig::read_from(lab.kubeconfig())?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    let pods: Api<Pod> = Api::namespaced(kube::Client::try_from(config)?, "default");
    let mut durations = Vec::with_capacity(RUNS);
    for number in 0..=RUNS {
        let took = tokio::time::timeout(DEADLINE, one(&pods, &format!("latency-{number}")))
            .await
            .context("a pod did not run in time")??;
        if number > 0 {
            durations.push(took); // the first one pulls the image
        }
    }
    Ok(Spread::of(durations))
}

async fn one(pods: &Api<Pod>, name: &str) -> Result<Duration> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "c", "image": "busybox:1.35", "command": ["sleep", "100000"] }],
        },
    }))?;
    let version = pods.list_metadata(&kube::api::ListParams::default().limit(1)).await?;
    let version = version.metadata.resource_version.context("no resourceVersion")?;
    let selector = WatchParams::default().fields(&format!("metadata.name={name}"));
    let events = pods.watch(&selector, &version).await?;
    let mut events = std::pin::pin!(events);
    let start = Instant::now();
    pods.create(&PostParams::default(), &pod).await?;
    let took = loop {
        match events.try_next().await?.context("the watch ended")? {
            WatchEvent::Modified(pod)
                if pod.status.as_ref().and_then(|status| status.phase.as_deref())
                    == Some("Running") =>
            {
                break start.elapsed();
            }
            WatchEvent::Error(error) => bail!("watch: {error:?}"),
            _ => {}
        }
    };
    pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
    Ok(took)
}
