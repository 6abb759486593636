//! Who may do what, and what admission makes of objects, through the whole request path.
#![cfg(test)]

mod support;

use apiserver::User;
use serde_json::{Value, json};
use support::{Server, admin};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "a", "image": "x"}]}})
}

fn node(name: &str) -> User {
    User::authenticated(format!("system:node:{name}"), &["system:nodes"])
}

#[tokio::test]
async fn a_pod_gets_its_account_token_priority_and_tolerations() {
    let server = Server::start().await;
    let made = server.post(PODS, &pod("a")).await;
    let spec = &made["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["priority"], 0);
    assert_eq!(spec["preemptionPolicy"], "PreemptLowerPriority");
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    let volume = &spec["volumes"][0];
    assert!(volume["name"].as_str().unwrap().starts_with("kube-api-access-"));
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume["name"]);
    let token = &volume["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["expirationSeconds"], 3607);
}

#[tokio::test]
async fn refusals_name_who_what_and_why() {
    let server = Server::start().await.with_user(User::authenticated("jane", &[]));
    let (code, status) = server.call("GET", PODS, None).await;
    assert_eq!(code, 403);
    let message = r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default""#;
    assert_eq!(status["message"], message);
    let server = server.with_user(admin());
    let (code, status) = server.call("DELETE", "/api/v1/namespaces/default", None).await;
    assert_eq!(code, 403);
    let message = r#"namespaces "default" is forbidden: this namespace may not be deleted"#;
    assert_eq!(status["message"], message);
    let mut wrong = pod("a");
    wrong["spec"]["priorityClassName"] = json!("nope");
    let (code, status) = server.call("POST", PODS, Some(&wrong)).await;
    assert_eq!(code, 403);
    let message = r#"pods "a" is forbidden: no PriorityClass with name nope was found"#;
    assert_eq!(status["message"], message);
}

#[tokio::test]
async fn a_node_keeps_to_itself() {
    let server = Server::start().await;
    let mut placed = pod("a");
    placed["spec"]["nodeName"] = json!("one");
    server.post(PODS, &placed).await;
    server.post("/api/v1/nodes", &json!({"metadata": {"name": "two"}})).await;

    let server = server.with_user(node("one"));
    let made = server.post("/api/v1/nodes", &json!({"metadata": {"name": "one"}})).await;
    assert_eq!(made["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    let stranger = json!({"metadata": {"name": "three"}});
    assert_eq!(server.call("POST", "/api/v1/nodes", Some(&stranger)).await.0, 403);
    let label = json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "y"}}});
    assert_eq!(server.call("PATCH", "/api/v1/nodes/one", Some(&label)).await.0, 403);
    let label = json!({"metadata": {"labels": {"example.com/x": "y"}}});
    assert_eq!(server.call("PATCH", "/api/v1/nodes/one", Some(&label)).await.0, 200);
    let (code, status) = server.call("PATCH", "/api/v1/nodes/two", Some(&label)).await;
    assert_eq!(code, 403, "{status}");

    let ready = json!({"status": {"phase": "Running"}});
    let own = format!("{PODS}/a/status");
    assert_eq!(server.call("PATCH", &own, Some(&ready)).await.0, 200);
    let server = server.with_user(node("two"));
    assert_eq!(server.call("PATCH", &own, Some(&ready)).await.0, 403);
    assert_eq!(server.call("DELETE", &format!("{PODS}/a"), None).await.0, 403);
    assert_eq!(server.call("DELETE", "/api/v1/nodes/one", None).await.0, 403);
    assert_eq!(server.call("DELETE", "/api/v1/nodes/two", None).await.0, 200);
    assert_eq!(server.call("POST", PODS, Some(&pod("b"))).await.0, 403);
}
