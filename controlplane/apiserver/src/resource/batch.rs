//! Rows of the batch group. Must not touch the store.

use apimachinery::object;
use serde_json::{Value, json};

use super::{
    strategy::{Generation, Strategy},
    table::Resource,
};

/// The group's rows, in discovery's order.
pub(super) fn rows() -> Vec<Resource> {
    let plain = Strategy {
        generation: Generation::Content,
        empty_status: Some(|| json!({})),
        ..Strategy::default()
    };
    vec![
        Resource::new("batch", "v1", "CronJob", "cronjobs")
            .short(&["cj"])
            .category("all")
            .status()
            .strategy(plain),
        Resource::new("batch", "v1", "Job", "jobs")
            .category("all")
            .status()
            .field_at("status.successful", "status.succeeded", "0")
            .strategy(Strategy {
                prepare_create: job_prepare_create,
                orphans_dependents: true,
                ..plain
            }),
    ]
}

/// Unless `manualSelector` is asked for, a Job selects its pods by its own UID.
fn job_prepare_create(object: &mut Value) {
    if object["spec"]["manualSelector"].as_bool() == Some(true) {
        return;
    }
    let uid = object::uid(object).to_owned();
    let name = object::name(object).to_owned();
    let labels = object::at_mut(object, &["spec", "template", "metadata", "labels"]);
    let labels = object::map_mut(labels);
    for (key, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        labels.insert(key.to_owned(), value.as_str().into());
    }
    let selector = object::at_mut(object, &["spec", "selector", "matchLabels"]);
    object::map_mut(selector).insert("batch.kubernetes.io/controller-uid".to_owned(), uid.into());
}
