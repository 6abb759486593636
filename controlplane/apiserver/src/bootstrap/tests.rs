//! The tables against what a real API server of the version creates, and the repair rules.

use super::objects::{self, BootstrapObject};
use super::reconcile::plan_repair;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn facts(name: &str) -> Option<Value> {
    let dir = std::env::var("FLOTILLA_SPEC_DIR")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../spec").to_owned());
    let path = std::path::Path::new(&dir).join(name);
    let Ok(text) = std::fs::read(&path) else {
        println!("SKIPPED: no {}", path.display());
        return None;
    };
    Some(serde_json::from_slice(&text).unwrap())
}

fn ours() -> Vec<BootstrapObject> {
    objects::all(&["10.96.0.0/12".to_owned()])
}

fn key(value: &Value) -> String {
    let part = |name: &str| value["metadata"][name].as_str().unwrap_or_default();
    format!("{}/{}", part("namespace"), part("name"))
}

/// What we add on purpose, taken out again.
fn as_upstream(object: &BootstrapObject) -> Value {
    let mut value = object.value.clone();
    let map = value.as_object_mut().unwrap();
    map.remove("apiVersion");
    map.remove("kind");
    let name = object.name().to_owned();
    if object.prefix == "clusterrolebindings"
        && let Some(subjects) = map.get_mut("subjects").and_then(Value::as_array_mut)
    {
        subjects.retain(|subject| {
            !(name == "system:node-proxier" && subject["name"] == "system:nodes"
                || name.starts_with("system:controller:")
                    && subject["name"] == "system:kube-controller-manager")
        });
    }
    map["metadata"].as_object_mut().unwrap().remove("generation");
    value
}

#[test]
fn tables_are_upstreams() {
    let Some(facts) = facts("bootstrap-objects.json") else { return };
    let mut compared = 0;
    for (path, list) in facts.as_object().unwrap() {
        let resource = path.rsplit('/').next().unwrap();
        if path.contains("flowcontrol") {
            continue;
        }
        let mine: BTreeMap<String, Value> = ours()
            .iter()
            .filter(|object| object.prefix == resource)
            .filter(|object| !object.name().starts_with("flotilla:"))
            .map(|object| (key(&object.value), as_upstream(object)))
            .collect();
        let mut theirs = BTreeMap::new();
        for fact in list.as_array().unwrap() {
            let mut fact = fact.clone();
            if let Some(condition) = fact.pointer_mut("/status/conditions/0") {
                condition.as_object_mut().unwrap().remove("lastTransitionTime");
            }
            theirs.insert(key(&fact), fact);
        }
        assert_eq!(
            mine.keys().collect::<Vec<_>>(),
            theirs.keys().collect::<Vec<_>>(),
            "names of {resource}"
        );
        for (name, theirs) in &theirs {
            assert_eq!(&mine[name], theirs, "{resource} {name}");
            compared += 1;
        }
    }
    assert!(compared > 100, "only {compared} objects compared");
}

#[test]
fn repair_adds_and_never_removes() {
    let objects = ours();
    let role = objects.iter().find(|object| object.name() == "system:basic-user").unwrap();
    assert_eq!(plan_repair(&role.value, &role.value), None);
    let mut poorer = role.value.clone();
    poorer["rules"] = json!([{"verbs": ["get"], "apiGroups": ["x"], "resources": ["y"]}]);
    let repaired = plan_repair(&poorer, &role.value).unwrap();
    assert_eq!(repaired["rules"][0], poorer["rules"][0]);
    assert!(repaired["rules"].as_array().unwrap().len() > 1);
    assert_eq!(plan_repair(&repaired, &role.value), None, "a repair is repaired once");
    poorer["metadata"]["annotations"][super::spec::AUTOUPDATE] = json!("false");
    assert_eq!(plan_repair(&poorer, &role.value), None);
}

#[test]
fn repair_of_a_binding_adds_subjects() {
    let objects = ours();
    let binding = objects
        .iter()
        .find(|object| {
            object.prefix == "clusterrolebindings" && object.name() == "system:discovery"
        })
        .unwrap();
    let mut poorer = binding.value.clone();
    poorer["subjects"] = json!([{"kind": "Group", "name": "mine"}]);
    let repaired = plan_repair(&poorer, &binding.value).unwrap();
    assert_eq!(repaired["subjects"].as_array().unwrap().len(), 2);
}
