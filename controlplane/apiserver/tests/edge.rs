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
    assert!(!made.to_string().contains("null"), "clients take null for no list: {made}");
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
    let eviction = json!({"metadata": {"name": "a"}});
    let (code, status) = server.call("POST", &format!("{PODS}/a/eviction"), Some(&eviction)).await;
    assert_eq!(code, 403, "{status}");
    assert_eq!(server.call("DELETE", "/api/v1/nodes/one", None).await.0, 403);
    assert_eq!(server.call("DELETE", "/api/v1/nodes/two", None).await.0, 200);
    assert_eq!(server.call("POST", PODS, Some(&pod("b"))).await.0, 403);
    let server = server.with_user(admin());
    let kept = server.get(&format!("{PODS}/a")).await;
    assert!(!kept.to_string().contains("DisruptionTarget"), "a refused eviction leaves no trace");
}

#[tokio::test]
async fn a_pods_token_is_its_accounts_until_the_pod_is_gone() {
    let server = Server::start().await;
    let mut placed = pod("a");
    placed["spec"]["nodeName"] = json!("one");
    let made = server.post(PODS, &placed).await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let request = |uid: &Value| {
        json!({"spec": {"expirationSeconds": 3607, "boundObjectRef": {
            "apiVersion": "v1", "kind": "Pod", "name": "a", "uid": uid}}})
    };
    let wrong = request(&json!("nobody"));
    assert_eq!(server.call("POST", path, Some(&wrong)).await.0, 409);
    let short = json!({"spec": {"expirationSeconds": 599}});
    let (code, status) = server.call("POST", path, Some(&short)).await;
    assert_eq!(code, 422, "{status}");
    assert_eq!(status["details"]["causes"][0]["field"], "spec.expirationSeconds");

    let server = server.with_user(node("two"));
    let wanted = request(&made["metadata"]["uid"]);
    assert_eq!(server.call("POST", path, Some(&wanted)).await.0, 403);
    let server = server.with_user(node("one"));
    let (code, _) = server.call("POST", path, Some(&json!({"spec": {}}))).await;
    assert_eq!(code, 403, "a node's token is always bound to a pod");
    let token = server.post(path, &wanted).await["status"]["token"].clone();

    let server = server.with_user(admin());
    let review = "/apis/authentication.k8s.io/v1/tokenreviews";
    let asked = json!({"spec": {"token": token}});
    let status = server.post(review, &asked).await["status"].clone();
    assert_eq!(status["authenticated"], true, "{status}");
    let user = &status["user"];
    assert_eq!(user["username"], "system:serviceaccount:default:default");
    assert_eq!(user["extra"]["authentication.kubernetes.io/pod-name"][0], "a");
    let gone = format!("{PODS}/a?gracePeriodSeconds=0");
    assert_eq!(server.call("DELETE", &gone, None).await.0, 200);
    let status = server.post(review, &asked).await["status"].clone();
    assert_ne!(status["authenticated"], true);
    assert!(status["error"].as_str().unwrap().contains("pod a does not exist"));
    let keys = server.get("/openid/v1/jwks").await;
    assert_eq!(keys["keys"][0]["crv"], "P-256");
}

#[tokio::test]
async fn reviews_answer_what_authorization_would() {
    let server = Server::start().await.with_user(User::authenticated("jane", &["dev"]));
    let who = server.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({})).await;
    assert_eq!(who["status"]["userInfo"]["username"], "jane");
    assert_eq!(who["status"]["userInfo"]["groups"], json!(["dev", "system:authenticated"]));
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let ask = json!({"spec": {"resourceAttributes": {
        "verb": "create", "resource": "selfsubjectreviews", "group": "authentication.k8s.io"}}});
    let status = server.post(path, &ask).await["status"].clone();
    assert_eq!(status["allowed"], true);
    let reason = r#"RBAC: allowed by ClusterRoleBinding "system:basic-user" of ClusterRole "system:basic-user" to Group "system:authenticated""#;
    assert_eq!(status["reason"], reason);
    let ask = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "secrets"}}});
    assert_eq!(server.post(path, &ask).await["status"], json!({"allowed": false}));
    let (code, _) = server.call("POST", path, Some(&json!({"spec": {}}))).await;
    assert_eq!(code, 422);
    let others = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    assert_eq!(server.call("POST", others, Some(&ask)).await.0, 403);
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let rules = server.post(path, &json!({"spec": {"namespace": "default"}})).await;
    assert_eq!(rules["status"]["incomplete"], false);
    assert!(!rules["status"]["nonResourceRules"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn a_quota_is_exact_at_every_write() {
    let server = Server::start().await;
    server.post(PODS, &pod("before")).await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let hard = json!({"pods": "2", "requests.cpu": "1", "count/configmaps": "9"});
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
    let made = server.post(quotas, &quota).await;
    assert_eq!(made["status"]["used"]["pods"], "1", "{made}");
    assert_eq!(made["status"]["hard"], hard);

    let mut wanted = pod("a");
    let (code, status) = server.call("POST", PODS, Some(&wanted)).await;
    assert_eq!(code, 403);
    let message = r#"pods "a" is forbidden: failed quota: q: must specify requests.cpu for: a"#;
    assert_eq!(status["message"], message);
    wanted["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "600m"}});
    server.post(PODS, &wanted).await;
    let used = || async { server.get(&format!("{quotas}/q")).await["status"]["used"].clone() };
    let now = used().await;
    assert_eq!((&now["pods"], &now["requests.cpu"]), (&json!("2"), &json!("600m")));

    wanted["metadata"]["name"] = json!("b");
    let (code, status) = server.call("POST", PODS, Some(&wanted)).await;
    assert_eq!(code, 403);
    let message = r#"pods "b" is forbidden: exceeded quota: q, requested: pods=1,requests.cpu=600m, used: pods=2,requests.cpu=600m, limited: pods=2,requests.cpu=1"#;
    assert_eq!(status["message"], message);
    assert_eq!(server.call("DELETE", &format!("{PODS}/a"), None).await.0, 200);
    let now = used().await;
    assert_eq!((&now["pods"], &now["requests.cpu"]), (&json!("1"), &json!("0")));
    server.post(PODS, &wanted).await;
    let done = json!({"status": {"phase": "Succeeded"}});
    assert_eq!(server.call("PATCH", &format!("{PODS}/b/status"), Some(&done)).await.0, 200);
    assert_eq!(used().await["pods"], "1", "a pod that has ended uses nothing");
    assert_eq!(server.call("DELETE", &format!("{quotas}/q"), None).await.0, 200);
    assert_eq!(server.call("GET", &format!("{quotas}/q"), None).await.0, 404);
}

#[tokio::test]
async fn many_at_once_do_not_exceed_a_quota() {
    let server = Server::start().await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/configmaps": "5"}}});
    server.post(quotas, &quota).await;
    let path = "/api/v1/namespaces/default/configmaps";
    let create = async |i: usize| {
        let map = json!({"metadata": {"name": format!("m{i}")}});
        server.call("POST", path, Some(&map)).await.0
    };
    let codes = futures::future::join_all((0..12).map(create)).await;
    assert_eq!(codes.iter().filter(|code| **code == 201).count(), 5, "{codes:?}");
    let used = server.get(&format!("{quotas}/q")).await["status"]["used"].clone();
    assert_eq!(used["count/configmaps"], "5");
}

#[tokio::test]
async fn an_aggregated_role_shows_what_it_grants() {
    let server = Server::start().await;
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let view = server.get(&format!("{path}/view")).await;
    assert!(view["rules"].as_array().unwrap().len() >= 10, "{view}");
    let label = "rbac.authorization.k8s.io/aggregate-to-view";
    let part = json!({"metadata": {"name": "x", "labels": {label: "true"}},
        "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]});
    server.post(path, &part).await;
    let binding = json!({"metadata": {"name": "b"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    server.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;
    server.post("/api/v1/nodes", &json!({"metadata": {"name": "n"}})).await;
    let server = server.with_user(User::authenticated("jane", &[]));
    assert_eq!(server.call("GET", "/api/v1/nodes/n", None).await.0, 200);
}

#[tokio::test]
async fn a_pod_waits_for_the_default_account_of_a_new_namespace() {
    let server = Server::start().await;
    server.post("/api/v1/namespaces", &json!({"metadata": {"name": "new"}})).await;
    let made = async {
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        let account = json!({"metadata": {"name": "default"}});
        server.post("/api/v1/namespaces/new/serviceaccounts", &account).await
    };
    let a = pod("a");
    let asked = server.post("/api/v1/namespaces/new/pods", &a);
    let (pod, _) = futures::join!(asked, made);
    assert_eq!(pod["spec"]["serviceAccountName"], "default");
}

/// Gives a user rights by a ClusterRole of its own.
async fn grant(server: &Server, user: &str, rules: Value) {
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": user}, "rules": rules});
    server.post(&format!("{RBAC}/clusterroles"), &role).await;
    let binding = json!({"metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]});
    server.post(&format!("{RBAC}/clusterrolebindings"), &binding).await;
}

#[tokio::test]
async fn what_is_watched_is_what_was_authorized() {
    let server = Server::start().await;
    let rules = json!([
        {"verbs": ["watch"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"]},
        {"verbs": ["watch", "patch"], "apiGroups": [""], "resources": ["pods/exec", "pods/proxy", "nodes/proxy"]},
    ]);
    grant(&server, "jane", rules).await;
    server.post("/api/v1/namespaces/default/secrets", &json!({"metadata": {"name": "mine"}})).await;
    let server = server.with_user(User::authenticated("jane", &[]));
    let path = "/api/v1/watch/namespaces/default/secrets/mine";
    for selector in ["type!%3Dzzz", "metadata.name%3Dother", "metadata.name!%3Dmine"] {
        let (code, status) =
            server.call("GET", &format!("{path}?fieldSelector={selector}"), None).await;
        let message = "fieldSelector metadata.name doesn't match requested name";
        assert_eq!((code, status["message"].as_str()), (400, Some(message)), "{selector}");
    }
    for query in ["", "?fieldSelector=metadata.name%3Dmine,type!%3Dzzz"] {
        let mut watch = server.watch(&format!("{path}{query}")).await;
        assert_eq!(watch.brief().await, "ADDED mine");
    }
    for (method, path) in [
        ("GET", "/api/v1/watch/namespaces/default/pods/p/exec?command=sh"),
        ("GET", "/api/v1/watch/namespaces/default/pods/p/proxy"),
        ("GET", "/api/v1/watch/nodes/n/proxy/pods"),
        ("PATCH", "/api/v1/namespaces/default/pods/p/exec?command=sh"),
    ] {
        assert_eq!(server.call(method, path, None).await.0, 405, "{method} {path}");
    }
}

#[tokio::test]
async fn an_update_that_creates_needs_both_rights() {
    let server = Server::start().await;
    let rules = json!([{"verbs": ["update"], "apiGroups": [""], "resources": ["endpoints"]}]);
    grant(&server, "jane", rules).await;
    let path = "/api/v1/namespaces/default/endpoints/a";
    let object = json!({"metadata": {"name": "a"}});
    let server = server.with_user(User::authenticated("jane", &[]));
    let (code, status) = server.call("PUT", path, Some(&object)).await;
    assert_eq!(code, 403, "{status}");
    assert!(status["message"].as_str().unwrap().contains("cannot create resource"), "{status}");
    let server = server.with_user(admin());
    assert_eq!(server.call("PUT", path, Some(&object)).await.0, 201);
    let server = server.with_user(User::authenticated("jane", &[]));
    assert_eq!(server.call("PUT", path, Some(&object)).await.0, 200);
}

#[tokio::test]
async fn a_label_that_aggregates_a_role_is_a_grant() {
    let server = Server::start().await;
    let rules = json!([{"verbs": ["patch"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"]}]);
    grant(&server, "jane", rules).await;
    let server = server.with_user(User::authenticated("jane", &[]));
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin";
    let label = "rbac.authorization.k8s.io/aggregate-to-admin";
    let patch = json!({"metadata": {"labels": {label: "true"}}});
    assert_eq!(server.call("PATCH", path, Some(&patch)).await.0, 403);
    let patch = json!({"metadata": {"finalizers": ["x.io/hold"]}});
    assert_eq!(server.call("PATCH", path, Some(&patch)).await.0, 200);
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/admin";
    let patch = json!({"aggregationRule": null, "rules": []});
    assert_eq!(server.call("PATCH", path, Some(&patch)).await.0, 403);
}

#[tokio::test]
async fn pods_from_before_a_quota_live_on() {
    let server = Server::start().await;
    server.post(PODS, &pod("a")).await;
    let quota =
        json!({"metadata": {"name": "q"}, "spec": {"hard": {"requests.cpu": "1", "pods": "5"}}});
    server.post("/api/v1/namespaces/default/resourcequotas", &quota).await;
    assert_eq!(server.call("POST", PODS, Some(&pod("b"))).await.0, 403);
    let done = json!({"status": {"phase": "Succeeded"}});
    let (code, status) = server.call("PATCH", &format!("{PODS}/a/status"), Some(&done)).await;
    assert_eq!(code, 200, "{status}");
}

#[tokio::test]
async fn one_priority_class_is_the_default() {
    let server = Server::start().await;
    let path = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let class = |name: &str, default: bool| json!({"metadata": {"name": name}, "value": 1, "globalDefault": default});
    server.post(path, &class("a", true)).await;
    server.post(path, &class("b", false)).await;
    let default = json!({"globalDefault": true});
    assert_eq!(server.call("PATCH", &format!("{path}/b"), Some(&default)).await.0, 403);
    assert_eq!(server.call("PATCH", &format!("{path}/a"), Some(&default)).await.0, 200);
}
