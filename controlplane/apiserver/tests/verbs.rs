//! The generic verbs, as a client sees them.

#[cfg(test)]
mod support;

use serde_json::json;
use support::Server;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn config_map(name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"a": name}}})
}

fn pod(name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
           "spec": {"containers": [{"name": "c", "image": "busybox"}]}})
}

#[tokio::test]
async fn an_object_lives_and_dies() {
    let s = Server::start().await;
    let made = s.post(CONFIG_MAPS, &config_map("a")).await;
    let version = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    assert!(
        made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string()
    );
    assert_eq!(s.get(&format!("{CONFIG_MAPS}/a")).await, made);

    let (code, again) = s.call("POST", CONFIG_MAPS, Some(&config_map("a"))).await;
    assert_eq!((code, again["reason"].as_str()), (409, Some("AlreadyExists")));
    assert_eq!(again["message"], "configmaps \"a\" already exists");

    let mut changed = made.clone();
    changed["data"] = json!({"k": "v"});
    let path = format!("{CONFIG_MAPS}/a");
    let (code, updated) = s.call("PUT", &path, Some(&changed)).await;
    assert_eq!(code, 200, "{updated}");
    assert_ne!(updated["metadata"]["resourceVersion"].as_str(), Some(version.as_str()));
    let (code, lost) = s.call("PUT", &path, Some(&made)).await;
    assert_eq!((code, lost["reason"].as_str()), (409, Some("Conflict")));
    assert_eq!(
        lost["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; \
         please apply your changes to the latest version and try again"
    );
    // A change that changes nothing is not written.
    let (_, same) = s.call("PUT", &path, Some(&updated)).await;
    assert_eq!(same, updated);

    let (code, patched) =
        s.call("PATCH", &path, Some(&json!({"data": {"k": null, "l": "w"}}))).await;
    assert_eq!((code, &patched["data"]), (200, &json!({"l": "w"})));

    let (code, gone) = s.call("DELETE", &path, None).await;
    assert_eq!((code, gone["status"].as_str()), (200, Some("Success")));
    assert_eq!(gone["details"]["kind"], "configmaps");
    let (code, missing) = s.call("GET", &path, None).await;
    assert_eq!((code, missing["message"].as_str()), (404, Some("configmaps \"a\" not found")));
}

#[tokio::test]
async fn creates_are_checked() {
    let s = Server::start().await;
    let nowhere = "/api/v1/namespaces/nope/configmaps";
    let (code, answer) = s.call("POST", nowhere, Some(&config_map("a"))).await;
    assert_eq!((code, answer["message"].as_str()), (404, Some("namespaces \"nope\" not found")));
    let mut elsewhere = config_map("a");
    elsewhere["metadata"]["namespace"] = json!("other");
    assert_eq!(s.call("POST", CONFIG_MAPS, Some(&elsewhere)).await.0, 400);
    let (code, answer) =
        s.call("POST", CONFIG_MAPS, Some(&json!({"metadata": {"name": "a/b"}}))).await;
    assert_eq!((code, answer["reason"].as_str()), (422, Some("Invalid")));
    let generated = json!({"metadata": {"generateName": "web-"}});
    let made = s.post(CONFIG_MAPS, &generated).await;
    assert_eq!(made["metadata"]["name"].as_str().unwrap().len(), 9);
    let dry = format!("{CONFIG_MAPS}?dryRun=All");
    let answer = s.post(&dry, &config_map("dry")).await;
    assert!(answer["metadata"]["resourceVersion"].is_null());
    assert_eq!(s.call("GET", &format!("{CONFIG_MAPS}/dry"), None).await.0, 404);
    let strict = format!("{CONFIG_MAPS}?fieldValidation=Strict");
    let (code, answer) =
        s.call("POST", &strict, Some(&json!({"metadata": {"name": "a"}, "dat": {}}))).await;
    assert_eq!(code, 400);
    assert!(answer["message"].as_str().unwrap().contains("unknown field \"dat\""), "{answer}");
    let protobuf = ("application/vnd.kubernetes.protobuf", "");
    let (code, _) = s.call_with("POST", CONFIG_MAPS, protobuf, Some(&config_map("a"))).await;
    assert_eq!(code, 400, "JSON under protobuf's name");
    let (code, _) =
        s.call_with("POST", CONFIG_MAPS, ("text/plain", ""), Some(&config_map("a"))).await;
    assert_eq!(code, 415);
}

#[tokio::test]
async fn lists_are_paged_consistently() {
    let s = Server::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        s.post(CONFIG_MAPS, &config_map(name)).await;
    }
    let names = |list: &serde_json::Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = s.get(&format!("{CONFIG_MAPS}?limit=2")).await;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    s.post(CONFIG_MAPS, &config_map("bb")).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = s.get(&format!("{CONFIG_MAPS}?limit=10&continue={token}")).await;
    assert_eq!(names(&second), ["c", "d", "e"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert_eq!(names(&s.get(&format!("{CONFIG_MAPS}?labelSelector=a+in+(b,d)")).await), ["b", "d"]);
    assert_eq!(
        names(&s.get(&format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Dc")).await),
        ["c"]
    );
    assert_eq!(names(&s.get("/api/v1/configmaps?limit=1&labelSelector=a").await), ["a"]);
    assert_eq!(
        s.call("GET", &format!("{CONFIG_MAPS}?fieldSelector=data.x%3D1"), None).await.0,
        400
    );
    for wrong in ["resourceVersionMatch=Exact", "resourceVersion=1&resourceVersionMatch=x"] {
        for watch in ["", "&watch=1"] {
            let (code, answer) =
                s.call("GET", &format!("{CONFIG_MAPS}?{wrong}{watch}"), None).await;
            assert_eq!((code, &answer["reason"]), (422, &json!("Invalid")), "{answer}");
            assert_eq!(answer["details"]["causes"][0]["field"], "resourceVersionMatch");
        }
    }
    let (code, answer) =
        s.call("DELETE", &format!("{CONFIG_MAPS}/a?propagationPolicy=x"), None).await;
    assert_eq!((code, &answer["reason"]), (422, &json!("Invalid")), "{answer}");
    let exact = first["metadata"]["resourceVersion"].as_str().unwrap();
    let past = format!("{CONFIG_MAPS}?resourceVersion={exact}&resourceVersionMatch=Exact");
    assert_eq!(names(&s.get(&past).await).len(), 5);
    let (code, answer) =
        s.call("GET", &format!("{CONFIG_MAPS}?resourceVersion=999999"), None).await;
    assert_eq!(code, 504, "{answer}");
}

#[tokio::test]
async fn watches_translate_by_selector() {
    let s = Server::start().await;
    s.post(CONFIG_MAPS, &config_map("old")).await;
    let list = s.get(CONFIG_MAPS).await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut all = s.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={version}")).await;
    let mut some =
        s.watch(&format!("{CONFIG_MAPS}?watch=1&labelSelector=x%3Dy&timeoutSeconds=5")).await;
    let mut now = s
        .watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=0&timeoutSeconds={}", i64::MAX))
        .await;
    assert_eq!(now.brief().await, "ADDED old");
    s.post(CONFIG_MAPS, &config_map("new")).await;
    let path = format!("{CONFIG_MAPS}/new");
    s.call("PATCH", &path, Some(&json!({"metadata": {"labels": {"x": "y"}}}))).await;
    s.call("PATCH", &path, Some(&json!({"metadata": {"labels": {"x": "z"}}}))).await;
    s.call("DELETE", &path, None).await;
    assert_eq!(all.brief().await, "ADDED new");
    assert_eq!(all.brief().await, "MODIFIED new");
    assert_eq!(all.brief().await, "MODIFIED new");
    let deleted = all.next().await.unwrap();
    assert_eq!(deleted["type"], "DELETED");
    let last = s.get(CONFIG_MAPS).await["metadata"]["resourceVersion"].clone();
    assert_eq!(deleted["object"]["metadata"]["resourceVersion"], last);
    assert_eq!(some.brief().await, "ADDED new");
    let left = some.next().await.unwrap();
    assert_eq!(
        (&left["type"], &left["object"]["metadata"]["labels"]["x"]),
        (&json!("DELETED"), &json!("y"))
    );
    assert_eq!(some.next().await, None, "a watch ends by timeoutSeconds");
}

#[tokio::test]
async fn a_streaming_list_ends_with_a_bookmark() {
    let s = Server::start().await;
    s.post(CONFIG_MAPS, &config_map("a")).await;
    let mut watch = s
        .watch(&format!(
            "{CONFIG_MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
        ))
        .await;
    assert_eq!(watch.brief().await, "ADDED a");
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    s.post(CONFIG_MAPS, &config_map("b")).await;
    assert_eq!(watch.brief().await, "ADDED b");
    s.api.close();
    assert_eq!(watch.next().await, None, "watches end when the server closes");
}

#[tokio::test]
async fn pods_are_deleted_gracefully() {
    let s = Server::start().await;
    let made = s.post(PODS, &pod("a")).await;
    assert_eq!(made["status"]["phase"], "Pending");
    assert_eq!(made["status"]["qosClass"], "BestEffort");
    assert_eq!(made["metadata"]["generation"], 1);
    let path = format!("{PODS}/a");
    assert_eq!(s.call("DELETE", &path, None).await.0, 200);
    assert_eq!(s.call("GET", &path, None).await.0, 404, "nobody runs an unscheduled pod");

    let mut placed = pod("b");
    placed["spec"]["nodeName"] = json!("n1");
    placed["spec"]["terminationGracePeriodSeconds"] = json!(30);
    s.post(PODS, &placed).await;
    let mut watch = s.watch("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1").await;
    assert_eq!(watch.brief().await, "ADDED b");
    let path = format!("{PODS}/b");
    let (code, answer) = s.call("DELETE", &path, None).await;
    assert_eq!((code, &answer["metadata"]["deletionGracePeriodSeconds"]), (200, &json!(30)));
    assert_eq!(watch.brief().await, "MODIFIED b");
    let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0,
        "preconditions": {"uid": "other"}});
    let (code, answer) = s.call("DELETE", &path, Some(&body)).await;
    assert_eq!((code, answer["reason"].as_str()), (409, Some("Conflict")));
    let body = json!({"gracePeriodSeconds": 0});
    assert_eq!(s.call("DELETE", &path, Some(&body)).await.0, 200);
    assert_eq!(watch.brief().await, "DELETED b");
    assert_eq!(s.call("GET", &path, None).await.0, 404);
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let s = Server::start().await;
    let mut held = config_map("a");
    held["metadata"]["finalizers"] = json!(["x.io/hold"]);
    s.post(CONFIG_MAPS, &held).await;
    let path = format!("{CONFIG_MAPS}/a");
    let (code, answer) = s.call("DELETE", &path, None).await;
    assert_eq!(code, 200);
    assert!(answer["metadata"]["deletionTimestamp"].is_string(), "{answer}");
    let more = json!({"metadata": {"finalizers": ["x.io/hold", "x.io/more"]}});
    assert_eq!(s.call("PATCH", &path, Some(&more)).await.0, 422);
    let none = json!({"metadata": {"finalizers": null}});
    assert_eq!(s.call("PATCH", &path, Some(&none)).await.0, 200);
    assert_eq!(s.call("GET", &path, None).await.0, 404);

    s.post(CONFIG_MAPS, &config_map("b")).await;
    let foreground = json!({"propagationPolicy": "Foreground"});
    let (_, answer) = s.call("DELETE", &format!("{CONFIG_MAPS}/b"), Some(&foreground)).await;
    assert_eq!(answer["metadata"]["finalizers"], json!(["foregroundDeletion"]));
}

#[tokio::test]
async fn status_and_spec_are_apart() {
    let s = Server::start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let object = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
        "status": {"replicas": 7}});
    let made = s.post(deployments, &object).await;
    assert_eq!((&made["status"], &made["metadata"]["generation"]), (&json!({}), &json!(1)));
    let path = format!("{deployments}/d");
    let both = json!({"spec": {"replicas": 2}, "status": {"replicas": 5}});
    let (_, main) = s.call("PATCH", &path, Some(&both)).await;
    assert_eq!(
        (&main["spec"]["replicas"], &main["status"], &main["metadata"]["generation"]),
        (&json!(2), &json!({}), &json!(2))
    );
    let both = json!({"spec": {"replicas": 9}, "status": {"replicas": 5}});
    let (_, status) = s.call("PATCH", &format!("{path}/status"), Some(&both)).await;
    assert_eq!(
        (
            &status["spec"]["replicas"],
            &status["status"]["replicas"],
            &status["metadata"]["generation"]
        ),
        (&json!(2), &json!(5), &json!(2))
    );
}

#[tokio::test]
async fn services_get_addresses_and_ports() {
    let s = Server::start().await;
    let services = "/api/v1/namespaces/default/services";
    let kubernetes = s.get(&format!("{services}/kubernetes")).await;
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1");
    s.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await;
    let object = json!({"metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80, "protocol": "TCP"}]}});
    let made = s.post(services, &object).await;
    let address = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let port = made["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30000..=32767).contains(&port));
    assert_eq!(made["spec"]["clusterIPs"], json!([address]));
    let addresses = format!("/apis/networking.k8s.io/v1/ipaddresses/{address}");
    assert_eq!(s.get(&addresses).await["spec"]["parentRef"]["name"], "web");

    let mut taken = object.clone();
    taken["metadata"]["name"] = json!("other");
    taken["spec"]["clusterIP"] = json!(address);
    let (code, answer) = s.call("POST", services, Some(&taken)).await;
    assert_eq!(code, 422, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("provided IP is already allocated"));
    let mut taken = object.clone();
    taken["metadata"]["name"] = json!("other");
    taken["spec"]["ports"][0]["nodePort"] = json!(port);
    let (code, answer) = s.call("POST", services, Some(&taken)).await;
    assert_eq!(code, 422);
    assert!(answer["message"].as_str().unwrap().contains("provided port is already allocated"));

    // A PUT without the allocated values keeps them.
    let path = format!("{services}/web");
    let (code, kept) = s.call("PUT", &path, Some(&object)).await;
    assert_eq!(code, 200, "{kept}");
    assert_eq!(kept["spec"]["clusterIP"], json!(address));
    assert_eq!(kept["spec"]["ports"][0]["nodePort"], json!(port));
    let (code, plain) = s.call("PATCH", &path, Some(&json!({"spec": {"type": "ClusterIP"}}))).await;
    assert_eq!(code, 200, "{plain}");
    assert!(plain["spec"]["ports"][0]["nodePort"].is_null(), "{plain}");
    let (code, _) = s.call("POST", services, Some(&taken)).await;
    assert_eq!(code, 201, "the port was given back");
    assert_eq!(s.call("DELETE", &path, None).await.0, 200);
    assert_eq!(s.call("GET", &addresses, None).await.0, 404);
}

#[tokio::test]
async fn an_address_that_became_anothers_is_not_given_back() {
    let s = Server::start().await;
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str| {
        json!({"metadata": {"name": name},
        "spec": {"clusterIP": "10.96.0.77", "ports": [{"port": 80}]}})
    };
    s.post(services, &service("first")).await;
    let address = "/apis/networking.k8s.io/v1/ipaddresses/10.96.0.77";
    assert_eq!(s.call("DELETE", address, None).await.0, 200);
    s.post(services, &service("second")).await;
    assert_eq!(s.call("DELETE", &format!("{services}/first"), None).await.0, 200);
    assert_eq!(s.get(address).await["spec"]["parentRef"]["name"], "second");
}

#[tokio::test]
async fn what_is_made_of_a_name_is_made_of_a_generated_one() {
    let s = Server::start().await;
    let namespace =
        s.post("/api/v1/namespaces", &json!({"metadata": {"generateName": "x-"}})).await;
    let name = &namespace["metadata"]["name"];
    assert_eq!(&namespace["metadata"]["labels"]["kubernetes.io/metadata.name"], name);
    let job = json!({"metadata": {"generateName": "j-"}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let job = s.post("/apis/batch/v1/namespaces/default/jobs", &job).await;
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["job-name"], job["metadata"]["name"]);
    assert_eq!(labels["batch.kubernetes.io/controller-uid"], job["metadata"]["uid"]);
}

#[tokio::test]
async fn namespaces_terminate() {
    let s = Server::start().await;
    s.post("/api/v1/namespaces", &json!({"metadata": {"name": "x"}})).await;
    let maps = "/api/v1/namespaces/x/configmaps";
    s.post(maps, &config_map("a")).await;
    let (code, answer) = s.call("DELETE", "/api/v1/namespaces/x", None).await;
    assert_eq!((code, &answer["status"]["phase"]), (200, &json!("Terminating")));
    let (code, answer) = s.call("POST", maps, Some(&config_map("b"))).await;
    assert_eq!(code, 403);
    assert!(
        answer["message"].as_str().unwrap().contains("because it is being terminated"),
        "{answer}"
    );
    assert_eq!(s.call("DELETE", maps, None).await.0, 200);
    let mut namespace = s.get("/api/v1/namespaces/x").await;
    namespace["spec"]["finalizers"] = json!([]);
    let (code, answer) = s.call("PUT", "/api/v1/namespaces/x/finalize", Some(&namespace)).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(s.call("GET", "/api/v1/namespaces/x", None).await.0, 404);
}

#[tokio::test]
async fn other_forms_of_objects() {
    let s = Server::start().await;
    s.post(CONFIG_MAPS, &config_map("a")).await;
    let table = ("", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
    let (_, answer) = s.call_with("GET", CONFIG_MAPS, table, None).await;
    assert_eq!(answer["kind"], "Table");
    assert_eq!(answer["rows"][0]["cells"][0], "a");
    assert_eq!(answer["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial = ("", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io");
    let (_, answer) = s.call_with("GET", CONFIG_MAPS, partial, None).await;
    assert_eq!(answer["kind"], "PartialObjectMetadataList");
    assert_eq!(answer["items"][0]["metadata"]["name"], "a");
    let (_, answer) = s.call_with("GET", CONFIG_MAPS, ("", "application/yaml"), None).await;
    assert!(answer.as_str().unwrap().contains("kind: ConfigMapList"), "{answer}");
}

#[tokio::test]
async fn events_go_away_after_their_time_and_a_change_gives_them_more() {
    const EVENTS: &str = "/api/v1/namespaces/default/events";
    let config =
        apiserver::Config { event_ttl: std::time::Duration::from_secs(1), ..support::config() };
    let s = Server::with(config).await;
    let event = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "default"},
               "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
               "reason": "Started", "message": "m", "type": "Normal"})
    };
    let mut watch = s.watch(&format!("{EVENTS}?watch=1&resourceVersion=0")).await;
    s.post(EVENTS, &event("old")).await;
    s.post(CONFIG_MAPS, &config_map("stays")).await;
    assert_eq!(watch.brief().await, "ADDED old");
    assert_eq!(watch.brief().await, "DELETED old");
    let first = s.post(EVENTS, &event("new")).await;
    assert_eq!(watch.brief().await, "ADDED new");
    // Each change comes before the time of the one before is over.
    let begin = std::time::Instant::now();
    let mut count = 1;
    while begin.elapsed() < std::time::Duration::from_secs(4) {
        let path = format!("{EVENTS}/new");
        count += 1;
        let (code, changed) = s.call("PATCH", &path, Some(&json!({"count": count}))).await;
        assert_eq!(code, 200, "{changed}");
        assert_eq!(changed["metadata"]["uid"], first["metadata"]["uid"]);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    loop {
        match watch.brief().await.as_str() {
            "MODIFIED new" => {}
            other => break assert_eq!(other, "DELETED new"),
        }
    }
    s.get(&format!("{CONFIG_MAPS}/stays")).await;
}
