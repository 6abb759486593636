//! What a pod asks for, read from its spec: quantities, QoS class, container lists, grace. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Kubernetes' default for `terminationGracePeriodSeconds`.
const GRACE_SECONDS_DEFAULT: i64 = 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Requests,
    Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

pub(crate) fn restart_policy(spec: &PodSpec) -> RestartPolicy {
    match spec.restart_policy.as_deref() {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

/// An init container that keeps running beside the pod's containers.
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub(crate) fn init_containers(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

pub(crate) fn find_container<'a>(spec: &'a PodSpec, name: &str) -> Option<&'a Container> {
    init_containers(spec).iter().chain(&spec.containers).find(|container| container.name == name)
}

pub(crate) fn find_container_image(pod: &Pod, name: &str) -> String {
    let container = pod.spec.as_ref().and_then(|spec| find_container(spec, name));
    container.and_then(|container| container.image.clone()).unwrap_or_default()
}

pub(crate) fn grace_seconds(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or_else(|| pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds))
        .unwrap_or(GRACE_SECONDS_DEFAULT)
}

pub(crate) fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `name_namespace(uid)`, as kubelet writes pods in messages.
pub(crate) fn describe(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// A quantity in thousandths, rounded up. `None` when it does not parse.
pub(crate) fn parse_milli(text: &str) -> Option<u64> {
    const POWERS: [(&str, i32, u32); 15] = [
        ("Ki", 0, 10),
        ("Mi", 0, 20),
        ("Gi", 0, 30),
        ("Ti", 0, 40),
        ("Pi", 0, 50),
        ("Ei", 0, 60),
        ("n", -9, 0),
        ("u", -6, 0),
        ("m", -3, 0),
        ("k", 3, 0),
        ("M", 6, 0),
        ("G", 9, 0),
        ("T", 12, 0),
        ("P", 15, 0),
        ("E", 18, 0),
    ];
    let found = POWERS.iter().find(|(suffix, ..)| text.ends_with(suffix));
    let (number, mut ten, two) = match found {
        Some((suffix, ten, two)) => (text.strip_suffix(suffix)?, *ten, *two),
        None => (text, 0, 0),
    };
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (number, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    ten += exponent + 3 - i32::try_from(fraction.len()).ok()?;
    let scaled = digits.checked_mul(1u128.checked_shl(two)?)?;
    let power = 10u128.checked_pow(ten.unsigned_abs())?;
    let value = if ten >= 0 { scaled.checked_mul(power)? } else { scaled.div_ceil(power) };
    u64::try_from(value).ok().or(Some(u64::MAX))
}

/// A quantity in whole units, rounded up.
pub(crate) fn parse_units(text: &str) -> Option<u64> {
    // Large byte counts overflow thousandths, so those without a fraction go their own way.
    parse_milli_wide(text)
}

fn parse_milli_wide(text: &str) -> Option<u64> {
    match text.parse::<u64>() {
        Ok(plain) => Some(plain),
        Err(_) => parse_milli(text).map(|milli| milli.div_ceil(1000)),
    }
}

fn quantity<'a>(
    resources: Option<&'a ResourceRequirements>,
    name: &str,
    side: Side,
) -> Option<&'a Quantity> {
    let list: &BTreeMap<String, Quantity> = match side {
        Side::Requests => resources?.requests.as_ref()?,
        Side::Limits => resources?.limits.as_ref()?,
    };
    list.get(name)
}

/// Thousandths of a CPU (or of anything).
pub(crate) fn milli(
    resources: Option<&ResourceRequirements>,
    name: &str,
    side: Side,
) -> Option<u64> {
    quantity(resources, name, side).and_then(|quantity| parse_milli(&quantity.0))
}

pub(crate) fn bytes(
    resources: Option<&ResourceRequirements>,
    name: &str,
    side: Side,
) -> Option<u64> {
    quantity(resources, name, side).and_then(|quantity| parse_units(&quantity.0))
}

/// Thousandths of CPU the whole pod asks for: its containers and sidecars, or a larger init step.
pub(crate) fn pod_milli_requests(pod: &Pod) -> u64 {
    let Some(spec) = &pod.spec else { return 0 };
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        milli(resources, "cpu", Side::Requests)
            .or_else(|| milli(resources, "cpu", Side::Limits))
            .unwrap_or(0)
    };
    let mains: u64 = spec.containers.iter().map(of).sum();
    let mut sidecars = 0;
    let mut init_peak = 0;
    for container in init_containers(spec) {
        if is_sidecar(container) {
            sidecars += of(container);
            init_peak = init_peak.max(sidecars);
        } else {
            init_peak = init_peak.max(sidecars + of(container));
        }
    }
    init_peak.max(mains + sidecars)
}

/// The pod's limit: the sum over containers and sidecars when each has one (or the largest init
/// step); `cpu` in thousandths, the rest in units.
pub(crate) fn pod_limit(pod: &Pod, name: &str) -> Option<u64> {
    let spec = pod.spec.as_ref()?;
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        let found = if name == "cpu" {
            milli(resources, name, Side::Limits)
        } else {
            bytes(resources, name, Side::Limits)
        };
        found.filter(|value| *value > 0)
    };
    let mut total: u64 = 0;
    for container in &spec.containers {
        total = total.saturating_add(of(container)?);
    }
    let mut sidecars: u64 = 0;
    let mut peak: u64 = 0;
    for container in init_containers(spec) {
        let value = of(container)?;
        if is_sidecar(container) {
            sidecars = sidecars.saturating_add(value);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.saturating_add(value));
        }
    }
    Some(peak.max(total.saturating_add(sidecars)))
}

/// The pod's QoS class, by Kubernetes' rule over CPU and memory.
pub(crate) fn qos(pod: &Pod) -> Qos {
    let Some(spec) = &pod.spec else { return Qos::BestEffort };
    let mut any = false;
    let mut guaranteed = true;
    for container in init_containers(spec).iter().chain(&spec.containers) {
        let resources = container.resources.as_ref();
        for name in ["cpu", "memory"] {
            let request = milli(resources, name, Side::Requests).filter(|v| *v > 0);
            let limit = milli(resources, name, Side::Limits).filter(|v| *v > 0);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, milli) in [
            ("100m", 100),
            ("1", 1000),
            ("0.5", 500),
            ("1.5", 1500),
            ("64Mi", 67_108_864_000),
            ("1e3", 1_000_000),
            ("1k", 1_000_000),
            ("1n", 1),
            ("0", 0),
        ] {
            assert_eq!(parse_milli(text), Some(milli), "{text}");
        }
        assert_eq!(parse_units("64Mi"), Some(64 << 20));
        assert_eq!(parse_units("1536Ki"), Some(1536 << 10));
        assert_eq!(parse_units("128974848000m"), Some(128_974_848));
        for bad in ["", "x", "1.2.3", "Mi", "1 Gi"] {
            assert_eq!(parse_milli(bad), None, "{bad}");
        }
    }

    fn pod(resources: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "uid": "u"},
            "spec": {"containers": [{"name": "c", "resources": resources}]}
        }))
        .unwrap()
    }

    #[test]
    fn qos_classes() {
        let cases = [
            (serde_json::json!({}), Qos::BestEffort),
            (serde_json::json!({"requests": {"cpu": "1"}}), Qos::Burstable),
            (serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}), Qos::Guaranteed),
            (
                serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1024Mi"}}),
                Qos::Guaranteed,
            ),
            (serde_json::json!({"limits": {"cpu": "1"}}), Qos::Burstable),
        ];
        for (resources, expected) in cases {
            assert_eq!(qos(&pod(resources.clone())), expected, "{resources}");
        }
    }
}
