//! Columns against those of a real API server, and rows of the kinds that people look at most.

use super::*;
use crate::resource::ResourceTable;
use serde_json::json;

#[test]
fn columns_are_upstreams() {
    let dir = std::env::var("FLOTILLA_SPEC_DIR")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../spec").to_owned());
    let path = std::path::Path::new(&dir).join("table-columns.json");
    let Ok(text) = std::fs::read(&path) else {
        println!("SKIPPED: no {}", path.display());
        return;
    };
    let facts: Value = serde_json::from_slice(&text).unwrap();
    let mut compared = 0;
    for row in ResourceTable::builtin().iter() {
        let group = if row.group.is_empty() { "core" } else { &row.group };
        let Some(theirs) = facts.get(format!("{group}/{}/{}", row.version, row.plural)) else {
            continue;
        };
        let ours: Vec<Value> = printer(row)
            .0
            .iter()
            .map(|column| {
                json!({"name": column.name, "type": column.kind, "format": column.format,
                       "priority": column.priority})
            })
            .collect();
        assert_eq!(Value::Array(ours), *theirs, "{group}/{}", row.plural);
        compared += 1;
    }
    assert!(compared > 35, "only {compared} resources compared");
}

#[test]
fn every_row_fills_its_columns() {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    for row in ResourceTable::builtin().iter() {
        let object = json!({"metadata": {"name": "x"}});
        let cells = cells(row, &object, now);
        assert_eq!(cells.len(), printer(row).0.len(), "{}", row.plural);
    }
}

fn row(group: &str, plural: &str, object: Value) -> Vec<String> {
    let table = ResourceTable::builtin();
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    cells(table.find(group, plural).unwrap(), &object, now)
        .iter()
        .map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
        .collect()
}

const CREATED: &str = "2026-01-01T00:00:00Z";

#[test]
fn nodes_services_and_deployments() {
    let node = json!({
        "metadata": {"name": "n", "creationTimestamp": CREATED, "labels": {
            "node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/edge": ""}},
        "spec": {"unschedulable": true},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0"},
        },
    });
    assert_eq!(
        row("", "nodes", node)[..7],
        ["n", "Ready,SchedulingDisabled", "edge,worker", "60m", "v1.36.0", "10.0.0.1", "<none>"]
    );
    let service = json!({
        "metadata": {"name": "s", "creationTimestamp": CREATED},
        "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.9"], "selector": {"b": "2", "a": "1"},
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]},
    });
    assert_eq!(
        row("", "services", service),
        ["s", "NodePort", "10.96.0.9", "<none>", "80:30080/TCP", "60m", "a=1,b=2"]
    );
    let deployment = json!({
        "metadata": {"name": "d", "creationTimestamp": CREATED},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "d"}},
            "template": {"spec": {"containers": [{"name": "a", "image": "x:1"}]}}},
        "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2},
    });
    assert_eq!(
        row("apps", "deployments", deployment),
        ["d", "2/3", "3", "2", "60m", "a", "x:1", "app=d"]
    );
}

#[test]
fn events_of_both_groups_read_alike() {
    let old = json!({
        "metadata": {"name": "e"}, "type": "Normal", "reason": "Pulled", "count": 4,
        "message": " done ", "firstTimestamp": CREATED, "lastTimestamp": "2026-01-01T00:59:00Z",
        "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{a}"},
        "source": {"component": "kubelet", "host": "n"},
    });
    let expected = [
        "60s",
        "Normal",
        "Pulled",
        "pod/p",
        "spec.containers{a}",
        "kubelet, n",
        "done",
        "60m",
        "4",
        "e",
    ];
    assert_eq!(row("", "events", old), expected);
    let new = json!({
        "metadata": {"name": "e"}, "type": "Normal", "reason": "Pulled", "note": "done",
        "eventTime": "2026-01-01T00:00:00.000000Z", "regarding": {"kind": "Pod", "name": "p"},
        "reportingController": "scheduler", "reportingInstance": "s-1",
    });
    let expected =
        ["60m", "Normal", "Pulled", "pod/p", "", "scheduler, s-1", "done", "60m", "1", "e"];
    assert_eq!(row("events.k8s.io", "events", new), expected);
}

#[test]
fn endpoints_show_three() {
    let addresses: Vec<Value> = (1..6).map(|i| json!({"ip": format!("10.0.0.{i}")})).collect();
    let endpoints = json!({
        "metadata": {"name": "e", "creationTimestamp": CREATED},
        "subsets": [{"addresses": addresses, "ports": [{"port": 80}]}],
    });
    assert_eq!(
        row("", "endpoints", endpoints)[1],
        "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more..."
    );
    assert_eq!(row("", "endpoints", json!({"metadata": {"name": "e"}}))[1], "<none>");
}
