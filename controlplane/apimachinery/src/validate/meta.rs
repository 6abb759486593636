//! `ObjectMeta`, labels, annotations and label selectors (`k8s.io/apimachinery/pkg/api/validation`).

use serde_json::Value;

use super::text::{
    ANNOTATIONS_BYTES_MAX, Wrong, dns1035_label, dns1123_label, dns1123_subdomain, label_value,
    path_segment_name, qualified_name,
};
use super::view::{entries, flag, get, has, int, invalid, items, shown, text, texts};
use crate::field::{FieldError, FieldErrors, Path};
use crate::gvk::GroupVersionKind;
use crate::object;

const METADATA: Path<'static> = Path::new("metadata");

/// Kinds that live in no namespace.
const CLUSTER_SCOPED: &[(&str, &str)] = &[
    ("", "ComponentStatus"),
    ("", "Namespace"),
    ("", "Node"),
    ("", "PersistentVolume"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("apiregistration.k8s.io", "APIService"),
    ("certificates.k8s.io", "CertificateSigningRequest"),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema"),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"),
    ("networking.k8s.io", "IPAddress"),
    ("networking.k8s.io", "IngressClass"),
    ("networking.k8s.io", "ServiceCIDR"),
    ("node.k8s.io", "RuntimeClass"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("scheduling.k8s.io", "PriorityClass"),
    ("storage.k8s.io", "CSIDriver"),
    ("storage.k8s.io", "CSINode"),
    ("storage.k8s.io", "StorageClass"),
    ("storage.k8s.io", "VolumeAttachment"),
    ("storage.k8s.io", "VolumeAttributesClass"),
];

/// True for the built-in kinds that live in a namespace.
pub fn is_namespaced(gvk: GroupVersionKind<'_>) -> bool {
    !CLUSTER_SCOPED.contains(&(gvk.group, gvk.kind))
}

/// What is wrong with an object's name, by its kind. `prefix`: the name is a `generateName`, which may end in a dash.
pub fn object_name(gvk: GroupVersionKind<'_>, name: &str, prefix: bool) -> Wrong {
    let masked;
    let name = if prefix && name.len() > 1 && name.ends_with('-') {
        masked = format!("{}a", &name[..name.len() - 1]);
        masked.as_str()
    } else {
        name
    };
    match (gvk.group, gvk.kind) {
        ("", "Service") => dns1035_label(name),
        ("", "Namespace") | ("apps", "StatefulSet") => dns1123_label(name),
        ("rbac.authorization.k8s.io", _) => path_segment_name(name),
        ("certificates.k8s.io", _) => Wrong::new(),
        ("networking.k8s.io", "IPAddress") => super::text::ip(name),
        _ => dns1123_subdomain(name),
    }
}

/// Metadata of a new object; its name is made already.
pub(super) fn create(errors: &mut FieldErrors, gvk: GroupVersionKind<'_>, object: &Value) {
    let empty = Value::Null;
    let metadata = get(object, "metadata").unwrap_or(&empty);
    let (name, base) = (text(metadata, "name"), text(metadata, "generateName"));
    if !base.is_empty() {
        invalid(errors, &METADATA.child("generateName"), base, object_name(gvk, base, true));
    }
    if name.is_empty() {
        let why = "name or generateName is required";
        errors.push(FieldError::required(&METADATA.child("name"), why));
    } else {
        invalid(errors, &METADATA.child("name"), name, object_name(gvk, name, false));
    }
    let (namespace, path) = (text(metadata, "namespace"), METADATA.child("namespace"));
    match (is_namespaced(gvk), namespace) {
        (true, "") => errors.push(FieldError::required(&path, "")),
        (true, namespace) => invalid(errors, &path, namespace, dns1123_label(namespace)),
        (false, "") => {}
        (false, _) => errors.push(FieldError::forbidden(&path, "not allowed on this type")),
    }
    common(errors, metadata);
}

/// Metadata of a changed object. The resource version is the registry's to compare.
pub(super) fn update(errors: &mut FieldErrors, object: &Value, old: &Value) {
    let empty = Value::Null;
    let metadata = get(object, "metadata").unwrap_or(&empty);
    let before = get(old, "metadata").unwrap_or(&empty);
    if has(before, "deletionTimestamp") {
        let extra: Vec<&str> = texts(metadata, "finalizers")
            .filter(|one| texts(before, "finalizers").all(|other| other != *one))
            .collect();
        if !extra.is_empty() {
            let quoted: Vec<_> = extra.iter().map(|one| crate::field::quote(one)).collect();
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                quoted.join(", ")
            );
            errors.push(FieldError::forbidden(&METADATA.child("finalizers"), why));
        }
    }
    let generations = (int(metadata, "generation"), int(before, "generation"));
    if matches!(generations, (Some(new), Some(old)) if new < old) {
        let path = METADATA.child("generation");
        let value = shown(metadata, "generation");
        errors.push(FieldError::invalid(&path, value, "must not be decremented"));
    }
    for key in ["name", "namespace"] {
        super::view::immutable(errors, (metadata, before), key, &METADATA);
    }
    // A client may leave these out: the registry keeps them.
    for key in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if has(metadata, key) {
            super::view::immutable(errors, (metadata, before), key, &METADATA);
        }
    }
    common(errors, metadata);
}

fn common(errors: &mut FieldErrors, metadata: &Value) {
    super::view::not_negative(errors, metadata, &["generation"], &METADATA);
    labels(errors, metadata, "labels", &METADATA);
    annotations(errors, metadata, &METADATA);
    owners(errors, metadata);
    finalizers(errors, metadata);
}

/// The label map at `key` of `value`.
pub(super) fn labels(errors: &mut FieldErrors, value: &Value, key: &str, parent: &Path<'_>) {
    let path = parent.child(key);
    for (name, value) in entries(value, key) {
        invalid(errors, &path, name, qualified_name(name));
        let value = value.as_str().unwrap_or_default();
        invalid(errors, &path, value, label_value(value));
    }
}

/// `annotations` of `value`.
pub(super) fn annotations(errors: &mut FieldErrors, value: &Value, parent: &Path<'_>) {
    let path = parent.child("annotations");
    let mut bytes = 0;
    for (name, value) in entries(value, "annotations") {
        invalid(errors, &path, name, qualified_name(&name.to_lowercase()));
        bytes += name.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long(&path, ANNOTATIONS_BYTES_MAX));
    }
}

fn owners(errors: &mut FieldErrors, metadata: &Value) {
    let path = METADATA.child("ownerReferences");
    let mut controller = String::new();
    for owner in items(metadata, "ownerReferences") {
        let gvk =
            GroupVersionKind::from_api_version(text(owner, "apiVersion"), text(owner, "kind"));
        if gvk.version.is_empty() {
            let path = path.child("apiVersion");
            errors.push(FieldError::invalid(
                &path,
                text(owner, "apiVersion"),
                "version must not be empty",
            ));
        }
        for key in ["kind", "name", "uid"] {
            if text(owner, key).is_empty() {
                errors.push(FieldError::invalid(&path.child(key), "", "must not be empty"));
            }
        }
        if gvk == GroupVersionKind::new("", "v1", "Event") {
            let why = format!("{gvk} is disallowed from being an owner");
            errors.push(FieldError::invalid(&path, owner.clone(), why));
        }
        if flag(owner, "controller") {
            let name = format!("{}/{}", gvk.kind, text(owner, "name"));
            if controller.is_empty() {
                controller = name;
            } else {
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {controller} and {name}"
                );
                let all = shown(metadata, "ownerReferences");
                errors.push(FieldError::invalid(&path, all, why));
            }
        }
    }
}

/// Finalizers of Kubernetes' own that have no domain.
const PLAIN_FINALIZERS: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];

fn finalizers(errors: &mut FieldErrors, metadata: &Value) {
    let path = METADATA.child("finalizers");
    let names: Vec<&str> = texts(metadata, "finalizers").collect();
    for name in &names {
        invalid(errors, &path, name, qualified_name(name));
    }
    if names.contains(&"orphan") && names.contains(&"foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(&path, shown(metadata, "finalizers"), why));
    }
    for (index, name) in names.iter().enumerate() {
        if !name.contains('/') && !PLAIN_FINALIZERS.contains(name) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(&path.index(index), *name, why));
        }
    }
}

/// A `metav1.LabelSelector` at `path`.
pub(super) fn label_selector(errors: &mut FieldErrors, selector: &Value, path: &Path<'_>) {
    labels(errors, selector, "matchLabels", path);
    let expressions = path.child("matchExpressions");
    for (index, expression) in items(selector, "matchExpressions").iter().enumerate() {
        let path = expressions.index(index);
        let values = path.child("values");
        match text(expression, "operator") {
            "In" | "NotIn" if items(expression, "values").is_empty() => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(&values, why));
            }
            "Exists" | "DoesNotExist" if !items(expression, "values").is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(&values, why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                let why = "not a valid selector operator";
                errors.push(FieldError::invalid(&path.child("operator"), other, why));
            }
        }
        let key = text(expression, "key");
        invalid(errors, &path.child("key"), key, qualified_name(key));
        for (index, value) in texts(expression, "values").enumerate() {
            invalid(errors, &values.index(index), value, label_value(value));
        }
    }
}

/// True for a selector without any requirement.
pub(super) fn is_empty_selector(selector: &Value) -> bool {
    object::at(selector, &["matchLabels"])
        .and_then(Value::as_object)
        .is_none_or(|map| map.is_empty())
        && items(selector, "matchExpressions").is_empty()
}
