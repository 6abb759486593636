//! Tables of decisions, and the time of a big one.

use super::*;
use crate::{node::NodeObject, pod::PodObject};
use serde_json::{Value, json};

fn node(name: &str, extra: Value) -> Value {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}},
    });
    merge(&mut node, extra);
    node
}

fn pod(name: &str, spec: Value) -> PodInfo {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c"}]},
    });
    merge(&mut pod, spec);
    PodInfo::from(serde_json::from_value::<PodObject>(pod).unwrap())
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(a), Value::Object(b)) => {
            for (k, v) in b {
                merge(a.entry(k).or_insert(Value::Null), v);
            }
        }
        (a, b) => *a = b,
    }
}

fn snapshot(nodes: Vec<Value>) -> Snapshot {
    let mut s = Snapshot::default();
    for n in nodes {
        let (name, facts) = serde_json::from_value::<NodeObject>(n).unwrap().into_facts();
        s.set_node(&name, facts);
    }
    s
}

fn outcome(s: &Snapshot, p: &PodInfo) -> String {
    match plan_placement(s, p) {
        Decision::Place(node) => node.to_string(),
        Decision::Unschedulable(d) => d.message(),
    }
}

#[test]
fn reasons_are_upstreams() {
    let cordoned = json!({"spec": {"unschedulable": true}});
    let tainted = json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}});
    let full = json!({"status": {"allocatable": {"pods": "0"}}});
    let big = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "2", "memory": "2Gi", "x.io/y": "1"}}}]}});
    for (nodes, spec, expected) in [
        (vec![], json!({}), "no nodes available to schedule pods"),
        (
            vec![node("a", json!({})), node("b", json!({})), node("c", cordoned.clone())],
            big,
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu, \
             2 Insufficient memory, 2 Insufficient x.io/y.",
        ),
        (vec![node("a", full)], json!({}), "0/1 nodes are available: 1 Too many pods."),
        (
            vec![node("a", tainted.clone())],
            json!({}),
            "0/1 nodes are available: 1 node(s) had untolerated taint(s).",
        ),
        (vec![node("a", tainted)], json!({"spec": {"tolerations": [{"operator": "Exists"}]}}), "a"),
        (
            vec![node("a", cordoned)],
            json!({"spec": {"tolerations": [{"operator": "Exists"}]}}),
            "a",
        ),
        (
            vec![node("a", json!({})), node("b", json!({}))],
            json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "b"}}}),
            "b",
        ),
        (
            vec![node("a", json!({}))],
            json!({"spec": {"nodeSelector": {"disk": "ssd"}}}),
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
        ),
        (
            vec![node("a", json!({})), node("b", json!({"metadata": {"labels": {"gen": "5"}}}))],
            json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [{"key": "gen", "operator": "Gt", "values": ["4"]}]}]}}}}}),
            "b",
        ),
    ] {
        assert_eq!(outcome(&snapshot(nodes), &pod("p", spec)), expected);
    }
}

#[test]
fn host_ports_and_anti_affinity_keep_pods_apart() {
    let ports = json!({"spec": {"containers": [{"ports": [{"hostPort": 80, "protocol": "TCP"}]}]}});
    let term = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "a"}}}]);
    let apart = json!({"spec": {"affinity": {"podAntiAffinity":
        {"requiredDuringSchedulingIgnoredDuringExecution": term}}}});
    for (spec, message) in [
        (
            ports,
            "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports.",
        ),
        (apart, "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."),
    ] {
        let mut s = snapshot(vec![node("a", json!({})), node("b", json!({}))]);
        let mut used = Vec::new();
        for name in ["p1", "p2"] {
            let p = Arc::new(pod(name, spec.clone()));
            let node = outcome(&s, &p);
            s.assume(&p, &node.as_str().into());
            used.push(node);
        }
        used.sort();
        assert_eq!(used, ["a", "b"]);
        assert_eq!(outcome(&s, &pod("p3", spec)), message);
    }
}

#[test]
fn affinity_lets_the_first_pod_of_a_group_in_and_the_rest_follow() {
    let near = json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "a"}}}]}}}});
    let mut s = snapshot(vec![node("a", json!({})), node("b", json!({}))]);
    let first = Arc::new(pod("p1", near.clone()));
    let home = outcome(&s, &first);
    s.assume(&first, &home.as_str().into());
    for name in ["p2", "p3", "p4"] {
        assert_eq!(outcome(&s, &pod(name, near.clone())), home);
    }
}

#[test]
fn hard_spread_holds_the_skew() {
    let spec = json!({"spec": {"topologySpreadConstraints": [{"topologyKey": "zone", "maxSkew": 1,
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}}]}});
    let zone = |z: &str, more: Value| {
        let mut n = json!({"metadata": {"labels": {"zone": z}}});
        merge(&mut n, more);
        n
    };
    let full = json!({"status": {"allocatable": {"pods": "1"}}});
    let mut s = snapshot(vec![
        node("a", zone("x", json!({}))),
        node("b", zone("y", full)),
        node("c", json!({})),
    ]);
    for name in ["p1", "p2", "p3"] {
        let p = Arc::new(pod(name, spec.clone()));
        let node = outcome(&s, &p);
        s.assume(&p, &node.as_str().into());
    }
    assert_eq!(
        outcome(&s, &pod("p4", spec)),
        "0/3 nodes are available: 1 Too many pods, 1 node(s) didn't match pod topology spread constraints, \
         1 node(s) didn't match pod topology spread constraints (missing required label)."
    );
}

#[test]
fn replicas_spread_over_hosts_by_default() {
    let owner = json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
        "name": "r", "uid": "r", "controller": true}]}});
    let mut s = snapshot(["a", "b", "c"].map(|n| node(n, json!({}))).into());
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for i in 0..6 {
        let p = Arc::new(pod(&format!("p{i}"), owner.clone()));
        let node = outcome(&s, &p);
        *counts.entry(node.clone()).or_default() += 1;
        s.assume(&p, &node.as_str().into());
    }
    assert_eq!(counts, BTreeMap::from([("a".into(), 2), ("b".into(), 2), ("c".into(), 2)]));
}

/// Not a benchmark, but quadratic work would not pass: 5,000 replicas over 1,000 nodes.
#[test]
fn many_pods_over_many_nodes() {
    let owner = json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
        "name": "r", "uid": "r", "controller": true}]}});
    let mut s = snapshot((0..1000).map(|i| node(&format!("n{i}"), json!({}))).collect());
    let template = pod("t", owner);
    let begin = std::time::Instant::now();
    for i in 0..5000 {
        let p = Arc::new(PodInfo { uid: i.to_string().into(), ..template.clone() });
        let Decision::Place(node) = plan_placement(&s, &p) else { panic!("pod {i} has no node") };
        s.assume(&p, &node);
    }
    let spent = begin.elapsed();
    println!("5,000 placements over 1,000 nodes: {spent:?}");
    assert!(s.nodes().all(|n| n.pods.len() == 5), "replicas are spread evenly");
}
