//! What is remembered of a pod's containers beyond the agent's life. On disk, across a reboot: that
//! one which must not run twice has run, and how it ended for good. In the run folder, until a
//! reboot: what probes last said. Both are written when they change, never otherwise.
//!
//! `checkpoint/runs/<uid>/<container>` holds a sealed [`Run`], `pods/<uid>/verdicts` of the run folder
//! the JSON of [`Verdicts`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::checkpoint::Checkpoint;
use crate::config::write_atomic;
use crate::pod::spec;
use crate::pod::state::{ContainerObserved, Ended, Life};

/// What a container did that isn't to be done again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Run {
    Started,
    Ended(Ended),
}

/// What probes said of a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) id: String,
    pub(crate) started: bool,
    pub(crate) ready: bool,
}

/// By container.
pub(crate) type Verdicts = BTreeMap<String, Verdict>;

#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) runs: BTreeMap<String, Run>,
    pub(crate) verdicts: Verdicts,
}

impl Memory {
    pub(crate) fn load(checkpoint: &Checkpoint, pod: &Pod, pins: &Path) -> Memory {
        let text = std::fs::read(verdicts_file(pins)).unwrap_or_default();
        let spec = pod.spec.iter();
        let names =
            spec.flat_map(|spec| spec::init_containers(spec).iter().chain(&spec.containers));
        let run = |name: &String| checkpoint.run(spec::uid(pod), name);
        Memory {
            runs: names.filter_map(|c| Some((c.name.clone(), run(&c.name)?))).collect(),
            verdicts: serde_json::from_slice(&text).unwrap_or_default(),
        }
    }
}

/// Written off the agent's thread, and on disk when it returns.
pub(crate) async fn save_run(
    checkpoint: &Arc<Checkpoint>,
    (uid, container): (String, String),
    run: Run,
) {
    let checkpoint = checkpoint.clone();
    let saved = tokio::task::spawn_blocking(move || checkpoint.save_run(&uid, &container, &run));
    if let Err(error) = saved.await {
        debug!(%error, "the agent ends before a run was written down");
    }
}

pub(crate) fn verdicts(containers: &BTreeMap<String, ContainerObserved>) -> Verdicts {
    let of = |(name, container): (&String, &ContainerObserved)| match &container.life {
        Life::Running { id, .. } | Life::Stopping { id, .. } => {
            let (started, ready) = (container.started, container.ready);
            Some((name.clone(), Verdict { id: id.clone(), started, ready }))
        }
        _ => None,
    };
    containers.iter().filter_map(of).collect()
}

/// Keeps them with the sandbox's pins, which they go away with.
pub(crate) fn save_verdicts(pins: &Path, verdicts: &Verdicts) {
    if !pins.exists() {
        return;
    }
    let saved = serde_json::to_vec(verdicts)
        .map_err(std::io::Error::from)
        .and_then(|text| write_atomic(&verdicts_file(pins), &text, 0o600));
    if let Err(error) = saved {
        debug!(%error, "probes' verdicts won't outlive the agent");
    }
}

fn verdicts_file(pins: &Path) -> PathBuf {
    pins.join("verdicts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_of_running_containers_come_back() {
        let life = Life::Running { id: "x".into(), started_at: jiff::Timestamp::UNIX_EPOCH };
        let up = ContainerObserved { life, started: true, ready: true, ..Default::default() };
        let all = BTreeMap::from([("a".to_owned(), up), ("b".to_owned(), Default::default())]);
        let dir = tempfile::tempdir().unwrap();
        let said = verdicts(&all);
        save_verdicts(dir.path(), &said);
        let text = std::fs::read(verdicts_file(dir.path())).unwrap();
        assert_eq!(serde_json::from_slice::<Verdicts>(&text).unwrap(), said);
        assert_eq!(said.keys().collect::<Vec<_>>(), ["a"]);
        save_verdicts(&dir.path().join("none"), &said);
        assert!(!dir.path().join("none").exists());
    }
}
