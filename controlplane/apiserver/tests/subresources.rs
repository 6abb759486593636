//! Subresources, as a client sees them.

#[cfg(test)]
mod support;

use serde_json::{Value, json};
use support::Server;

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"a": "b"}},
           "spec": {"containers": [{"name": "c", "image": "busybox"}]}})
}

#[tokio::test]
async fn a_deployment_is_scaled() {
    let s = Server::start().await;
    let object = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    s.post("/apis/apps/v1/namespaces/default/deployments", &object).await;
    let path = "/apis/apps/v1/namespaces/default/deployments/d/scale";
    let mut scale = s.get(path).await;
    assert_eq!((&scale["kind"], &scale["status"]["selector"]), (&json!("Scale"), &json!("a=b")));
    scale["spec"]["replicas"] = json!(4);
    let (code, scale) = s.call("PUT", path, Some(&scale)).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(4)), "{scale}");
    let (code, scale) = s.call("PATCH", path, Some(&json!({"spec": {"replicas": 2}}))).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(2)), "{scale}");
    let deployment = s.get("/apis/apps/v1/namespaces/default/deployments/d").await;
    assert_eq!(
        (&deployment["spec"]["replicas"], &deployment["metadata"]["generation"]),
        (&json!(2), &json!(3))
    );
    let (code, _) = s.call("PATCH", path, Some(&json!({"spec": {"replicas": -1}}))).await;
    assert_eq!(code, 422);
}

#[tokio::test]
async fn a_pod_is_bound_and_evicted() {
    let s = Server::start().await;
    s.post(PODS, &pod("p")).await;
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}});
    let path = format!("{PODS}/p/binding");
    let (code, answer) = s.call("POST", &path, Some(&binding)).await;
    assert_eq!((code, &answer["status"]), (201, &json!("Success")), "{answer}");
    assert_eq!(s.call("POST", &path, Some(&binding)).await.0, 409);
    let bound = s.get(&format!("{PODS}/p")).await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");

    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    s.call("PATCH", &format!("{PODS}/p/status"), Some(&status)).await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}});
    s.post(budgets, &budget).await;
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let path = format!("{PODS}/p/eviction");
    let (code, answer) = s.call("POST", &path, Some(&eviction)).await;
    assert_eq!((code, &answer["reason"]), (429, &json!("TooManyRequests")), "{answer}");
    let allow = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2,
        "desiredHealthy": 1, "expectedPods": 2}});
    let (code, _) = s.call("PATCH", &format!("{budgets}/b/status"), Some(&allow)).await;
    assert_eq!(code, 200);
    let mut eviction = eviction;
    eviction["deleteOptions"] = json!({"preconditions": {"uid": "other"}});
    assert_eq!(s.call("POST", &path, Some(&eviction)).await.0, 409);
    let kept = s.get(&format!("{budgets}/b")).await;
    assert_eq!(kept["status"]["disruptionsAllowed"], 1, "nothing was spent");
    let version = &s.get(&format!("{PODS}/p")).await["metadata"]["resourceVersion"];
    eviction["deleteOptions"] = json!({"preconditions": {"resourceVersion": version}});
    let (code, answer) = s.call("POST", &path, Some(&eviction)).await;
    assert_eq!(code, 201, "{answer}");
    let evicted = s.get(&format!("{PODS}/p")).await;
    assert!(evicted["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(s.get(&format!("{budgets}/b")).await["status"]["disruptionsAllowed"], 0);
}

#[tokio::test]
async fn ephemeral_containers_and_resizes() {
    let s = Server::start().await;
    let mut placed = pod("p");
    placed["spec"]["nodeName"] = json!("n1");
    s.post(PODS, &placed).await;
    let patch = json!({"spec": {"ephemeralContainers": [{"name": "dbg", "image": "busybox"}]}});
    let strategic = ("application/strategic-merge-patch+json", "");
    let path = format!("{PODS}/p/ephemeralcontainers");
    let (code, answer) = s.call_with("PATCH", &path, strategic, Some(&patch)).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(
        answer["spec"]["ephemeralContainers"][0]["terminationMessagePath"],
        "/dev/termination-log"
    );
    let patch =
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
    let (code, _) =
        s.call_with("PATCH", &format!("{PODS}/p/resize"), strategic, Some(&patch)).await;
    assert_eq!(code, 422, "the QoS class may not change");

    let mut limited = pod("q");
    limited["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
    s.post(PODS, &limited).await;
    let resize = |amounts: Value| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": amounts}}]}});
    for (amounts, want) in [
        (json!({"cpu": "-1"}), 422),
        (json!({"example.com/gpu": "1"}), 422),
        (json!({"cpu": "2"}), 200),
    ] {
        let patch = resize(amounts);
        let path = format!("{PODS}/q/resize");
        let (code, answer) = s.call_with("PATCH", &path, strategic, Some(&patch)).await;
        assert_eq!(code, want, "{patch} {answer}");
    }
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "3"}}]}});
    s.post("/api/v1/namespaces/default/limitranges", &range).await;
    let patch = resize(json!({"cpu": "4"}));
    let (code, answer) =
        s.call_with("PATCH", &format!("{PODS}/q/resize"), strategic, Some(&patch)).await;
    assert_eq!(code, 403, "{answer}");
    let patch = json!({"spec": {"ephemeralContainers": [{"name": "Bad_Name"}]}});
    let (code, answer) = s
        .call_with("PATCH", &format!("{PODS}/q/ephemeralcontainers"), strategic, Some(&patch))
        .await;
    assert_eq!(code, 422, "{answer}");
}

#[tokio::test]
async fn a_token_is_made_and_known() {
    let s = Server::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let (code, answer) =
        s.call("POST", accounts, Some(&json!({"metadata": {"name": "builder"}}))).await;
    assert_eq!(code, 201, "{answer}");
    let answer = s.post(&format!("{accounts}/builder/token"), &json!({"spec": {}})).await;
    let token = answer["status"]["token"].as_str().unwrap();
    let mut headers = http::HeaderMap::new();
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    let now = jiff::Timestamp::now();
    let user = s.api.authenticator().authenticate(None, &headers, now).unwrap();
    assert_eq!(user.name, "system:serviceaccount:default:builder");
}
