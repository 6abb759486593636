//! The authorizer over a real store: masters, RBAC kept current, and above all what a node may not read.

use super::*;
use crate::bootstrap;
use serde_json::{Value, json};
use store::{Op, Txn};

struct Cluster {
    store: Store,
    authorizer: Authorizer,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(store::Config::new(dir.path())).unwrap();
        let settings = bootstrap::Settings {
            service_cidrs: &["10.96.0.0/12".to_owned()],
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            new_uid: || "uid".to_owned(),
        };
        bootstrap::ensure(&store, &settings).await.unwrap();
        let authorizer = Authorizer::new(store.clone());
        Self { store, authorizer, _dir: dir }
    }

    async fn put(&self, key: &str, value: Value) {
        let op = Op::put(format!("/registry/{key}"), value.to_string());
        let txn = Txn { compare: Vec::new(), success: vec![op], failure: Vec::new() };
        self.store.txn(txn).await.unwrap();
    }

    async fn delete(&self, key: &str) {
        let op = Op::delete(format!("/registry/{key}"));
        let txn = Txn { compare: Vec::new(), success: vec![op], failure: Vec::new() };
        self.store.txn(txn).await.unwrap();
    }

    fn ask(&self, user: &User, verb: &str, target: &str) -> Decision {
        self.authorizer.authorize(&Attributes { user, verb, target: parse(target) })
    }
}

/// `secrets/default/name`, `pods//`, `apps:deployments.scale/default/web`; or `/path`.
fn parse(text: &str) -> Target<'_> {
    if text.starts_with('/') {
        return Target::Path(text);
    }
    let (text, field_selector) = text.split_once('?').unwrap_or((text, ""));
    let parts: Vec<&str> = text.split('/').collect();
    let (group, resource) = parts[0].split_once(':').unwrap_or(("", parts[0]));
    let (resource, subresource) = resource.split_once('.').unwrap_or((resource, ""));
    Target::Resource(ResourceTarget {
        group,
        version: "v1",
        resource,
        subresource,
        namespace: parts.get(1).copied().unwrap_or_default(),
        name: parts.get(2).copied().unwrap_or_default(),
        field_selector,
    })
}

fn node(name: &str) -> User {
    User::authenticated(format!("system:node:{name}"), &["system:nodes"])
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeName": node, "serviceAccountName": "web", "imagePullSecrets": [{"name": "pull"}],
            "containers": [{
                "env": [{"valueFrom": {"secretKeyRef": {"name": "env-secret", "key": "k"}}}],
                "envFrom": [{"configMapRef": {"name": "from-map"}}],
            }],
            "volumes": [
                {"name": "a", "secret": {"secretName": "vol-secret"}},
                {"name": "b", "configMap": {"name": "vol-map"}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "d", "ephemeral": {}},
                {"name": "e", "projected": {"sources": [
                    {"secret": {"name": "proj-secret"}}, {"configMap": {"name": "kube-root-ca.crt"}},
                ]}},
            ],
        },
    })
}

const NEEDED: &[&str] = &[
    "secrets/default/pull",
    "secrets/default/env-secret",
    "secrets/default/vol-secret",
    "secrets/default/proj-secret",
    "configmaps/default/from-map",
    "configmaps/default/vol-map",
    "configmaps/default/kube-root-ca.crt",
    "persistentvolumeclaims/default/claim",
    "persistentvolumeclaims/default/p-d",
    "persistentvolumes//vol",
    "pods/default/p",
];

#[tokio::test]
async fn a_node_reads_what_its_pods_refer_to_and_nothing_else() {
    let cluster = Cluster::new().await;
    let (one, two) = (node("one"), node("two"));
    let refuse = |user: &User, what: &str| {
        let decision = cluster.ask(user, "get", what);
        assert!(!decision.is_allowed(), "{} got {what}", user.name);
    };
    let claim = json!({"claimRef": {"namespace": "default", "name": "claim"}});
    cluster.put("persistentvolumes/vol", json!({"metadata": {}, "spec": claim})).await;
    NEEDED.iter().for_each(|what| refuse(&one, what));
    cluster.put("pods/default/p", pod("p", "")).await;
    NEEDED.iter().for_each(|what| refuse(&one, what));
    cluster.put("pods/default/p", pod("p", "one")).await;
    for what in NEEDED {
        assert!(cluster.ask(&one, "get", what).is_allowed(), "{what}");
        refuse(&two, what);
    }
    for what in [
        "secrets/default/other",
        "secrets/kube-system/pull",
        "secrets/default/",
        "secrets//",
        "secrets//pull",
        "configmaps/default/pull",
        "configmaps/kube-system/vol-map",
        "persistentvolumes//other",
        "pods/default/other",
        "secrets.x/default/pull",
    ] {
        refuse(&one, what);
    }
    for verb in ["list", "watch"] {
        assert!(!cluster.ask(&one, verb, "secrets/default/").is_allowed());
        assert!(!cluster.ask(&one, verb, "secrets//").is_allowed());
        assert!(cluster.ask(&one, verb, "secrets/default/pull").is_allowed());
    }
    for verb in ["create", "update", "patch", "delete", "deletecollection"] {
        assert!(!cluster.ask(&one, verb, "secrets/default/pull").is_allowed(), "{verb}");
    }
    cluster.put("pods/default/p", pod("p", "two")).await;
    NEEDED.iter().for_each(|what| refuse(&one, what));
    cluster.delete("pods/default/p").await;
    NEEDED.iter().for_each(|what| refuse(&two, what));
}

#[tokio::test]
async fn a_mirror_pod_opens_nothing() {
    let cluster = Cluster::new().await;
    let mut mirror = pod("p", "one");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    cluster.put("pods/default/p", mirror).await;
    assert!(!cluster.ask(&node("one"), "get", "secrets/default/pull").is_allowed());
    assert!(cluster.ask(&node("one"), "get", "pods/default/p").is_allowed());
}

#[tokio::test]
async fn a_node_writes_only_what_is_its_own() {
    let cluster = Cluster::new().await;
    cluster.put("pods/default/p", pod("p", "one")).await;
    let cases = [
        ("create", "serviceaccounts.token/default/web", true),
        ("create", "serviceaccounts.token/default/other", false),
        ("create", "serviceaccounts.token/kube-system/web", false),
        ("get", "serviceaccounts/default/web", false),
        ("update", "coordination.k8s.io:leases/kube-node-lease/one", true),
        ("update", "coordination.k8s.io:leases/kube-node-lease/two", false),
        ("update", "coordination.k8s.io:leases/kube-system/one", false),
        ("list", "coordination.k8s.io:leases/kube-node-lease/", false),
        ("delete", "nodes//one", true),
        ("delete", "nodes//two", false),
        ("get", "nodes//one", true),
        ("patch", "nodes.status//one", true),
        ("list", "pods//?spec.nodeName=one", true),
        ("list", "pods//?spec.nodeName=two", false),
        ("list", "pods//", false),
        ("patch", "pods.status/default/p", true),
        ("update", "pods/default/p", false),
        ("create", "pods.exec/default/p", false),
        ("create", "certificates.k8s.io:certificatesigningrequests//x", true),
        ("list", "services//", true),
        ("list", "discovery.k8s.io:endpointslices//", true),
        ("create", "rbac.authorization.k8s.io:clusterrolebindings//x", false),
    ];
    for (verb, what, allowed) in cases {
        let decision = cluster.ask(&node("one"), verb, what);
        assert_eq!(decision.is_allowed(), allowed, "{verb} {what}: {decision:?}");
    }
    let decision = cluster.ask(&node("one"), "get", "secrets/default/x");
    assert_eq!(decision.reason(), "no relationship found between node 'one' and this object");
    let no_group = User::authenticated("system:node:one", &[]);
    assert!(!cluster.ask(&no_group, "get", "secrets/default/pull").is_allowed());
}

#[tokio::test]
async fn rbac_follows_the_store() {
    let cluster = Cluster::new().await;
    let jane = User::authenticated("jane", &[]);
    assert!(!cluster.ask(&jane, "get", "pods/default/").is_allowed());
    assert!(cluster.ask(&jane, "get", "/api").is_allowed());
    assert!(!cluster.ask(&jane, "get", "/metrics").is_allowed());
    assert!(cluster.ask(&User::anonymous(), "get", "/healthz").is_allowed());
    assert!(!cluster.ask(&User::anonymous(), "get", "/api").is_allowed());
    let binding = json!({
        "metadata": {"name": "b", "namespace": "default"},
        "subjects": [{"kind": "User", "name": "jane"}],
        "roleRef": {"kind": "ClusterRole", "name": "view"},
    });
    cluster.put("rolebindings/default/b", binding.clone()).await;
    let decision = cluster.ask(&jane, "get", "pods/default/");
    let reason = r#"RBAC: allowed by RoleBinding "b/default" of ClusterRole "view" to User "jane""#;
    assert_eq!(decision, Decision::Allow(reason.to_owned()));
    assert!(!cluster.ask(&jane, "get", "pods/other/").is_allowed());
    assert!(!cluster.ask(&jane, "get", "secrets/default/").is_allowed());
    let mut broken = binding;
    broken["roleRef"]["name"] = json!("gone");
    cluster.put("rolebindings/default/b", broken).await;
    let decision = cluster.ask(&jane, "get", "pods/default/");
    let reason = r#"RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found"#;
    assert_eq!(decision, Decision::NoOpinion(reason.to_owned()));
    cluster.delete("rolebindings/default/b").await;
    assert_eq!(cluster.ask(&jane, "get", "pods/default/").reason(), "");
    let root = User::authenticated("root", &["system:masters"]);
    assert!(cluster.ask(&root, "explode", "pods/default/").is_allowed());
}

#[tokio::test]
async fn a_second_start_writes_nothing() {
    let cluster = Cluster::new().await;
    let before = cluster.store.revision();
    let settings = bootstrap::Settings {
        service_cidrs: &["10.96.0.0/12".to_owned()],
        now: "2026-01-02T00:00:00Z".parse().unwrap(),
        new_uid: || "other".to_owned(),
    };
    bootstrap::ensure(&cluster.store, &settings).await.unwrap();
    assert_eq!(cluster.store.revision(), before);
}

#[tokio::test]
async fn nobody_grants_what_it_does_not_hold() {
    let cluster = Cluster::new().await;
    let admin = json!({
        "metadata": {"name": "b", "namespace": "default"},
        "subjects": [{"kind": "User", "name": "jane"}],
        "roleRef": {"kind": "ClusterRole", "name": "admin"},
    });
    cluster.put("rolebindings/default/b", admin).await;
    let jane = User::authenticated("jane", &[]);
    let grant = |role: &str| {
        let object = json!({"roleRef": {"kind": "ClusterRole", "name": role}, "subjects": []});
        let grant = escalation::Grant {
            user: &jane,
            resource: "rolebindings",
            namespace: "default",
            name: "mine",
            object: &object,
            old: None,
        };
        escalation::check(&cluster.authorizer, &grant)
    };
    grant("view").unwrap();
    grant("admin").unwrap();
    let error = grant("cluster-admin").unwrap_err();
    assert!(error.message.contains("is attempting to grant RBAC permissions not currently held"));
    assert!(error.message.ends_with("{NonResourceURLs:[\"*\"], Verbs:[\"*\"]}"), "{error}");
    assert_eq!(grant("nothing").unwrap_err().code, 404);
}
