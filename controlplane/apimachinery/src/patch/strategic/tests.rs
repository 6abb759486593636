//! Cases of upstream's behaviour, and the property that a diff applied gives the target.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::Schemas;
use crate::status::ApiError;

fn patched(kind: (&str, &str), mut target: Value, patch: Value) -> Result<Value, PatchError> {
    let schema = Schemas::builtin().get(kind.0, "v1", kind.1).unwrap();
    apply(&mut target, &patch, &schema).map(|()| target)
}

fn spec(target: Value, patch: Value) -> Value {
    let result = patched(("", "Pod"), json!({"spec": target}), json!({"spec": patch}));
    result.unwrap()["spec"].clone()
}

#[test]
fn lists_merge_by_their_keys() {
    let target = json!({"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "2"}]});
    let cases = [
        (
            json!({"containers": [{"name": "a", "image": "9"}]}),
            json!([{"name": "a", "image": "9", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "2"}]),
        ),
        (
            json!({"containers": [{"name": "c", "image": "3", "command": null}]}),
            // What the server did not know comes first.
            json!([{"name": "c", "image": "3"}, {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "2"}]),
        ),
        (
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!([{"name": "b", "image": "2"}]),
        ),
        (json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}), json!([{"name": "z"}])),
        (
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a", "image": null}]}),
            json!([{"name": "b", "image": "2"}, {"name": "a", "env": [{"name": "X", "value": "1"}]}]),
        ),
        (
            json!({"$setElementOrder/containers": [{"name": "n"}, {"name": "b"}], "containers": [{"name": "n"}]}),
            json!([{"name": "n"}, {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "2"}]),
        ),
        (
            json!({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "$patch": "delete"}]}]}),
            json!([{"name": "a", "image": "1", "env": [{"name": "Y", "value": "2"}]}, {"name": "b", "image": "2"}]),
        ),
    ];
    for (patch, want) in cases {
        assert_eq!(spec(target.clone(), patch.clone())["containers"], want, "{patch}");
    }
}

#[test]
fn lists_without_a_key_are_replaced_and_sets_are_merged() {
    let target = json!({"tolerations": [{"key": "a"}], "nodeSelector": {"x": "1", "y": "2"}});
    assert_eq!(
        spec(target, json!({"tolerations": [{"key": "b"}], "nodeSelector": {"x": null, "z": "3"}})),
        json!({"tolerations": [{"key": "b"}], "nodeSelector": {"y": "2", "z": "3"}})
    );
    let meta = |target: Value, patch: Value| {
        let result = patched(("", "Pod"), json!({"metadata": target}), json!({"metadata": patch}));
        result.unwrap()["metadata"].clone()
    };
    assert_eq!(
        meta(json!({"finalizers": ["a", "b"]}), json!({"finalizers": ["c", "a"]})),
        json!({"finalizers": ["c", "a", "b"]})
    );
    assert_eq!(
        meta(
            json!({"finalizers": ["a", "b", "c"]}),
            json!({"$deleteFromPrimitiveList/finalizers": ["b"], "$setElementOrder/finalizers": ["c", "a"]})
        ),
        json!({"finalizers": ["c", "a"]})
    );
    assert_eq!(meta(json!({}), json!({"$deleteFromPrimitiveList/finalizers": ["b"]})), json!({}));
}

#[test]
fn directives_of_maps() {
    let target = json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}, "hostNetwork": true});
    assert_eq!(
        spec(target.clone(), json!({"securityContext": {"$patch": "replace", "fsGroup": 3}})),
        json!({"securityContext": {"fsGroup": 3}, "hostNetwork": true})
    );
    assert_eq!(
        spec(target.clone(), json!({"securityContext": {"$patch": "delete"}})),
        json!({"securityContext": {}, "hostNetwork": true})
    );
    assert_eq!(
        spec(json!({}), json!({"securityContext": {"$retainKeys": ["fsGroup"], "fsGroup": 3}})),
        json!({"securityContext": {"fsGroup": 3}})
    );
    let strategy =
        json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(
        patched(("apps", "Deployment"), strategy, patch).unwrap(),
        json!({"spec": {"strategy": {"type": "Recreate"}}})
    );
    let volumes = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    assert_eq!(
        spec(
            volumes,
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]})
        ),
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]})
    );
}

#[test]
fn what_upstream_refuses_is_refused() {
    let pod = json!({"metadata": {"finalizers": ["a"]}, "spec": {"containers": [{"name": "a"}]}});
    let cases = [
        (json!({"spec": {"containers": [{"image": "x"}]}}), 422),
        (json!({"spec": {"containers": [{"name": "a", "$patch": "shrink"}]}}), 422),
        (json!({"spec": {"$patch": "shrink"}}), 422),
        (json!({"spec": {"$retainKeys": ["x"], "hostNetwork": true}}), 400),
        (json!({"spec": {"$setElementOrder/containers": {}}}), 400),
        (
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]}}),
            400,
        ),
        (json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "a"}}), 400),
        (json!([]), 400),
    ];
    for (patch, code) in cases {
        let error = patched(("", "Pod"), pod.clone(), patch.clone()).unwrap_err();
        assert_eq!(ApiError::from(error).code, code, "{patch}");
    }
}

fn any_env() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[A-C]", "[0-9]", 0..3).prop_map(|map| {
        map.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
    })
}

fn any_container(name: &str) -> impl Strategy<Value = Value> + use<> {
    let name = name.to_owned();
    (any_env(), prop::option::of("[a-c]"), prop::collection::vec("[a-b]", 0..3)).prop_map(
        move |(env, image, args)| {
            let mut container = json!({"name": name, "env": env, "args": args});
            if let Some(image) = image {
                container["image"] = image.into();
            }
            container
        },
    )
}

fn any_pod() -> impl Strategy<Value = Value> {
    let containers = (any_container("a"), any_container("b"), any_container("c"))
        .prop_map(|(a, b, c)| vec![a, b, c])
        .prop_flat_map(|all| prop::sample::subsequence(all, 0..=3).prop_shuffle());
    let finalizers = prop::sample::subsequence(vec!["x", "y", "z"], 0..=3).prop_shuffle();
    let labels = prop::option::of(prop::collection::btree_map("[a-c]", "[0-9]", 0..3));
    let volume = prop::option::of(prop_oneof![
        Just(json!([{"name": "v", "emptyDir": {}}])),
        Just(json!([{"name": "v", "hostPath": {"path": "/x"}}])),
    ]);
    (containers, finalizers, labels, volume).prop_map(|(containers, finalizers, labels, volume)| {
        let mut pod =
            json!({"metadata": {"finalizers": finalizers}, "spec": {"containers": containers}});
        if let Some(labels) = labels {
            pod["metadata"]["labels"] = json!(labels);
        }
        if let Some(volume) = volume {
            pod["spec"]["volumes"] = volume;
        }
        pod
    })
}

proptest! {
    #[test]
    fn a_diff_applied_gives_the_target(from in any_pod(), to in any_pod()) {
        let schema = Schemas::builtin().get("", "v1", "Pod").unwrap();
        let patch = diff(&from, &to, &schema);
        let mut result = from.clone();
        apply(&mut result, &patch, &schema).unwrap();
        prop_assert_eq!(&result, &to, "{}", patch);
        prop_assert_eq!(diff(&to, &to, &schema), json!({}));
    }

    #[test]
    fn an_empty_patch_changes_nothing(pod in any_pod()) {
        prop_assert_eq!(patched(("", "Pod"), pod.clone(), json!({})).unwrap(), pod);
    }
}
