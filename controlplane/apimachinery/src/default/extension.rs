//! Defaults of the other groups (their `defaults.go` in Kubernetes 1.36).

use serde_json::{Value, json};

use super::{child, each, empty, is_empty, made, set, set_zero, text};
use crate::gvk::GroupVersionKind;
use crate::object::Object;

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn apply(gvk: GroupVersionKind<'_>, object: &mut Object) {
    match (gvk.group, gvk.kind) {
        ("networking.k8s.io", kind) => networking(kind, object),
        (RBAC, kind) => rbac(kind, object),
        ("discovery.k8s.io", "EndpointSlice") => {
            for port in each(object, "ports") {
                set(port, "name", "");
                set(port, "protocol", "TCP");
            }
        }
        ("storage.k8s.io", kind) => storage(kind, object),
        ("scheduling.k8s.io", "PriorityClass") => {
            set(object, "preemptionPolicy", "PreemptLowerPriority");
        }
        ("policy", "PodDisruptionBudget") => {
            let status = made(object, "status");
            for count in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"]
            {
                set(status, count, 0);
            }
        }
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler(gvk.version, object),
        ("authentication.k8s.io", "TokenRequest") => {
            set(made(object, "spec"), "expirationSeconds", 3600);
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => drop(made(object, "status")),
        ("admissionregistration.k8s.io", kind) => admission(kind, object),
        ("apiregistration.k8s.io", "APIService") => {
            if let Some(service) = child(made(object, "spec"), "service") {
                set(service, "port", 443);
            }
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => custom_resource(object),
        ("flowcontrol.apiserver.k8s.io", kind) => flow_control(kind, object),
        _ => {}
    }
}

fn networking(kind: &str, object: &mut Object) {
    match kind {
        "NetworkPolicy" => {
            let spec = made(object, "spec");
            for list in ["ingress", "egress"] {
                for port in each(spec, list).flat_map(|rule| each(rule, "ports")) {
                    set(port, "protocol", "TCP");
                }
            }
            if is_empty(spec, "policyTypes") {
                let egress = !is_empty(spec, "egress");
                let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
                spec.insert("policyTypes".to_owned(), types);
            }
        }
        "Ingress" => drop(made(made(object, "status"), "loadBalancer")),
        "IngressClass" => {
            if let Some(parameters) = child(made(object, "spec"), "parameters") {
                set(parameters, "scope", "Cluster");
            }
        }
        _ => {}
    }
}

fn rbac(kind: &str, object: &mut Object) {
    if !matches!(kind, "RoleBinding" | "ClusterRoleBinding") {
        return;
    }
    set_zero(made(object, "roleRef"), "apiGroup", RBAC);
    for subject in each(object, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            set_zero(subject, "apiGroup", RBAC);
        }
    }
}

fn storage(kind: &str, object: &mut Object) {
    match kind {
        "StorageClass" => {
            set(object, "reclaimPolicy", "Delete");
            set(object, "volumeBindingMode", "Immediate");
        }
        "CSIDriver" => {
            let spec = made(object, "spec");
            set(spec, "attachRequired", true);
            set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
            for flag in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
                set(spec, flag, false);
            }
            if is_empty(spec, "volumeLifecycleModes") {
                spec.insert("volumeLifecycleModes".to_owned(), json!(["Persistent"]));
            }
        }
        _ => {}
    }
}

fn autoscaler(version: &str, object: &mut Object) {
    let spec = made(object, "spec");
    set(spec, "minReplicas", 1);
    let status = made(object, "status");
    set(status, "desiredReplicas", 0);
    if version != "v2" {
        set(status, "currentReplicas", 0);
        return;
    }
    status.entry("currentMetrics").or_insert(Value::Null);
    let spec = made(object, "spec");
    if is_empty(spec, "metrics") {
        let target = json!({"type": "Utilization", "averageUtilization": 80});
        let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
        spec.insert("metrics".to_owned(), json!([metric]));
    }
    let Some(behavior) = child(spec, "behavior") else { return };
    let policy =
        |kind: &str, value: i32| json!({"type": kind, "value": value, "periodSeconds": 15});
    let up = made(behavior, "scaleUp");
    set(up, "stabilizationWindowSeconds", 0);
    set(up, "selectPolicy", "Max");
    set(up, "policies", json!([policy("Pods", 4), policy("Percent", 100)]));
    let down = made(behavior, "scaleDown");
    set(down, "selectPolicy", "Max");
    set(down, "policies", json!([policy("Percent", 100)]));
}

fn admission(kind: &str, object: &mut Object) {
    match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            for webhook in each(object, "webhooks") {
                set(webhook, "failurePolicy", "Fail");
                match_resources(webhook);
                set(webhook, "timeoutSeconds", 10);
                if kind == "MutatingWebhookConfiguration" {
                    set(webhook, "reinvocationPolicy", "Never");
                }
                if let Some(service) =
                    child(webhook, "clientConfig").and_then(|config| child(config, "service"))
                {
                    set(service, "port", 443);
                }
                each(webhook, "rules").for_each(|rule| set(rule, "scope", "*"));
            }
        }
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => {
            let spec = made(object, "spec");
            set(spec, "failurePolicy", "Fail");
            if let Some(constraints) = child(spec, "matchConstraints") {
                policy_match(constraints);
            }
        }
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => {
            if let Some(resources) = child(made(object, "spec"), "matchResources") {
                policy_match(resources);
            }
        }
        _ => {}
    }
}

fn match_resources(map: &mut Object) {
    set(map, "matchPolicy", "Equivalent");
    set(map, "namespaceSelector", empty());
    set(map, "objectSelector", empty());
}

fn policy_match(map: &mut Object) {
    match_resources(map);
    for list in ["resourceRules", "excludeResourceRules"] {
        each(map, list).for_each(|rule| set(rule, "scope", "*"));
    }
}

fn custom_resource(object: &mut Object) {
    let spec = made(object, "spec");
    let names = made(spec, "names");
    let kind = text(names, "kind").to_owned();
    set_zero(names, "singular", kind.to_lowercase());
    if !kind.is_empty() {
        set_zero(names, "listKind", format!("{kind}List"));
    }
    let conversion = made(spec, "conversion");
    set_zero(conversion, "strategy", "None");
    if let Some(service) = child(conversion, "webhook")
        .and_then(|webhook| child(webhook, "clientConfig"))
        .and_then(|config| child(config, "service"))
    {
        set(service, "port", 443);
    }
}

fn flow_control(kind: &str, object: &mut Object) {
    let spec = made(object, "spec");
    match kind {
        "FlowSchema" => set_zero(spec, "matchingPrecedence", 1000),
        "PriorityLevelConfiguration" => {
            if let Some(exempt) = child(spec, "exempt") {
                set(exempt, "nominalConcurrencyShares", 0);
                set(exempt, "lendablePercent", 0);
            }
            if let Some(limited) = child(spec, "limited") {
                set(limited, "nominalConcurrencyShares", 30);
                set(limited, "lendablePercent", 0);
                let response = child(limited, "limitResponse");
                if let Some(queuing) = response.and_then(|response| child(response, "queuing")) {
                    set_zero(queuing, "handSize", 8);
                    set_zero(queuing, "queues", 64);
                    set_zero(queuing, "queueLengthLimit", 50);
                }
            }
        }
        _ => {}
    }
    made(object, "status");
}
