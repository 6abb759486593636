//! ServiceAccount: every pod runs as a service account, with its token, the cluster's CA and its pull secrets.

use super::{AdmissionRequest, Operation, unreadable};
use crate::lookup::{Lookup, prefix};
use apimachinery::object::generated_name;
use apimachinery::status::ApiError;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

const DEFAULT_ACCOUNT: &str = "default";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Kubernetes 1.36: a token is asked for this long; the server recognises the length and extends it.
const TOKEN_SECONDS: i64 = 3607;
/// Kubernetes 1.36: ten looks, 100 to 200 ms apart.
const DEFAULT_ATTEMPTS: u32 = 10;
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
const CONTAINERS: [&str; 2] = ["initContainers", "containers"];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Account {
    automount_service_account_token: Option<bool>,
    image_pull_secrets: Vec<Value>,
}

pub(super) async fn admit(
    lookup: &Lookup,
    request: &AdmissionRequest<'_>,
    pod: &mut Value,
) -> Result<(), ApiError> {
    if request.operation != Operation::Create || !request.is("", "pods") {
        return Ok(());
    }
    if !pod["metadata"]["annotations"][MIRROR_ANNOTATION].is_null() {
        return check_mirror(request, pod);
    }
    let named = pod["spec"]["serviceAccountName"].as_str().filter(|name| !name.is_empty());
    let name = named.unwrap_or(DEFAULT_ACCOUNT).to_owned();
    pod["spec"]["serviceAccountName"] = json!(name);
    pod["spec"]["serviceAccount"] = json!(name);
    let found = find(lookup, request.namespace, &name).await?;
    let Some(account) = found else {
        let why = format!(
            "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
            request.namespace
        );
        return Err(request.forbidden(pod, why));
    };
    if automounts(&account, pod) {
        mount_token(pod, &volume_name()?);
    }
    let has_secrets =
        pod["spec"]["imagePullSecrets"].as_array().is_some_and(|secrets| !secrets.is_empty());
    if !has_secrets && !account.image_pull_secrets.is_empty() {
        pod["spec"]["imagePullSecrets"] = json!(account.image_pull_secrets);
    }
    Ok(())
}

/// The account. A new namespace's default account is made a moment after it, so that one is waited for, as upstream does.
async fn find(lookup: &Lookup, namespace: &str, name: &str) -> Result<Option<Account>, ApiError> {
    let attempts = if name == DEFAULT_ACCOUNT { DEFAULT_ATTEMPTS } else { 1 };
    for attempt in 1..=attempts {
        let found = lookup
            .get(prefix::SERVICE_ACCOUNTS, Some(namespace), name)
            .map_err(|error| unreadable(&error))?;
        if found.is_some() || attempt == attempts {
            return Ok(found);
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    Ok(None)
}

fn check_mirror(request: &AdmissionRequest<'_>, pod: &Value) -> Result<(), ApiError> {
    let named = pod["spec"]["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty());
    if named {
        return Err(request.forbidden(pod, "a mirror pod may not reference service accounts"));
    }
    let volumes = || pod["spec"]["volumes"].as_array().into_iter().flatten();
    if volumes().any(|volume| !volume["secret"].is_null()) {
        return Err(request.forbidden(pod, "a mirror pod may not reference secrets"));
    }
    let projects_token = volumes()
        .flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten())
        .any(|source| !source["serviceAccountToken"].is_null());
    if projects_token {
        let why = "a mirror pod may not use ServiceAccountToken volume projections";
        return Err(request.forbidden(pod, why));
    }
    Ok(())
}

/// The pod's word counts before its account's; the default is to mount.
fn automounts(account: &Account, pod: &Value) -> bool {
    pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or(account.automount_service_account_token)
        .unwrap_or(true)
}

fn volume_name() -> Result<String, ApiError> {
    let mut random = [0; 5];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| ApiError::internal("the system gives no random numbers"))?;
    Ok(generated_name(VOLUME_PREFIX, random))
}

/// Mounts the token where no container has something of its own there.
fn mount_token(pod: &mut Value, new_name: &str) {
    let existing = pod["spec"]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|volume| volume["name"].as_str())
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let has_volume = existing.is_some();
    let name = existing.unwrap_or_else(|| new_name.to_owned());
    let mount = json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH});
    let mut mounted = false;
    for list in CONTAINERS {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let mounts = &mut container["volumeMounts"];
            if !mounts.is_array() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().all(|mount| mount["mountPath"] != MOUNT_PATH) {
                mounts.push(mount.clone());
                mounted = true;
            }
        }
    }
    if !mounted || has_volume {
        return;
    }
    if !pod["spec"]["volumes"].is_array() {
        pod["spec"]["volumes"] = json!([]);
    }
    if let Some(volumes) = pod["spec"]["volumes"].as_array_mut() {
        volumes.push(token_volume(&name));
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 420,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {
                    "name": "kube-root-ca.crt",
                    "items": [{"key": "ca.crt", "path": "ca.crt"}],
                }},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_once_where_nothing_else_is() {
        let own = json!({"name": "mine", "mountPath": MOUNT_PATH});
        let mut pod = json!({"spec": {
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [own]}],
            "initContainers": [{"name": "i"}],
        }});
        mount_token(&mut pod, "kube-api-access-abcde");
        let spec = &pod["spec"];
        let expected = json!([
            {"name": "kube-api-access-abcde", "readOnly": true, "mountPath": MOUNT_PATH}
        ]);
        assert_eq!(spec["containers"][0]["volumeMounts"], expected);
        assert_eq!(spec["initContainers"][0]["volumeMounts"], expected);
        assert_eq!(spec["containers"][1]["volumeMounts"], json!([own]));
        assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
        let once = pod.clone();
        mount_token(&mut pod, "kube-api-access-fghij");
        assert_eq!(pod, once);
        let mut plain = json!({"spec": {"containers": [{"name": "a"}]}});
        mount_token(&mut plain, "kube-api-access-abcde");
        assert!(!plain.to_string().contains("null"), "{plain}");
    }

    #[test]
    fn the_pods_word_counts_before_its_accounts() {
        let account =
            |word| Account { automount_service_account_token: word, ..Account::default() };
        let pod = |word: Value| json!({"spec": {"automountServiceAccountToken": word}});
        assert!(automounts(&account(None), &pod(Value::Null)));
        assert!(!automounts(&account(Some(false)), &pod(Value::Null)));
        assert!(automounts(&account(Some(false)), &pod(json!(true))));
        assert!(!automounts(&account(None), &pod(json!(false))));
    }
}
