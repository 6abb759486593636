//! A container's environment: values, references, the services' variables and `$(VAR)`. Pure: what
//! it needs of the cluster is handed in.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret};

use crate::pod::field::{self, FieldError, NodeFacts};
use crate::pod::spec;

/// What a lookup of a ConfigMap or Secret gave.
#[derive(Debug, Clone)]
pub(crate) enum Lookup<T> {
    Found(T),
    Missing,
    /// Neither the master nor the checkpoint could say.
    Unknown(String),
}

/// ConfigMaps and Secrets of the pod's namespace.
pub(crate) trait Objects {
    fn config_map(&self, name: &str) -> Lookup<std::sync::Arc<ConfigMap>>;
    fn secret(&self, name: &str) -> Lookup<std::sync::Arc<Secret>>;
}

/// A service as variables need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceFacts {
    pub(crate) name: String,
    pub(crate) cluster_ip: String,
    /// Name, protocol, port.
    pub(crate) ports: Vec<(String, String, u16)>,
}

pub(crate) struct Inputs<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) objects: &'a dyn Objects,
    /// The namespace's services, and `kubernetes` of `default`.
    pub(crate) services: &'a [ServiceFacts],
    pub(crate) pod_ips: &'a [IpAddr],
    pub(crate) node: &'a NodeFacts,
}

/// kubelet's texts; they become the message of `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum EnvError {
    #[error("{kind} {name:?} not found")]
    NotFound { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key { kind: &'static str, key: String, namespace: String, name: String },
    #[error("failed to sync {kind} cache: {reason}")]
    Unavailable { kind: &'static str, reason: String },
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// Names with their values, in the order they were given.
pub(crate) fn environment(inputs: &Inputs<'_>) -> Result<Vec<(String, String)>, EnvError> {
    let mut services = BTreeMap::new();
    if inputs.pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true) {
        inputs.services.iter().for_each(|service| service_variables(service, &mut services));
    } else if let Some(api) = inputs.services.iter().find(|service| service.name == "kubernetes") {
        service_variables(api, &mut services);
    }
    let mut result: Vec<(String, String)> = Vec::new();
    env_from(inputs, &mut result)?;
    for variable in inputs.container.env.as_deref().unwrap_or_default() {
        let Some(value) = value_of(inputs, variable, &result, &services)? else { continue };
        set(&mut result, variable.name.clone(), value);
    }
    for (name, value) in services {
        if !result.iter().any(|(have, _)| *have == name) {
            result.push((name, value));
        }
    }
    Ok(result)
}

fn set(result: &mut Vec<(String, String)>, name: String, value: String) {
    match result.iter_mut().find(|(have, _)| *have == name) {
        Some((_, old)) => *old = value,
        None => result.push((name, value)),
    }
}

fn env_from(inputs: &Inputs<'_>, result: &mut Vec<(String, String)>) -> Result<(), EnvError> {
    for source in inputs.container.env_from.as_deref().unwrap_or_default() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            let optional = reference.optional.unwrap_or(false);
            let lookup = inputs.objects.config_map(&reference.name);
            if let Some(map) = found("configmap", &reference.name, optional, lookup)? {
                for (key, value) in map.data.iter().flatten() {
                    set(result, format!("{prefix}{key}"), value.clone());
                }
            }
        }
        if let Some(reference) = &source.secret_ref {
            let optional = reference.optional.unwrap_or(false);
            let lookup = inputs.objects.secret(&reference.name);
            if let Some(secret) = found("secret", &reference.name, optional, lookup)? {
                for (key, value) in secret.data.iter().flatten() {
                    let value = String::from_utf8_lossy(&value.0).into_owned();
                    set(result, format!("{prefix}{key}"), value);
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn found<T>(
    kind: &'static str,
    name: &str,
    optional: bool,
    lookup: Lookup<T>,
) -> Result<Option<T>, EnvError> {
    match lookup {
        Lookup::Found(object) => Ok(Some(object)),
        Lookup::Missing if optional => Ok(None),
        Lookup::Missing => Err(EnvError::NotFound { kind, name: name.to_owned() }),
        Lookup::Unknown(reason) => Err(EnvError::Unavailable { kind, reason }),
    }
}

fn value_of(
    inputs: &Inputs<'_>,
    variable: &EnvVar,
    before: &[(String, String)],
    services: &BTreeMap<String, String>,
) -> Result<Option<String>, EnvError> {
    if let Some(value) = variable.value.as_deref().filter(|value| !value.is_empty()) {
        return Ok(Some(expand(value, &|name| {
            let own = before.iter().find(|(have, _)| have == name).map(|(_, value)| value);
            own.or_else(|| services.get(name)).cloned()
        })));
    }
    let Some(source) = &variable.value_from else { return Ok(Some(String::new())) };
    if let Some(reference) = &source.field_ref {
        let text = field::field(inputs.pod, &reference.field_path, inputs.pod_ips, inputs.node)?;
        return Ok(Some(text));
    }
    if let Some(selector) = &source.resource_field_ref {
        let name = &inputs.container.name;
        return Ok(Some(field::resource(inputs.pod, name, selector, inputs.node)?));
    }
    let missing = |kind, name: &str, key: &str| EnvError::Key {
        kind,
        key: key.to_owned(),
        namespace: spec::namespace(inputs.pod).to_owned(),
        name: name.to_owned(),
    };
    if let Some(from) = &source.config_map_key_ref {
        let optional = from.optional.unwrap_or(false);
        let lookup = inputs.objects.config_map(&from.name);
        let Some(map) = found("configmap", &from.name, optional, lookup)? else { return Ok(None) };
        return match map.data.as_ref().and_then(|data| data.get(&from.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(missing("ConfigMap", &from.name, &from.key)),
        };
    }
    if let Some(from) = &source.secret_key_ref {
        let optional = from.optional.unwrap_or(false);
        let lookup = inputs.objects.secret(&from.name);
        let Some(secret) = found("secret", &from.name, optional, lookup)? else { return Ok(None) };
        return match secret.data.as_ref().and_then(|data| data.get(&from.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(missing("Secret", &from.name, &from.key)),
        };
    }
    Ok(Some(String::new()))
}

/// Kubernetes' `$(NAME)`: unknown names stay as they are, `$$` is one dollar sign.
pub(crate) fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('(').and_then(|inner| inner.split_once(')'))
        {
            match lookup(name) {
                Some(value) => result.push_str(&value),
                None => result.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

fn service_variables(service: &ServiceFacts, into: &mut BTreeMap<String, String>) {
    let Some((_, _, first_port)) = service.ports.first() else { return };
    let name = service.name.to_uppercase().replace('-', "_");
    let host = &service.cluster_ip;
    into.insert(format!("{name}_SERVICE_HOST"), host.clone());
    into.insert(format!("{name}_SERVICE_PORT"), first_port.to_string());
    for (index, (port_name, protocol, port)) in service.ports.iter().enumerate() {
        if !port_name.is_empty() {
            let port_name = port_name.to_uppercase().replace('-', "_");
            into.insert(format!("{name}_SERVICE_PORT_{port_name}"), port.to_string());
        }
        let address = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let url = format!("{}://{address}:{port}", protocol.to_lowercase());
        if index == 0 {
            into.insert(format!("{name}_PORT"), url.clone());
        }
        let prefix = format!("{name}_PORT_{port}_{protocol}");
        into.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
        into.insert(format!("{prefix}_PORT"), port.to_string());
        into.insert(format!("{prefix}_ADDR"), host.clone());
        into.insert(prefix, url);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    struct Fake;
    impl Objects for Fake {
        fn config_map(&self, name: &str) -> Lookup<Arc<ConfigMap>> {
            match name {
                "cm" => Lookup::Found(Arc::new(
                    serde_json::from_value(serde_json::json!({"data": {"a": "1", "b": "2"}}))
                        .unwrap(),
                )),
                _ => Lookup::Missing,
            }
        }
        fn secret(&self, name: &str) -> Lookup<Arc<Secret>> {
            match name {
                "s" => Lookup::Found(Arc::new(
                    serde_json::from_value(serde_json::json!({"data": {"k": "c2VjcmV0"}})).unwrap(),
                )),
                _ => Lookup::Missing,
            }
        }
    }

    fn run(container: serde_json::Value) -> Result<Vec<(String, String)>, EnvError> {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"containers": [container]}
        }))
        .unwrap();
        let services = [ServiceFacts {
            name: "my-svc".into(),
            cluster_ip: "10.96.0.7".into(),
            ports: vec![("http".into(), "TCP".into(), 80)],
        }];
        let inputs = Inputs {
            pod: &pod,
            container: &pod.spec.as_ref().unwrap().containers[0],
            objects: &Fake,
            services: &services,
            pod_ips: &["10.1.0.2".parse().unwrap()],
            node: &NodeFacts::default(),
        };
        environment(&inputs)
    }

    fn get<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
        env.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn values_references_and_services() {
        let env = run(serde_json::json!({"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}},
                        {"secretRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "A", "value": "x"},
                {"name": "B", "value": "$(A)-$(P_a)-$(MY_SVC_SERVICE_HOST)-$(NO)-$$(A)-$"},
                {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "D", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "z", "optional": true}}},
                {"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "A", "value": "y"}
            ]}))
        .unwrap();
        assert_eq!(get(&env, "P_b"), Some("2"));
        assert_eq!(get(&env, "A"), Some("y"));
        assert_eq!(get(&env, "B"), Some("x-1-10.96.0.7-$(NO)-$(A)-$"));
        assert_eq!(get(&env, "C"), Some("secret"));
        assert_eq!(get(&env, "D"), None);
        assert_eq!(get(&env, "E"), Some("10.1.0.2"));
        assert_eq!(get(&env, "MY_SVC_PORT_80_TCP"), Some("tcp://10.96.0.7:80"));
        assert_eq!(get(&env, "MY_SVC_SERVICE_PORT_HTTP"), Some("80"));
    }

    #[test]
    fn what_is_missing_is_named_as_kubelet_names_it() {
        for (source, message) in [
            (
                serde_json::json!({"configMapKeyRef": {"name": "x", "key": "k"}}),
                r#"configmap "x" not found"#,
            ),
            (
                serde_json::json!({"secretKeyRef": {"name": "x", "key": "k"}}),
                r#"secret "x" not found"#,
            ),
            (
                serde_json::json!({"configMapKeyRef": {"name": "cm", "key": "k"}}),
                "couldn't find key k in ConfigMap ns/cm",
            ),
            (
                serde_json::json!({"secretKeyRef": {"name": "s", "key": "z"}}),
                "couldn't find key z in Secret ns/s",
            ),
        ] {
            let error =
                run(serde_json::json!({"name": "c", "env": [{"name": "A", "valueFrom": source}]}));
            assert_eq!(error.unwrap_err().to_string(), message);
        }
    }
}
