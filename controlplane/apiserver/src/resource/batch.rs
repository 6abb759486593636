//! Rows of the batch group. Must not touch the store.

use serde_json::{Value, json};

use super::{strategy::Strategy, table::Resource};

/// The group's rows, in discovery's order.
pub(super) fn rows() -> Vec<Resource> {
    let plain =
        Strategy { generation: true, empty_status: Some(|| json!({})), ..Strategy::default() };
    vec![
        Resource::new("batch", "v1", "CronJob", "cronjobs")
            .short(&["cj"])
            .category("all")
            .status()
            .strategy(plain),
        Resource::new("batch", "v1", "Job", "jobs")
            .category("all")
            .status()
            .field("status.successful", &["status", "succeeded"])
            .strategy(Strategy { prepare_create: job_prepare_create, ..plain }),
    ]
}

/// Unless `manualSelector` is asked for, a Job selects its pods by its own UID.
fn job_prepare_create(object: &mut Value) {
    if object["spec"]["manualSelector"].as_bool() == Some(true) {
        return;
    }
    let Some(uid) = object["metadata"]["uid"].as_str().map(str::to_owned) else { return };
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let labels = &mut object["spec"]["template"]["metadata"]["labels"];
    labels["batch.kubernetes.io/controller-uid"] = uid.as_str().into();
    labels["batch.kubernetes.io/job-name"] = name.as_str().into();
    labels["controller-uid"] = uid.as_str().into();
    labels["job-name"] = name.as_str().into();
    if !object["spec"]["selector"].is_object() {
        object["spec"]["selector"] = json!({});
    }
    object["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"] = uid.into();
}
