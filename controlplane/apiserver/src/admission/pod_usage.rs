//! What a pod asks for in all: the sums that limits and quotas are compared with. Pure; Kubernetes 1.36
//! (`k8s.io/component-helpers/resource`).
//!
//! Containers run together, so they add up; init containers run one after the other, so the largest counts; sidecars (init
//! containers that go on running) add to both.

use apimachinery::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;

/// Amounts by resource name.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

/// `requests` or `limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Requests,
    Limits,
}

impl Side {
    pub(crate) fn member(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Limits => "limits",
        }
    }
}

/// A `ResourceList`. What can't be parsed is validation's matter and counts as nothing here.
pub(crate) fn amounts(list: &Value) -> Amounts {
    let parse = |value: &Value| match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    };
    list.as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), parse(value)?)))
        .collect()
}

pub(crate) fn add(into: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let sum = into.get(name).copied().unwrap_or_default().plus(*amount);
        into.insert(name.clone(), sum);
    }
}

fn raise(into: &mut Amounts, other: Amounts) {
    for (name, amount) in other {
        let known = into.entry(name).or_default();
        *known = (*known).max(amount);
    }
}

/// What the whole pod requests, or is limited to.
pub(crate) fn of_pod(pod: &Value, side: Side) -> Amounts {
    let spec = &pod["spec"];
    let of = |container: &Value| amounts(&container["resources"][side.member()]);
    let each = |list: &str| spec[list].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut sum = Amounts::new();
    for container in each("containers") {
        add(&mut sum, &of(container));
    }
    let (mut sidecars, mut largest) = (Amounts::new(), Amounts::new());
    for container in each("initContainers") {
        let mut wanted = of(container);
        if container["restartPolicy"] == "Always" {
            add(&mut sum, &wanted);
            add(&mut sidecars, &wanted);
            wanted.clone_from(&sidecars);
        } else {
            add(&mut wanted, &sidecars);
        }
        raise(&mut largest, wanted);
    }
    raise(&mut sum, largest);
    for (name, amount) in amounts(&spec["resources"][side.member()]) {
        sum.insert(name, amount);
    }
    // Overhead counts for limits only where there is a limit.
    for (name, amount) in amounts(&spec["overhead"]) {
        if side == Side::Requests || sum.contains_key(&name) {
            let total = sum.get(&name).copied().unwrap_or_default().plus(amount);
            sum.insert(name, total);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_sum_the_largest_and_the_sidecars() {
        let of = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = of("100m");
        sidecar["restartPolicy"] = json!("Always");
        let cpu = |init: Value| {
            let pod = json!({"spec": {"containers": [of("200m"), of("300m")],
                "initContainers": init, "overhead": {"cpu": "10m"}}});
            of_pod(&pod, Side::Requests)["cpu"].milli_value()
        };
        assert_eq!(cpu(json!([])), 510);
        assert_eq!(cpu(json!([of("400m")])), 510);
        assert_eq!(cpu(json!([of("900m")])), 910);
        assert_eq!(cpu(json!([sidecar])), 610);
        assert_eq!(cpu(json!([sidecar, of("900m")])), 1010);
        assert_eq!(cpu(json!([of("900m"), sidecar])), 910);
    }
}
