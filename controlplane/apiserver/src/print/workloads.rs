//! Rows of workloads: controllers of pods, jobs, autoscalers. Pure; Kubernetes 1.36 (`pkg/printers/internalversion`).

use super::columns::{AGE, NAME, boolean, integer, text as column, wide};
use super::read::{NONE, Printed, UNSET, at, bool_text, int, labels, list, or, selector, text};
use super::{Cells, Printer, duration};
use jiff::Timestamp;
use serde_json::{Value, json};

const TEMPLATE: &str = "/spec/template/spec";

pub(super) const DEPLOYMENTS: Printer = (
    &[
        NAME,
        column("Ready"),
        column("Up-to-date"),
        column("Available"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    deployments,
);
pub(super) const REPLICA_SETS: Printer = (
    &[
        NAME,
        integer("Desired"),
        integer("Current"),
        integer("Ready"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    replica_sets,
);
pub(super) const REPLICATION_CONTROLLERS: Printer = (REPLICA_SETS.0, replication_controllers);
pub(super) const STATEFUL_SETS: Printer =
    (&[NAME, column("Ready"), AGE, wide("Containers"), wide("Images")], stateful_sets);
pub(super) const DAEMON_SETS: Printer = (
    &[
        NAME,
        integer("Desired"),
        integer("Current"),
        integer("Ready"),
        integer("Up-to-date"),
        integer("Available"),
        column("Node Selector"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    daemon_sets,
);
pub(super) const CONTROLLER_REVISIONS: Printer =
    (&[NAME, column("Controller"), column("Revision"), AGE], controller_revisions);
pub(super) const JOBS: Printer = (
    &[
        NAME,
        column("Status"),
        column("Completions"),
        column("Duration"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    jobs,
);
pub(super) const CRON_JOBS: Printer = (
    &[
        NAME,
        column("Schedule"),
        column("Timezone"),
        boolean("Suspend"),
        integer("Active"),
        column("Last Schedule"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cron_jobs,
);
pub(super) const AUTOSCALERS: Printer = (
    &[
        NAME,
        column("Reference"),
        column("Targets"),
        column("MinPods"),
        column("MaxPods"),
        column("Replicas"),
        AGE,
    ],
    autoscalers,
);

fn with_template(mut cells: Cells, printed: &Printed<'_>, selector: Option<String>) -> Cells {
    cells.extend(printed.containers(TEMPLATE));
    cells.extend(selector.map(|selector| json!(selector)));
    cells
}

fn deployments(printed: &Printed<'_>) -> Cells {
    let cells = vec![
        json!(printed.name()),
        json!(format!(
            "{}/{}",
            printed.int("/status/readyReplicas"),
            printed.int("/spec/replicas")
        )),
        json!(printed.int("/status/updatedReplicas")),
        json!(printed.int("/status/availableReplicas")),
        json!(printed.age()),
    ];
    with_template(cells, printed, Some(selector(at(printed.object, "/spec/selector"))))
}

fn replicas(printed: &Printed<'_>) -> Cells {
    vec![
        json!(printed.name()),
        json!(printed.int("/spec/replicas")),
        json!(printed.int("/status/replicas")),
        json!(printed.int("/status/readyReplicas")),
        json!(printed.age()),
    ]
}

fn replica_sets(printed: &Printed<'_>) -> Cells {
    let selector = selector(at(printed.object, "/spec/selector"));
    with_template(replicas(printed), printed, Some(selector))
}

fn replication_controllers(printed: &Printed<'_>) -> Cells {
    let selector = labels(at(printed.object, "/spec/selector"));
    with_template(replicas(printed), printed, Some(selector))
}

fn stateful_sets(printed: &Printed<'_>) -> Cells {
    let cells = vec![
        json!(printed.name()),
        json!(format!(
            "{}/{}",
            printed.int("/status/readyReplicas"),
            printed.int("/spec/replicas")
        )),
        json!(printed.age()),
    ];
    with_template(cells, printed, None)
}

fn daemon_sets(printed: &Printed<'_>) -> Cells {
    let node_selector = labels(at(printed.object, "/spec/template/spec/nodeSelector"));
    let cells = vec![
        json!(printed.name()),
        json!(printed.int("/status/desiredNumberScheduled")),
        json!(printed.int("/status/currentNumberScheduled")),
        json!(printed.int("/status/numberReady")),
        json!(printed.int("/status/updatedNumberScheduled")),
        json!(printed.int("/status/numberAvailable")),
        json!(node_selector),
        json!(printed.age()),
    ];
    with_template(cells, printed, Some(selector(at(printed.object, "/spec/selector"))))
}

fn controller_revisions(printed: &Printed<'_>) -> Cells {
    let owner = printed.list("/metadata/ownerReferences").iter().find(|o| o["controller"] == true);
    let controller = owner.map_or(NONE.to_owned(), |owner| {
        let version = text(owner, "/apiVersion");
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let kind = text(owner, "/kind").to_lowercase();
        let kind = if group.is_empty() { kind } else { format!("{kind}.{group}") };
        format!("{kind}/{}", text(owner, "/name"))
    });
    vec![
        json!(printed.name()),
        json!(controller),
        json!(printed.int("/revision")),
        json!(printed.age()),
    ]
}

fn jobs(printed: &Printed<'_>) -> Cells {
    let cells = vec![
        json!(printed.name()),
        json!(job_status(printed)),
        json!(completions(printed)),
        json!(job_duration(printed)),
        json!(printed.age()),
    ];
    with_template(cells, printed, Some(selector(at(printed.object, "/spec/selector"))))
}

fn job_status(printed: &Printed<'_>) -> &'static str {
    let has = |kind: &str| {
        printed
            .list("/status/conditions")
            .iter()
            .any(|c| text(c, "/type") == kind && text(c, "/status") == "True")
    };
    if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if printed.has("/metadata/deletionTimestamp") {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn completions(printed: &Printed<'_>) -> String {
    let succeeded = printed.int("/status/succeeded");
    match at(printed.object, "/spec/completions").as_i64() {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None => match printed.int("/spec/parallelism") {
            parallelism if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
            _ => format!("{succeeded}/1"),
        },
    }
}

fn job_duration(printed: &Printed<'_>) -> String {
    let time = |pointer: &str| printed.text(pointer).parse::<Timestamp>().ok();
    let Some(start) = time("/status/startTime") else { return String::new() };
    let end = time("/status/completionTime").unwrap_or(printed.now);
    duration::human(duration::between(start, end))
}

fn cron_jobs(printed: &Printed<'_>) -> Cells {
    let last = match printed.has("/status/lastScheduleTime") {
        true => printed.since("/status/lastScheduleTime"),
        false => NONE.to_owned(),
    };
    let mut cells = vec![
        json!(printed.name()),
        json!(printed.text("/spec/schedule")),
        json!(or(printed.text("/spec/timeZone"), NONE)),
        json!(bool_text(at(printed.object, "/spec/suspend"))),
        json!(printed.count("/status/active")),
        json!(last),
        json!(printed.age()),
    ];
    cells.extend(printed.containers("/spec/jobTemplate/spec/template/spec"));
    cells.push(json!(selector(at(printed.object, "/spec/jobTemplate/spec/selector"))));
    cells
}

fn autoscalers(printed: &Printed<'_>) -> Cells {
    let reference = format!(
        "{}/{}",
        printed.text("/spec/scaleTargetRef/kind"),
        printed.text("/spec/scaleTargetRef/name")
    );
    let minimum = match at(printed.object, "/spec/minReplicas").as_i64() {
        Some(minimum) => minimum.to_string(),
        None => UNSET.to_owned(),
    };
    vec![
        json!(printed.name()),
        json!(reference),
        json!(targets(printed.object)),
        json!(minimum),
        json!(printed.int("/spec/maxReplicas")),
        json!(printed.int("/status/currentReplicas")),
        json!(printed.age()),
    ]
}

fn targets(autoscaler: &Value) -> String {
    if let Some(wanted) = at(autoscaler, "/spec/targetCPUUtilizationPercentage").as_i64() {
        let current = at(autoscaler, "/status/currentCPUUtilizationPercentage").as_i64();
        let current = current.map_or("<unknown>".to_owned(), |percent| format!("{percent}%"));
        return format!("cpu: {current}/{wanted}%");
    }
    let metrics = list(autoscaler, "/spec/metrics");
    let shown: Vec<String> = metrics
        .iter()
        .take(2)
        .enumerate()
        .map(|(index, metric)| {
            let status = at(autoscaler, &format!("/status/currentMetrics/{index}"));
            target(metric, status)
        })
        .collect();
    match (shown.is_empty(), metrics.len().saturating_sub(2)) {
        (true, _) => NONE.to_owned(),
        (false, 0) => shown.join(", "),
        (false, more) => format!("{} + {more} more...", shown.join(", ")),
    }
}

fn target(metric: &Value, status: &Value) -> String {
    let (source, named) = match text(metric, "/type") {
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "External" => ("external", false),
        _ => return "<unknown type>".to_owned(),
    };
    let wanted = &metric[source]["target"];
    let current = &status[source]["current"];
    let value = |name: &str| or(text(current, name), "<unknown>").to_owned();
    let (current, wanted) = if !wanted["averageUtilization"].is_null() {
        let current = current["averageUtilization"].as_i64();
        let current = current.map_or("<unknown>".to_owned(), |percent| format!("{percent}%"));
        (current, format!("{}%", int(wanted, "/averageUtilization")))
    } else if !wanted["averageValue"].is_null() {
        let average = if named || source == "pods" { "" } else { " (avg)" };
        (value("/averageValue"), format!("{}{average}", text(wanted, "/averageValue")))
    } else {
        (value("/value"), text(wanted, "/value").to_owned())
    };
    match named {
        true => format!("{}: {current}/{wanted}", text(metric, &format!("/{source}/name"))),
        false => format!("{current}/{wanted}"),
    }
}
