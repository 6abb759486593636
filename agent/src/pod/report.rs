//! A pod's status on its way to the API: computed after each event, written when it differs from
//! what was written last, one write at a time. Also the pod's last word: its DELETE.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tracing::{debug, warn};

use crate::connection::chain;
use crate::context::Context;
use crate::pod::ended::now;
use crate::pod::registry::PodView;
use crate::pod::state::doubled;
use crate::pod::worker::{Done, Origin, Worker};
use crate::pod::{spec, status};

const RETRY_FIRST: Duration = Duration::from_secs(1);
/// kubelet's status manager tries again as often.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// The conditions that are the node's to write.
const OWN: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// How a write ended.
#[derive(Debug)]
pub(crate) enum Written {
    /// At which revision.
    Done(i64),
    /// The object is gone, or another of that name is there.
    Gone,
    Again,
}

#[derive(Debug)]
pub(crate) struct Report {
    /// What the API has, as far as known; source of transition times and foreign conditions.
    current: PodStatus,
    /// What was sent last.
    sent: Option<PodStatus>,
    /// Revision of the last write: what is older says nothing about it.
    written: i64,
    in_flight: bool,
    /// Writes that failed since one succeeded.
    failures: u32,
    frozen: bool,
    /// The status in the API is not known yet: the pod is from the checkpoint, which has none.
    unheard: bool,
}

impl Report {
    pub(crate) fn new(pod: &Pod) -> Report {
        Report {
            current: pod.status.clone().unwrap_or_default(),
            sent: pod.status.clone(),
            written: revision(pod),
            in_flight: false,
            failures: 0,
            frozen: false,
            unheard: pod.metadata.resource_version.is_none(),
        }
    }

    /// Takes the API's first word on a pod of the checkpoint as what is there. True when it was that.
    pub(crate) fn is_first(&mut self, pod: &Pod) -> bool {
        let first = self.unheard && pod.metadata.resource_version.is_some();
        if first {
            let start_time = self.current.start_time.take();
            let frozen = self.frozen;
            *self = Report::new(pod);
            self.current.start_time = self.current.start_time.take().or(start_time);
            self.frozen = frozen;
        }
        first
    }

    /// The pod's end is on record already.
    pub(crate) fn freeze(&mut self) {
        self.frozen = true;
    }

    pub(crate) fn rewrite(&mut self) {
        self.sent = None;
    }

    /// Something is not written yet.
    pub(crate) fn pending(&self) -> bool {
        self.in_flight
            || (!self.frozen && self.sent.as_ref().is_none_or(|s| !same(&self.current, s)))
    }

    pub(crate) fn start_time(&self) -> Option<Timestamp> {
        self.current.start_time.as_ref().map(|time| time.0)
    }

    /// Takes over what others wrote: conditions that aren't the node's.
    pub(crate) fn take_foreign(&mut self, pod: &Pod) {
        let of_api = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let foreign: Vec<PodCondition> =
            of_api.filter(|c| !OWN.contains(&c.type_.as_str())).cloned().collect();
        let conditions = self.current.conditions.get_or_insert_with(Vec::new);
        conditions.retain(|condition| OWN.contains(&condition.type_.as_str()));
        conditions.extend(foreign.clone());
        if let Some(sent) = &mut self.sent {
            let conditions = sent.conditions.get_or_insert_with(Vec::new);
            conditions.retain(|condition| OWN.contains(&condition.type_.as_str()));
            conditions.extend(foreign);
        }
    }

    /// Writes again what someone else has changed since, as the master does for a node that it does not hear.
    pub(crate) fn reconcile(&mut self, pod: &Pod) {
        if !self.in_flight && self.overruled(pod) {
            self.rewrite();
        }
    }

    fn overruled(&self, pod: &Pod) -> bool {
        let Some(sent) = self.sent.as_ref().filter(|_| revision(pod) > self.written) else {
            return false;
        };
        let own = |status: Option<&PodStatus>| {
            let conditions = status.and_then(|status| status.conditions.as_ref());
            let own = conditions.into_iter().flatten().filter(|c| OWN.contains(&c.type_.as_str()));
            own.map(|c| (c.type_.clone(), c.status.clone())).collect::<BTreeMap<_, _>>()
        };
        own(pod.status.as_ref()) != own(Some(sent))
    }
}

fn revision(pod: &Pod) -> i64 {
    let text = pod.metadata.resource_version.as_deref();
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Equal in everything the node reports.
fn same(a: &PodStatus, b: &PodStatus) -> bool {
    let conditions = |status: &PodStatus| {
        let mut all: Vec<_> = status
            .conditions
            .iter()
            .flatten()
            .map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone(), c.message.clone()))
            .collect();
        all.sort();
        all
    };
    a.phase == b.phase
        && a.reason == b.reason
        && a.message == b.message
        && a.pod_ips == b.pod_ips
        && a.host_ips == b.host_ips
        && a.container_statuses == b.container_statuses
        && a.init_container_statuses == b.init_container_statuses
        && a.observed_generation == b.observed_generation
        && a.start_time == b.start_time
        && conditions(a) == conditions(b)
}

/// The strategic merge patch from one status to the next: what vanished becomes null.
fn patch(uid: &str, before: Option<&PodStatus>, after: &PodStatus) -> Value {
    let mut body = serde_json::to_value(after).unwrap_or_default();
    let conditions = body.get_mut("conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        if let Some(condition) = condition.as_object_mut() {
            for field in ["reason", "message"] {
                condition.entry(field).or_insert(Value::Null);
            }
        }
    }
    if let (Some(fields), Some(before)) = (body.as_object_mut(), before) {
        let before = serde_json::to_value(before).unwrap_or_default();
        for field in ["reason", "message", "podIP"] {
            if before.get(field).is_some() && !fields.contains_key(field) {
                fields.insert(field.to_owned(), Value::Null);
            }
        }
        for (list, key) in [("podIPs", "ip"), ("hostIPs", "ip")] {
            remove_vanished(fields, &before, list, key);
        }
        remove_vanished(fields, &before, "conditions", "type");
        clear_texts(fields, &before);
    }
    json!({"metadata": {"uid": uid}, "status": body})
}

/// Lists merged by key keep what isn't named, so what is gone is named as deleted.
fn remove_vanished(
    fields: &mut serde_json::Map<String, Value>,
    before: &Value,
    list: &str,
    key: &str,
) {
    let Some(old) = before.get(list).and_then(Value::as_array) else { return };
    let new = fields.entry(list).or_insert_with(|| Value::Array(Vec::new()));
    let Some(new) = new.as_array_mut() else { return };
    let gone: Vec<Value> = old
        .iter()
        .filter_map(|item| item.get(key))
        .filter(|id| !new.iter().any(|item| item.get(key) == Some(id)))
        .map(|id| json!({key: id, "$patch": "delete"}))
        .collect();
    new.extend(gone);
}

/// Merged conditions keep the fields that aren't named, so a text that is gone is named as null.
fn clear_texts(fields: &mut serde_json::Map<String, Value>, before: &Value) {
    let old = before.get("conditions").and_then(Value::as_array);
    let new = fields.get_mut("conditions").and_then(Value::as_array_mut);
    for condition in new.into_iter().flatten().filter_map(Value::as_object_mut) {
        let was = old.into_iter().flatten().find(|c| c.get("type") == condition.get("type"));
        for field in ["reason", "message"] {
            if was.is_some_and(|was| was.get(field).is_some()) && !condition.contains_key(field) {
                condition.insert(field.to_owned(), Value::Null);
            }
        }
    }
}

impl Worker {
    /// Computes the status, shows it to the node's own server and sends it if it is news.
    pub(crate) fn publish(&mut self) {
        if !self.report.frozen {
            let none = Vec::new();
            let pod_ips = self.sandbox.as_ref().map_or(&none, |sandbox| &sandbox.ips);
            let computed = status::status(&status::Inputs {
                pod: &self.pod,
                observed: &self.observed,
                previous: &self.report.current,
                pod_ips,
                host_ips: &self.context.host_ips(),
                now: now(),
            });
            self.report.current = keep_addresses(computed, &self.report.current);
        }
        self.registry.publish(PodView {
            pod: self.pod.clone(),
            status: self.report.current.clone(),
            netns: self.sandbox.as_ref().and_then(|sandbox| sandbox.netns.clone()),
            cgroup: self.sandbox.as_ref().map(|sandbox| sandbox.cgroup.clone()).unwrap_or_default(),
        });
        let ended = matches!(self.report.current.phase.as_deref(), Some("Succeeded" | "Failed"));
        if ended
            && !self.report.frozen
            && self.report.sent.as_ref().and_then(|s| s.phase.as_ref())
                != self.report.current.phase.as_ref()
        {
            let mut pod = (*self.pod).clone();
            pod.status = Some(self.report.current.clone());
            self.context.checkpoint.save_pod(&pod);
        }
        self.send();
    }

    fn send(&mut self) {
        let Some(uid) = self.status_uid() else { return };
        if self.report.in_flight || self.report.frozen || self.gone || !self.report.pending() {
            return;
        }
        let wanted = self.report.current.clone();
        let patch = patch(&uid, self.report.sent.as_ref(), &wanted);
        self.report.sent = Some(wanted);
        self.report.in_flight = true;
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let pause = doubled(RETRY_FIRST, self.report.failures, RETRY_MAX);
        self.ops.push(Box::pin(async move {
            let written = write(&context, &pod, patch).await;
            if matches!(written, Written::Again) {
                tokio::time::sleep(pause).await;
            }
            Done::Written(written)
        }));
    }

    /// The UID of the object that shows this pod on the master.
    fn status_uid(&self) -> Option<String> {
        match &self.origin {
            Origin::Api => self.pod.metadata.uid.clone().filter(|_| !self.report.unheard),
            Origin::Static { mirror } => mirror.clone(),
        }
    }

    pub(crate) fn take_written(&mut self, written: Written) {
        self.report.in_flight = false;
        match written {
            Written::Done(revision) => {
                self.report.written = revision;
                self.report.failures = 0;
                if self.origin == Origin::Api {
                    self.report.reconcile(&self.pod);
                }
            }
            Written::Gone => {
                debug!(pod = %spec::describe(&self.pod), "the pod is gone from the master");
                if self.origin == Origin::Api {
                    self.report.frozen = true;
                }
            }
            Written::Again => {
                self.report.failures = self.report.failures.saturating_add(1);
                self.report.sent = None;
            }
        }
    }
}

/// A pod that has ended keeps the addresses it had.
fn keep_addresses(mut status: PodStatus, before: &PodStatus) -> PodStatus {
    if status.pod_ips.is_none() {
        status.pod_ip.clone_from(&before.pod_ip);
        status.pod_ips.clone_from(&before.pod_ips);
    }
    if status.host_ips.is_none() {
        status.host_ip.clone_from(&before.host_ip);
        status.host_ips.clone_from(&before.host_ips);
    }
    status
}

async fn write(context: &Context, pod: &Pod, patch: Value) -> Written {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), spec::namespace(pod));
    let patch = Patch::Strategic(patch);
    match api.patch_status(spec::name(pod), &PatchParams::default(), &patch).await {
        Ok(pod) => Written::Done(revision(&pod)),
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Written::Gone,
        Err(error) => {
            warn!(pod = %spec::describe(pod), error = %chain(&error), "a status was not written");
            Written::Again
        }
    }
}

/// Deletes the API object for good, however long the master is away.
pub(crate) async fn delete_from_api(context: &Arc<Context>, pod: &Pod, origin: &Origin) {
    let Origin::Api = origin else { return };
    let api: Api<Pod> = Api::namespaced(context.client.clone(), spec::namespace(pod));
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    for failures in 0.. {
        match api.delete(spec::name(pod), &params).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => return,
            Err(error) => {
                warn!(pod = %spec::describe(pod), error = %chain(&error), "a pod was not deleted");
                tokio::time::sleep(doubled(RETRY_FIRST, failures, RETRY_MAX)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_names_what_has_vanished() {
        let before: PodStatus = serde_json::from_value(json!({
            "phase": "Running", "reason": "x", "podIP": "1.1.1.1", "podIPs": [{"ip": "1.1.1.1"}],
            "conditions": [{"type": "Ready", "status": "True", "message": "m"}, {"type": "Old", "status": "True"}]
        }))
        .unwrap();
        let after: PodStatus = serde_json::from_value(json!({
            "phase": "Running", "podIP": "2.2.2.2", "podIPs": [{"ip": "2.2.2.2"}],
            "conditions": [{"type": "Ready", "status": "False"}]
        }))
        .unwrap();
        let patch = patch("u", Some(&before), &after);
        assert_eq!(patch["metadata"]["uid"], "u");
        assert_eq!(patch["status"]["reason"], Value::Null);
        assert_eq!(patch["status"]["conditions"][0].get("message"), Some(&Value::Null));
        assert_eq!(patch["status"]["podIPs"][1], json!({"ip": "1.1.1.1", "$patch": "delete"}));
        let ready = json!({"type": "Ready", "status": "False", "reason": null, "message": null});
        assert_eq!(patch["status"]["conditions"][0], ready);
        assert_eq!(patch["status"]["conditions"][1], json!({"type": "Old", "$patch": "delete"}));
        assert!(!same(&before, &after) && same(&after, &after));
    }

    #[test]
    fn a_pod_of_the_checkpoint_tells_nothing_before_the_api_has_spoken() {
        let mut saved = pod("", "");
        saved.metadata.resource_version = None;
        let start_time: PodStatus =
            serde_json::from_value(json!({"startTime": "2026-01-01T00:00:00Z"})).unwrap();
        saved.status = Some(start_time.clone());
        let mut report = Report::new(&saved);
        assert!(report.unheard && !report.is_first(&saved));
        let heard = pod("9", "True");
        assert!(report.is_first(&heard) && !report.unheard && !report.is_first(&heard));
        assert_eq!((report.written, &report.sent), (9, &heard.status));
        assert_eq!(report.current.start_time, start_time.start_time);
    }

    fn pod(revision: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"resourceVersion": revision},
            "status": {"conditions": [{"type": "Ready", "status": ready}, {"type": "Gate", "status": ready}]}
        }))
        .unwrap()
    }

    #[test]
    fn what_another_wrote_over_is_written_again() {
        for (event, in_flight, again) in [
            (pod("9", "False"), false, false),
            (pod("11", "True"), false, false),
            (pod("11", "False"), false, true),
            (pod("11", "False"), true, false),
        ] {
            let mut report = Report::new(&pod("10", "True"));
            report.in_flight = in_flight;
            report.reconcile(&event);
            assert_eq!(report.sent.is_none(), again, "{event:?} {in_flight}");
        }
    }
}
