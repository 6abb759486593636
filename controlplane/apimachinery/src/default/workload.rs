//! Defaults of the groups apps and batch (`pkg/apis/{apps,batch}/v1/defaults.go`, Kubernetes 1.36).

use serde_json::Value;

use super::core::{claim_template, default_labels, template_labels};
use super::{child, each, empty, made, pod, set, set_zero, text};
use crate::object::Object;

/// Retries that never end, where failures are counted per index.
const UNLIMITED: i32 = i32::MAX;

pub(super) fn apply(kind: &str, object: &mut Object) {
    match kind {
        "Deployment" => deployment(object),
        "ReplicaSet" => {
            let spec = made(object, "spec");
            set(spec, "replicas", 1);
            pod::template(made(spec, "template"));
            set(made(object, "status"), "replicas", 0);
        }
        "StatefulSet" => stateful_set(object),
        "DaemonSet" => daemon_set(object),
        "Job" => {
            let labels = template_labels(object);
            default_labels(object, labels);
            let spec = made(object, "spec");
            job_defaults(spec);
            job_template(spec);
            made(object, "status");
        }
        "CronJob" => cron_job(object),
        _ => {}
    }
}

fn deployment(object: &mut Object) {
    let spec = made(object, "spec");
    set(spec, "replicas", 1);
    let strategy = made(spec, "strategy");
    set_zero(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = made(strategy, "rollingUpdate");
        set(rolling, "maxUnavailable", "25%");
        set(rolling, "maxSurge", "25%");
    }
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
    pod::template(made(spec, "template"));
    made(object, "status");
}

fn stateful_set(object: &mut Object) {
    let spec = made(object, "spec");
    set_zero(spec, "podManagementPolicy", "OrderedReady");
    let strategy = made(spec, "updateStrategy");
    if text(strategy, "type").is_empty() {
        set_zero(strategy, "type", "RollingUpdate");
        made(strategy, "rollingUpdate");
    }
    if text(strategy, "type") == "RollingUpdate"
        && let Some(rolling) = child(strategy, "rollingUpdate")
    {
        set(rolling, "partition", 0);
    }
    let retention = made(spec, "persistentVolumeClaimRetentionPolicy");
    set_zero(retention, "whenDeleted", "Retain");
    set_zero(retention, "whenScaled", "Retain");
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    pod::template(made(spec, "template"));
    each(spec, "volumeClaimTemplates").for_each(claim_template);
    let status = made(object, "status");
    set(status, "replicas", 0);
    set(status, "availableReplicas", 0);
}

fn daemon_set(object: &mut Object) {
    let spec = made(object, "spec");
    let strategy = made(spec, "updateStrategy");
    set_zero(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = made(strategy, "rollingUpdate");
        set(rolling, "maxUnavailable", 1);
        set(rolling, "maxSurge", 0);
    }
    set(spec, "revisionHistoryLimit", 10);
    pod::template(made(spec, "template"));
    let status = made(object, "status");
    for count in
        ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"]
    {
        set(status, count, 0);
    }
}

fn job_defaults(spec: &mut Object) {
    let absent = |spec: &Object, key: &str| spec.get(key).is_none_or(Value::is_null);
    if absent(spec, "completions") && absent(spec, "parallelism") {
        set(spec, "completions", 1);
    }
    set(spec, "parallelism", 1);
    let limit = if absent(spec, "backoffLimitPerIndex") { 6 } else { UNLIMITED };
    set(spec, "backoffLimit", limit);
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    set(spec, "manualSelector", false);
    let replacement =
        if absent(spec, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    set(spec, "podReplacementPolicy", replacement);
}

/// What also holds for the job template of a CronJob.
fn job_template(spec: &mut Object) {
    if let Some(policy) = child(spec, "podFailurePolicy") {
        for condition in each(policy, "rules").flat_map(|rule| each(rule, "onPodConditions")) {
            set_zero(condition, "status", "True");
        }
    }
    pod::template(made(spec, "template"));
}

fn cron_job(object: &mut Object) {
    let spec = made(object, "spec");
    set_zero(spec, "concurrencyPolicy", "Allow");
    set(spec, "suspend", false);
    set(spec, "successfulJobsHistoryLimit", 3);
    set(spec, "failedJobsHistoryLimit", 1);
    let template = made(spec, "jobTemplate");
    set(template, "metadata", empty());
    job_template(made(template, "spec"));
    made(object, "status");
}
