//! Scenarios of sets in text; the expected steps in text.

use super::*;
use crate::kinds::Condition;

fn deployment(spec: Value) -> Arc<Deployment> {
    let mut d = json!({
        "metadata": {"name": "web", "namespace": "d", "uid": "d", "generation": 1, "annotations": {REVISION: "2"}},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "progressDeadlineSeconds": 600,
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"v": 0}}},
        "status": {"conditions": [{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated"}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        d["spec"][key] = value.clone();
    }
    Arc::new(serde_json::from_value(d).unwrap())
}

/// `v wanted available [desired/max]`: one set of template version `v`; version 0 is the current one.
fn sets(text: &str, d: &Deployment) -> Vec<Arc<ReplicaSet>> {
    let lines = text.split(',').map(str::trim).filter(|l| !l.is_empty());
    lines
        .map(|line| {
            let f: Vec<&str> = line.split_whitespace().collect();
            let n = |i: usize| f[i].parse::<i64>().unwrap();
            let sizes = size_annotations(d);
            let (desired, max) = match f.get(3) {
                Some(s) => s.split_once('/').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap(),
                None => (sizes[DESIRED].clone(), sizes[MAX].clone()),
            };
            let revision = if n(0) == 0 { 2 } else { -n(0) };
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": format!("v{}", f[0]), "namespace": "d", "uid": f[0],
                        "creationTimestamp": format!("2020-01-01T00:00:{:02}Z", 50 - n(0)),
                        "annotations": {REVISION: if n(0) == 0 { revision } else { 1 }.to_string(), DESIRED: desired, MAX: max}},
                    "spec": {"replicas": n(1), "selector": {}, "template":
                        {"metadata": {"labels": {"a": "b", HASH_LABEL: "x"}}, "spec": {"v": n(0)}}},
                    "status": {"replicas": n(1), "availableReplicas": n(2)},
                }))
                .unwrap(),
            )
        })
        .collect()
}

fn show(steps: &[Step]) -> String {
    let one = |s: &Step| match s {
        Step::Create { body, .. } => format!("create {}", body["spec"]["replicas"]),
        Step::Annotate { set, .. } => format!("annotate {}", set.name()),
        Step::AnnotateDeployment(_) => "annotate".into(),
        Step::Condition(Condition { reason, .. }) => reason.clone().unwrap_or_default(),
        Step::Scale { set, to } => format!("{}={to}", set.name()),
        Step::Delete { set } => format!("delete {}", set.name()),
    };
    steps.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn steps_of_rollouts() {
    let rolling = |replicas: i32, surge: Value, down: Value| {
        json!({"replicas": replicas, "strategy": {"type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": down}}})
    };
    let p25 = || json!("25%");
    let recreate = || json!({"replicas": 3, "strategy": {"type": "Recreate"}});
    let history = json!({"replicas": 1, "revisionHistoryLimit": 1});
    let paused = json!({"replicas": 4, "paused": true});
    for (spec, state, pods_run, expected) in [
        (rolling(4, p25(), p25()), "", false, "create 4"),
        (rolling(4, p25(), p25()), "1 4 4", true, "create 1"),
        (rolling(4, p25(), p25()), "1 4 4, 0 1 0", true, "v1=3"),
        (rolling(4, p25(), p25()), "1 3 3, 0 1 0", true, "v0=2"),
        (rolling(4, p25(), p25()), "1 3 3, 0 2 0", true, ""),
        (rolling(4, p25(), p25()), "1 3 3, 0 2 1", true, "v1=2"),
        (rolling(4, p25(), p25()), "1 0 0, 0 4 4", true, ""),
        (rolling(4, json!(0), json!(0)), "1 4 4, 0 0 0", true, "v1=3"),
        (rolling(1, p25(), p25()), "1 1 1, 0 0 0", true, "v0=1"),
        (rolling(1, p25(), p25()), "1 1 1, 0 1 0", true, ""),
        (rolling(4, json!(0), json!(1)), "1 4 2, 0 0 0", true, "v1=3"),
        (rolling(10, json!(0), json!("50%")), "2 3 0, 1 7 7, 0 0 0", true, "v2=0 v1=5"),
        (rolling(2, p25(), p25()), "0 4 4 4/5", true, "v0=2"),
        (rolling(20, p25(), json!(0)), "1 8 8 10/13, 0 5 5 10/13", true, "v1=15 v0=10"),
        (rolling(0, p25(), p25()), "1 2 2 4/5, 0 3 3 4/5", true, "v0=0 v1=0"),
        (recreate(), "", false, "create 3"),
        (recreate(), "1 3 3", true, "v1=0"),
        (recreate(), "1 0 0", true, ""),
        (recreate(), "1 0 0", false, "create 3"),
        (history, "3 0 0, 2 0 0, 1 0 0, 0 1 1", false, "delete v3 delete v2"),
        (paused, "1 4 4", true, "DeploymentPaused"),
    ] {
        let d = deployment(spec);
        let fleet = Fleet::new(&d, sets(state, &d), &|_| pods_run);
        assert_eq!(show(&steps(&fleet)), expected, "{state} of {:?}", d.spec.replicas);
    }
}

#[test]
fn rollback_makes_an_old_set_current_and_keeps_its_history() {
    let d = deployment(json!({"replicas": 1}));
    let mut all = sets("1 1 1, 0 0 0", &d);
    let set_revision = |s: &mut Arc<ReplicaSet>, r: &str| {
        let s = Arc::make_mut(s);
        s.metadata.annotations.get_or_insert_default().insert(REVISION.into(), r.into());
    };
    set_revision(&mut all[0], "2");
    set_revision(&mut all[1], "1");
    let fleet = Fleet::new(&d, all, &|_| true);
    let plan = steps(&fleet);
    assert_eq!(show(&plan), "annotate v0 annotate");
    let Step::Annotate { patch, .. } = &plan[0] else { panic!("not an annotation") };
    assert_eq!(patch["metadata"]["annotations"][REVISION], "3");
    assert_eq!(patch["metadata"]["annotations"][REVISION_HISTORY], "1");
}
