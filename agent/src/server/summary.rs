//! What the agent says of the node: usage of pods from their cgroups, metrics, and the pages of the
//! local commands. It only reads.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cgroup::{self, Hierarchy};
use crate::context::Context;
use crate::node::host;
use crate::pod::registry::Registry;
use crate::pod::spec;

/// Use of one cgroup.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    cpu_nanoseconds: u64,
    memory_bytes: u64,
    /// Without what the kernel can take back.
    working_set_bytes: u64,
}

fn number(path: &Path) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn field(path: &Path, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    found.unwrap_or(0)
}

fn usage(cgroup: &str) -> Usage {
    let root = PathBuf::from("/sys/fs/cgroup");
    let relative = cgroup.trim_start_matches('/');
    let (cpu_nanoseconds, memory_bytes, inactive) = match cgroup::detect() {
        Some(Hierarchy::V1) => {
            let memory = root.join("memory").join(relative);
            (
                number(&root.join("cpuacct").join(relative).join("cpuacct.usage")),
                number(&memory.join("memory.usage_in_bytes")),
                field(&memory.join("memory.stat"), "total_inactive_file"),
            )
        }
        Some(Hierarchy::V2) => {
            let dir = root.join(relative);
            (
                field(&dir.join("cpu.stat"), "usage_usec") * 1000,
                number(&dir.join("memory.current")),
                field(&dir.join("memory.stat"), "inactive_file"),
            )
        }
        None => return Usage::default(),
    };
    let working_set_bytes = memory_bytes.saturating_sub(inactive);
    Usage { cpu_nanoseconds, memory_bytes, working_set_bytes }
}

fn render(usage: Usage, at: &str) -> (Value, Value) {
    (
        json!({"time": at, "usageCoreNanoSeconds": usage.cpu_nanoseconds}),
        json!({"time": at, "usageBytes": usage.memory_bytes, "workingSetBytes": usage.working_set_bytes}),
    )
}

/// kubelet's `/stats/summary`, as far as the kernel tells.
pub(crate) fn summary(context: &Context, registry: &Registry) -> Value {
    let at = jiff::Timestamp::now().to_string();
    let pods: Vec<Value> = registry
        .all()
        .iter()
        .filter(|view| !view.cgroup.is_empty())
        .map(|view| {
            let (cpu, memory) = render(usage(&view.cgroup), &at);
            let statuses = view.status.container_statuses.iter().flatten();
            let containers: Vec<Value> = statuses
                .filter_map(|status| {
                    let id = status.container_id.as_ref()?.rsplit('/').next()?.to_owned();
                    let (cpu, memory) = render(usage(&format!("{}/{id}", view.cgroup)), &at);
                    Some(json!({"name": status.name, "cpu": cpu, "memory": memory}))
                })
                .collect();
            json!({
                "podRef": {"name": spec::name(&view.pod), "namespace": spec::namespace(&view.pod),
                           "uid": spec::uid(&view.pod)},
                "startTime": view.status.start_time,
                "containers": containers, "cpu": cpu, "memory": memory,
            })
        })
        .collect();
    let room = host::observe_headroom(&context.config.data_dir);
    let total = context.host.memory_bytes;
    json!({
        "node": {
            "nodeName": context.config.node_name,
            "memory": {"time": at, "availableBytes": room.memory_available_bytes,
                       "workingSetBytes": total.saturating_sub(room.memory_available_bytes)},
            "rlimit": {"time": at, "maxpid": room.pids_max, "curproc": room.pids},
        },
        "pods": pods,
    })
}

/// Prometheus text with the names kubelet uses.
pub(crate) fn metrics(registry: &Registry) -> String {
    let views = registry.all();
    let running = views.iter().filter(|v| v.status.phase.as_deref() == Some("Running")).count();
    let containers: usize = views
        .iter()
        .flat_map(|view| view.status.container_statuses.iter().flatten())
        .filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()))
        .count();
    let resident = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 =
        resident.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    format!(
        "# TYPE kubelet_running_pods gauge\nkubelet_running_pods {running}\n\
         # TYPE kubelet_running_containers gauge\n\
         kubelet_running_containers{{container_state=\"running\"}} {containers}\n\
         # TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {}\n",
        pages * 4096
    )
}

/// `agent status`.
pub(crate) fn status(context: &Context, registry: &Registry) -> Value {
    let views = registry.all();
    let running = views.iter().filter(|v| v.status.phase.as_deref() == Some("Running")).count();
    let network = match &*context.netd.readiness().borrow() {
        netd::Readiness::Ready => "ready".to_owned(),
        netd::Readiness::NoPodCidr => "no pod CIDR yet".to_owned(),
        netd::Readiness::Failing(why) => format!("failing: {why}"),
    };
    json!({
        "node": context.config.node_name,
        "version": env!("CARGO_PKG_VERSION"),
        "servers": context.masters.candidates(),
        "connected": context.link.connected(),
        "addresses": context.host_ips(),
        "network": network,
        "pods": views.len(),
        "podsRunning": running,
        "memoryBytes": context.host.memory_bytes,
        "cgroups": cgroup::detect().map(|hierarchy| match hierarchy {
            Hierarchy::V1 => "v1",
            Hierarchy::V2 => "v2",
        }),
    })
}

/// `agent images`.
pub(crate) fn images(context: &Context) -> Value {
    let images = context.engine.images.list();
    let items = images.into_iter().map(|image| {
        json!({"id": image.id, "tags": image.tags, "digests": image.digests,
               "sizeBytes": image.size_bytes, "pinned": image.pinned})
    });
    Value::Array(items.collect())
}
