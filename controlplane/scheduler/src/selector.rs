//! Label and node selectors over label maps. Pure.

use crate::node::NodeInfo;
use k8s_openapi::{
    api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use std::collections::BTreeMap;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Whether the labels satisfy the selector; an empty selector matches all, an unknown operator nothing.
pub(crate) fn matches_labels(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    equal
        && selector.match_expressions.iter().flatten().all(|e| {
            requirement(&e.operator, labels.get(&e.key), e.values.as_deref().unwrap_or_default())
        })
}

fn requirement(operator: &str, value: Option<&String>, wanted: &[String]) -> bool {
    match operator {
        "In" => value.is_some_and(|v| wanted.contains(v)),
        "NotIn" => value.is_none_or(|v| !wanted.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value).zip(number(wanted.first())).is_some_and(|(v, w)| v > w),
        "Lt" => number(value).zip(number(wanted.first())).is_some_and(|(v, w)| v < w),
        _ => false,
    }
}

fn number(text: Option<&String>) -> Option<i64> {
    text?.parse().ok()
}

/// Whether one of the terms matches the node; terms are ORed, a term without any requirement matches nothing.
pub(crate) fn matches_node_terms(terms: &[NodeSelectorTerm], node: &NodeInfo) -> bool {
    terms.iter().any(|t| matches_node_term(t, node))
}

/// Whether all requirements of the term hold for the node.
pub(crate) fn matches_node_term(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let holds = |r: &NodeSelectorRequirement, value: Option<&String>| {
        requirement(&r.operator, value, r.values.as_deref().unwrap_or_default())
    };
    let name = node.name.to_string();
    expressions.iter().all(|r| holds(r, node.labels.get(&r.key)))
        && fields.iter().all(|r| holds(r, (r.key == "metadata.name").then_some(&name)))
}
