//! `approval` and `status` of a CertificateSigningRequest: who may say what is decided by which of the two is written.
//! Must not let a signer approve, nor an approver sign.

use apimachinery::object;
use jiff::Timestamp;
use serde_json::Value;

use crate::verb::{update::Part, write};

pub(super) const APPROVAL: Part = Part { isolate: keep_but_approval, ..Part::STATUS };
pub(super) const STATUS: Part = Part { isolate: keep_but_signature, ..Part::STATUS };

fn is_verdict(condition: &Value) -> bool {
    matches!(object::text(condition, &["type"]), "Approved" | "Denied")
}

fn conditions(object: &Value) -> Vec<Value> {
    object::list(object, &["status", "conditions"]).cloned().collect()
}

/// The conditions come from the approver, everything else stays.
fn keep_but_approval(object: &mut Value, old: &Value) {
    let mut wanted = conditions(object);
    stamp(&mut wanted);
    let version = object::resource_version(object).to_owned();
    *object = old.clone();
    *object::at_mut(object, &["metadata", "resourceVersion"]) = version.into();
    set_conditions(object, wanted);
}

/// The certificate and the failures come from the signer; verdicts stay.
fn keep_but_signature(object: &mut Value, old: &Value) {
    write::isolate_status(object, old);
    let mut wanted: Vec<Value> = conditions(old).into_iter().filter(is_verdict).collect();
    wanted.extend(conditions(object).into_iter().filter(|c| !is_verdict(c)));
    stamp(&mut wanted);
    set_conditions(object, wanted);
}

fn set_conditions(object: &mut Value, conditions: Vec<Value>) {
    let status = object::map_mut(object::at_mut(object, &["status"]));
    if conditions.is_empty() {
        status.remove("conditions");
    } else {
        status.insert("conditions".to_owned(), conditions.into());
    }
}

fn stamp(conditions: &mut [Value]) {
    let now = object::time(Timestamp::now());
    for condition in conditions {
        let condition = object::map_mut(condition);
        for (key, value) in [("lastUpdateTime", &now), ("lastTransitionTime", &now)] {
            let empty = condition.get(key).is_none_or(|v| v.is_null() || v == "");
            if empty {
                condition.insert(key.to_owned(), value.as_str().into());
            }
        }
        condition.entry("status").or_insert_with(|| "True".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn verdict_and_signature_stay_apart() {
        let old = json!({"metadata": {"name": "c"}, "spec": {"request": "r"}, "status": {}});
        let mut approved = json!({"metadata": {}, "spec": {"request": "evil"}, "status": {
            "certificate": "evil", "conditions": [{"type": "Approved", "status": "True"}]}});
        keep_but_approval(&mut approved, &old);
        assert_eq!(approved["spec"], old["spec"]);
        assert!(approved["status"]["certificate"].is_null());
        assert_eq!(approved["status"]["conditions"][0]["type"], "Approved");
        assert!(approved["status"]["conditions"][0]["lastUpdateTime"].is_string());
        let mut signed = json!({"metadata": {}, "status": {"certificate": "pem",
            "conditions": [{"type": "Denied", "status": "True"}]}});
        keep_but_signature(&mut signed, &approved);
        assert_eq!(signed["status"]["certificate"], "pem");
        assert_eq!(signed["status"]["conditions"], approved["status"]["conditions"]);
    }
}
