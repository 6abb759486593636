//! From what the monitor says of a container to what is observed of it: how it ended, with which
//! message, and which container of a pod it is after a restart of the agent.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use monitor::protocol::{ContainerState, Phase};

use crate::pod::memory::{Memory, Run, Verdict};
use crate::pod::state::{ContainerObserved, Ended, Life};
use crate::pod::{container, plan, spec};

/// Kubernetes 1.36: longest termination message, and what of the log stands in for it.
const MESSAGE_BYTES_MAX: u64 = 4096;
const LOG_BYTES_MAX: u64 = 2048;
const LOG_LINES_MAX: usize = 80;

const UNKNOWN: &str = "ContainerStatusUnknown";
const UNKNOWN_MESSAGE: &str = "The container could not be located when the pod was terminated";

/// The API tells time in seconds.
pub(crate) fn seconds(nanoseconds: i64) -> Timestamp {
    Timestamp::from_second(nanoseconds.div_euclid(1_000_000_000)).unwrap_or_default()
}

pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()
}

pub(crate) fn ended(state: &ContainerState) -> Option<Ended> {
    let exit = state.exit.as_ref()?;
    let reason = match exit.code {
        _ if exit.lost => UNKNOWN,
        _ if exit.oom_killed => "OOMKilled",
        0 => "Completed",
        _ => "Error",
    };
    let message =
        if exit.lost { UNKNOWN_MESSAGE.to_owned() } else { termination_message(state, exit.code) };
    Some(Ended {
        id: state.id.clone(),
        code: exit.code,
        // As runtimes behind kubelet: the code says it, the field stays empty.
        signal: None,
        reason: reason.to_owned(),
        message,
        started_at: Some(seconds(state.started_at.unwrap_or(state.created_at))),
        finished_at: seconds(exit.finished_at),
    })
}

fn termination_message(state: &ContainerState, code: i32) -> String {
    let path = state.annotations.get(container::TERMINATION_LOG);
    let text = path.and_then(|path| read_head(Path::new(path)).ok()).unwrap_or_default();
    let policy = state.annotations.get(container::TERMINATION_POLICY).map(String::as_str);
    if !text.is_empty() || policy != Some("FallbackToLogsOnError") || code == 0 {
        return text;
    }
    state.log_path.as_deref().and_then(|path| log_tail(path).ok()).unwrap_or_default()
}

fn read_head(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a CRI log, without its time stamps.
fn log_tail(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX * 4)))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES_MAX * 4).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let first = lines.len().saturating_sub(LOG_LINES_MAX);
    let tail = lines[first..].iter().map(|line| format!("{line}\n")).collect::<String>();
    let limit = usize::try_from(LOG_BYTES_MAX).unwrap_or(usize::MAX);
    let mut cut = tail.len().saturating_sub(limit);
    while !tail.is_char_boundary(cut) {
        cut += 1;
    }
    Ok(tail[cut..].to_owned())
}

/// Containers of a pod found running (or ended) when the agent starts. `logs` is the pod's log folder:
/// after a reboot it remembers how often containers were started, and `memory` which are done.
pub(crate) fn adopt(
    pod: &Pod,
    states: &[ContainerState],
    logs: &Path,
    memory: &Memory,
) -> BTreeMap<String, ContainerObserved> {
    let mut adopted = BTreeMap::new();
    let Some(spec) = &pod.spec else { return adopted };
    for container in spec::init_containers(spec).iter().chain(&spec.containers) {
        let name = &container.name;
        let mut own: Vec<&ContainerState> =
            states.iter().filter(|state| state.name == *name).collect();
        own.retain(|state| state.phase != Phase::Created);
        own.sort_by_key(|state| state.attempt);
        let observed = match own.split_last() {
            Some((latest, before)) => {
                let last = before.last().and_then(|state| ended(state));
                Some(adopt_found(container, latest, memory.verdicts.get(name), last))
            }
            None => {
                let by_api = starts_by_api(pod, name);
                let starts = by_api.max(starts_by_logs(&logs.join(name)));
                let once = by_api.is_some() && plan::runs_once(spec, container);
                let run = memory.runs.get(name).cloned().or(once.then_some(Run::Started));
                recall(run, starts)
            }
        };
        adopted.extend(observed.map(|observed| (name.clone(), observed)));
    }
    adopted
}

fn adopt_found(
    container: &Container,
    latest: &ContainerState,
    verdict: Option<&Verdict>,
    last: Option<Ended>,
) -> ContainerObserved {
    let running = latest.phase == Phase::Running;
    let life = match ended(latest) {
        Some(end) if !running => Life::Exited(end),
        _ => Life::Running {
            id: latest.id.clone(),
            started_at: seconds(latest.started_at.unwrap_or(latest.created_at)),
        },
    };
    let verdict = verdict.filter(|verdict| verdict.id == latest.id);
    let annotation = |key: &str| latest.annotations.get(key).cloned().unwrap_or_default();
    ContainerObserved {
        life,
        restarts: latest.attempt,
        last,
        started: running
            && (container.startup_probe.is_none() || verdict.is_some_and(|said| said.started)),
        ready: running
            && (container.readiness_probe.is_none() || verdict.is_some_and(|said| said.ready)),
        image: annotation(container::IMAGE),
        image_id: annotation(container::IMAGE_ID),
        tried: true,
        ..Default::default()
    }
}

/// A container of before a reboot: one that is done stays so, the others go on counting.
fn recall(run: Option<Run>, starts: Option<u32>) -> Option<ContainerObserved> {
    let starts = starts.or(run.is_some().then_some(1))?;
    let (life, restarts, last) = match run {
        Some(Run::Ended(end)) => (Life::Exited(end), starts.saturating_sub(1), None),
        Some(Run::Started) => (Life::Exited(unseen_end()), starts.saturating_sub(1), None),
        None => (Life::Absent, starts, Some(unseen_end())),
    };
    Some(ContainerObserved { life, restarts, last, ..Default::default() })
}

/// kubelet's words for an end that nobody saw.
fn unseen_end() -> Ended {
    Ended {
        id: String::new(),
        code: 137,
        signal: None,
        reason: UNKNOWN.to_owned(),
        message: UNKNOWN_MESSAGE.to_owned(),
        started_at: None,
        finished_at: now(),
    }
}

/// How often the API knows it to have been started.
fn starts_by_api(pod: &Pod, name: &str) -> Option<u32> {
    let status = pod.status.as_ref()?;
    let all = [&status.container_statuses, &status.init_container_statuses];
    let found = all.into_iter().flatten().flatten().find(|status| status.name == name)?;
    found.container_id.as_ref()?;
    u32::try_from(found.restart_count).ok()?.checked_add(1)
}

/// kubelet's `calcRestartCountByLogDir`: the highest `<n>.log`, and one more.
fn starts_by_logs(dir: &Path) -> Option<u32> {
    let names = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.file_name());
    let numbers = names.filter_map(|name| name.to_str()?.split('.').next()?.parse::<u32>().ok());
    numbers.max()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use monitor::protocol::Exit;

    use super::*;

    fn state(name: &str, attempt: u32, exit: Option<Exit>) -> ContainerState {
        ContainerState {
            id: format!("{name}{attempt}"),
            pod_uid: "u".into(),
            name: name.into(),
            attempt,
            phase: if exit.is_some() { Phase::Exited } else { Phase::Running },
            pid: 1,
            pid_start_time: 0,
            created_at: 5_000_000_000,
            started_at: Some(6_500_000_000),
            exit,
            log_path: None,
            annotations: BTreeMap::new(),
        }
    }

    fn exit(code: i32, oom_killed: bool) -> Exit {
        Exit { code, signal: None, oom_killed, lost: false, finished_at: 9_900_000_000 }
    }

    #[test]
    fn ends_have_kubernetes_reasons_and_messages() {
        for (code, oom, reason) in
            [(0, false, "Completed"), (3, false, "Error"), (137, true, "OOMKilled")]
        {
            let end = ended(&state("a", 0, Some(exit(code, oom)))).unwrap();
            assert_eq!((end.reason.as_str(), end.finished_at.as_second()), (reason, 9));
        }
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(&log, "t stdout F one\nt stderr F two\n").unwrap();
        let mut failed = state("a", 0, Some(exit(1, false)));
        failed.log_path = Some(log);
        assert_eq!(ended(&failed).unwrap().message, "");
        failed
            .annotations
            .insert(container::TERMINATION_POLICY.into(), "FallbackToLogsOnError".into());
        assert_eq!(ended(&failed).unwrap().message, "one\ntwo\n");
        let file = dir.path().join("termination");
        std::fs::write(&file, "because").unwrap();
        failed.annotations.insert(container::TERMINATION_LOG.into(), file.display().to_string());
        assert_eq!(ended(&failed).unwrap().message, "because");
    }

    #[test]
    fn a_long_log_is_cut_between_characters() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        let lines: Vec<String> = (0..40)
            .map(|i| format!("t stdout F {}{}\n", "x".repeat(i % 3), "é€".repeat(20)))
            .collect();
        for skip in 0..3 {
            std::fs::write(&log, lines[skip..].concat()).unwrap();
            let tail = log_tail(&log).unwrap();
            assert!((2045..=2048).contains(&tail.len()), "{}", tail.len());
            assert!(tail.ends_with("é€\n") && !tail.contains('\u{fffd}'));
        }
    }

    #[test]
    fn the_latest_attempt_is_adopted_with_its_predecessor() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
            "status": {"containerStatuses": [{"name": "b", "restartCount": 4, "image": "", "imageID": "",
                "ready": true, "containerID": "flotilla://x"}]}
        }))
        .unwrap();
        let states = [state("a", 2, None), state("a", 1, Some(exit(1, false)))];
        let logs = tempfile::tempdir().unwrap();
        let adopted = adopt(&pod, &states, logs.path(), &Memory::default());
        let a = &adopted["a"];
        assert_eq!((a.restarts, a.last.as_ref().unwrap().code), (2, 1));
        assert!(matches!(&a.life, Life::Running { id, .. } if id == "a2") && a.ready);
        assert_eq!((adopted["b"].restarts, &adopted["b"].life), (5, &Life::Absent));
        std::fs::create_dir(logs.path().join("b")).unwrap();
        std::fs::write(logs.path().join("b/7.log.20260101"), "").unwrap();
        assert_eq!(adopt(&pod, &states, logs.path(), &Memory::default())["b"].restarts, 8);
    }

    #[test]
    fn probes_are_believed_over_a_restart_of_the_agent() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers":
            [{"name": "a", "startupProbe": {}, "readinessProbe": {}}]}}))
        .unwrap();
        let logs = tempfile::tempdir().unwrap();
        for (id, expected) in [("a2", true), ("a1", false)] {
            let verdict = Verdict { id: id.into(), started: true, ready: true };
            let verdicts = BTreeMap::from([("a".to_owned(), verdict)]);
            let memory = Memory { verdicts, ..Memory::default() };
            let a = &adopt(&pod, &[state("a", 2, None)], logs.path(), &memory)["a"];
            assert_eq!((a.started, a.ready), (expected, expected), "{id}");
        }
    }

    #[test]
    fn after_a_reboot_what_is_done_stays_done_and_the_rest_counts_on() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"restartPolicy": "OnFailure",
            "containers": [{"name": "done"}, {"name": "cut"}, {"name": "failed"}, {"name": "new"}]}}))
        .unwrap();
        let logs = tempfile::tempdir().unwrap();
        for name in ["done", "cut", "failed"] {
            std::fs::create_dir(logs.path().join(name)).unwrap();
            std::fs::write(logs.path().join(name).join("1.log"), "").unwrap();
        }
        let end = ended(&state("done", 1, Some(exit(0, false)))).unwrap();
        let runs = BTreeMap::from([
            ("done".to_owned(), Run::Ended(end.clone())),
            ("cut".to_owned(), Run::Started),
        ]);
        let adopted = adopt(&pod, &[], logs.path(), &Memory { runs, ..Memory::default() });
        assert_eq!((&adopted["done"].life, adopted["done"].restarts), (&Life::Exited(end), 1));
        let cut = adopted["cut"].exited().unwrap();
        assert_eq!((cut.reason.as_str(), cut.code), ("ContainerStatusUnknown", 137));
        let failed = &adopted["failed"];
        assert_eq!((&failed.life, failed.restarts), (&Life::Absent, 2));
        assert_eq!(failed.last.as_ref().unwrap().code, 137);
        assert!(!adopted.contains_key("new"));
    }
}
