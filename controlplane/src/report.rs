//! Owns what this master tells of its store beyond the API server's own figures: as metrics, which are also where `status` reads them. Decides
//! nothing.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use apiserver::MetricsSource;
use store::seal::Keyring;

use crate::encryption::Progress;
use crate::schedule::Told;

/// Where the figures come from.
#[derive(Debug)]
pub struct Report {
    /// `embedded`, or `etcd`.
    pub datastore: &'static str,
    /// The encryption keys.
    pub ring: Arc<Keyring>,
    /// How far values follow the newest key.
    pub progress: Arc<Progress>,
    /// What became of scheduled snapshots; `None`: there is no schedule.
    pub snapshots: Option<Arc<Told>>,
}

impl MetricsSource for Report {
    fn write(&self, out: &mut String) {
        // Writing to a String cannot fail.
        let _infallible = self.lines(out);
    }
}

impl Report {
    fn lines(&self, out: &mut String) -> std::fmt::Result {
        let datastore = self.datastore;
        writeln!(out, "# TYPE flotilla_datastore_info gauge")?;
        writeln!(out, "flotilla_datastore_info{{kind=\"{datastore}\"}} 1")?;
        writeln!(out, "# TYPE flotilla_cluster_secret_info gauge")?;
        let secret = self.ring.secret().name();
        writeln!(out, "flotilla_cluster_secret_info{{name=\"{secret}\"}} 1")?;
        writeln!(out, "# TYPE flotilla_encryption_key_revision gauge")?;
        for key in self.ring.keys() {
            let name = escaped(&key.name);
            writeln!(out, "flotilla_encryption_key_revision{{name=\"{name}\"}} {}", key.revision)?;
        }
        let left = self.progress.left.load(Ordering::Relaxed);
        gauge(out, "flotilla_encryption_values_behind", left)?;
        let Some(told) = &self.snapshots else { return Ok(()) };
        let told = told.now();
        for (name, value) in [("", told.taken), ("_failures", told.failures)] {
            let name = format!("flotilla_scheduled_snapshot{name}_total");
            writeln!(out, "# TYPE {name} counter\n{name} {value}")?;
        }
        if let Some(last) = told.last {
            let seconds = last.at.as_second();
            writeln!(out, "# TYPE flotilla_scheduled_snapshot_timestamp_seconds gauge")?;
            writeln!(out, "flotilla_scheduled_snapshot_timestamp_seconds {seconds}")?;
            gauge(out, "flotilla_scheduled_snapshot_bytes", last.bytes)?;
        }
        if let Some(failure) = told.failure {
            let failure = escaped(&failure);
            writeln!(out, "# TYPE flotilla_scheduled_snapshot_failure_info gauge")?;
            writeln!(out, "flotilla_scheduled_snapshot_failure_info{{reason=\"{failure}\"}} 1")?;
        }
        Ok(())
    }
}

fn gauge(out: &mut String, name: &str, value: u64) -> std::fmt::Result {
    writeln!(out, "# TYPE {name} gauge\n{name} {value}")
}

/// As the text format has it in a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
