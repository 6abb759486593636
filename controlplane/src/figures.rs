//! Owns what `status` tells of the store: read from the master's metrics, told to people and programs. Must not ask anybody.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

/// What the store holds and did, and what looks after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    datastore: String,
    revision: u64,
    keys: u64,
    bytes: u64,
    written_bytes: u64,
    flushes: u64,
    checkpoints: u64,
    checkpoint_failures: u64,
    cluster_secret: String,
    /// Oldest first.
    encryption_keys: Vec<String>,
    values_behind: u64,
    snapshots: Option<Snapshots>,
}

/// What became of the schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Snapshots {
    taken: u64,
    failures: u64,
    failure: Option<String>,
    /// When the newest was taken, and its size.
    last: Option<(Timestamp, u64)>,
}

/// One line of the Prometheus text format, with at most one label.
struct Sample<'a> {
    name: &'a str,
    label: Option<String>,
    value: f64,
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let (name, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
    let (name, label) = match name.split_once('{') {
        None => (name, None),
        Some((name, labels)) => {
            let (_, label) = labels.strip_suffix("\"}")?.split_once("=\"")?;
            (name, Some(unescaped(label)))
        }
    };
    Some(Sample { name, label, value: value.parse().ok()? })
}

fn unescaped(label: &str) -> String {
    let (mut text, mut rest) = (String::new(), label.chars());
    while let Some(char) = rest.next() {
        match char {
            '\\' => text.extend(rest.next().map(|next| if next == 'n' { '\n' } else { next })),
            other => text.push(other),
        }
    }
    text
}

impl Figures {
    /// `None`: the master tells nothing of its store; it is of another version.
    pub fn parse(metrics: &str) -> Option<Self> {
        let samples: Vec<_> = metrics.lines().filter_map(sample).collect();
        let find = |name: &str| samples.iter().find(|sample| sample.name == name);
        let number = |name: &str| find(name).map(|sample| whole(sample.value));
        let label = |name: &str| find(name).and_then(|sample| sample.label.clone());
        let keys = samples.iter().filter(|one| one.name == "flotilla_encryption_key_revision");
        let scheduled = "flotilla_scheduled_snapshot";
        let snapshots = number(&format!("{scheduled}_total")).map(|taken| Snapshots {
            taken,
            failures: number(&format!("{scheduled}_failures_total")).unwrap_or_default(),
            failure: label(&format!("{scheduled}_failure_info")),
            last: find(&format!("{scheduled}_timestamp_seconds")).and_then(|sample| {
                let at = Timestamp::from_second(whole(sample.value).cast_signed()).ok()?;
                Some((at, number(&format!("{scheduled}_bytes")).unwrap_or_default()))
            }),
        });
        Some(Self {
            datastore: label("flotilla_datastore_info")?,
            revision: number("etcd_debugging_mvcc_current_revision")?,
            keys: number("etcd_debugging_mvcc_keys_total")?,
            bytes: number("apiserver_storage_size_bytes")?,
            written_bytes: number("flotilla_store_written_bytes_total").unwrap_or_default(),
            flushes: number("flotilla_store_flushes_total").unwrap_or_default(),
            checkpoints: number("flotilla_store_checkpoints_total").unwrap_or_default(),
            checkpoint_failures: number("flotilla_store_checkpoint_failures_total")
                .unwrap_or_default(),
            cluster_secret: label("flotilla_cluster_secret_info")?,
            encryption_keys: keys.filter_map(|sample| sample.label.clone()).collect(),
            values_behind: number("flotilla_encryption_values_behind").unwrap_or_default(),
            snapshots,
        })
    }

    /// Lines for people.
    pub fn text(&self, now: Timestamp) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _infallible = self.lines(&mut out, now);
        out
    }

    fn lines(&self, out: &mut String, now: Timestamp) -> std::fmt::Result {
        let held = size(self.bytes);
        writeln!(out, "Datastore:     {}, revision {}", self.datastore, self.revision)?;
        writeln!(out, "Held:          {} keys, {held} in memory", self.keys)?;
        let written = size(self.written_bytes);
        write!(out, "Written:       {written} in {} flushes", self.flushes)?;
        match self.checkpoint_failures {
            0 => writeln!(out, ", {} checkpoints", self.checkpoints)?,
            failed => writeln!(out, ", {} checkpoints ({failed} failed)", self.checkpoints)?,
        }
        let newest = self.encryption_keys.last().map_or("none", String::as_str);
        write!(out, "Encryption:    key {newest}")?;
        if let Some((_, older)) = self.encryption_keys.split_last().filter(|(_, o)| !o.is_empty()) {
            write!(out, " (older: {}; {} values to follow)", older.join(", "), self.values_behind)?;
        }
        writeln!(out, ", cluster secret {}", self.cluster_secret)?;
        match &self.snapshots {
            None => writeln!(out, "Snapshots:     not scheduled"),
            Some(snapshots) => snapshots.line(out, now),
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let snapshots = self.snapshots.as_ref().map(|own| {
            json!({
                "taken": own.taken,
                "failures": own.failures,
                "failure": own.failure,
                "last": own.last.map(|(at, bytes)| json!({ "at": at.to_string(), "bytes": bytes })),
            })
        });
        json!({
            "datastore": self.datastore,
            "revision": self.revision,
            "keys": self.keys,
            "bytes": self.bytes,
            "writtenBytes": self.written_bytes,
            "flushes": self.flushes,
            "checkpoints": self.checkpoints,
            "checkpointFailures": self.checkpoint_failures,
            "clusterSecret": self.cluster_secret,
            "encryptionKeys": self.encryption_keys,
            "valuesBehind": self.values_behind,
            "snapshots": snapshots,
        })
    }
}

impl Snapshots {
    fn line(&self, out: &mut String, now: Timestamp) -> std::fmt::Result {
        write!(out, "Snapshots:     ")?;
        match self.last {
            None => write!(out, "none yet")?,
            Some((at, bytes)) => {
                let minutes = now.duration_since(at).as_mins().max(0);
                let age = match (minutes / 1440, minutes / 60 % 24, minutes % 60) {
                    (0, 0, minutes) => format!("{minutes}m"),
                    (0, hours, minutes) => format!("{hours}h{minutes:02}m"),
                    (days, hours, _) => format!("{days}d{hours:02}h"),
                };
                write!(out, "last {at}, {age} ago, {}", size(bytes))?;
            }
        }
        match (self.failures, &self.failure) {
            (0, _) => writeln!(out),
            (failures, None) => writeln!(out, "; {failures} failed before it"),
            (failures, Some(why)) => writeln!(out, "; {failures} failed: {why}"),
        }
    }
}

/// As people read it.
pub fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1024 => return format!("{bytes} B"),
        1024..1_048_576 => (1024, "KiB"),
        1_048_576..1_073_741_824 => (1_048_576, "MiB"),
        _ => (1_073_741_824, "GiB"),
    };
    let tenths = bytes.saturating_mul(10) / unit;
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// Counters are whole numbers in a format of floating ones.
fn whole(value: f64) -> u64 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a counter; what is out of range becomes the nearest number"
    )]
    let whole = value as u64;
    whole
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use apiserver::MetricsSource;
    use store::seal::{ClusterSecret, Keyring};

    use super::*;
    use crate::report::Report;
    use crate::schedule::Told;

    #[test]
    fn what_is_reported_is_told() {
        let secret = ClusterSecret::from_bytes([1; 32]);
        let ring = Keyring::new(secret, "k", Vec::new());
        let report = Report {
            datastore: "embedded",
            ring: Arc::new(ring),
            progress: Arc::default(),
            snapshots: Some(Arc::<Told>::default()),
        };
        let mut metrics = "# TYPE etcd_debugging_mvcc_current_revision gauge\n\
             etcd_debugging_mvcc_current_revision 12\netcd_debugging_mvcc_keys_total 3\n\
             apiserver_storage_size_bytes 2048\nflotilla_store_flushes_total 4\n\
             flotilla_encryption_key_revision{name=\"0001\"} 2\n\
             flotilla_encryption_key_revision{name=\"0002\"} 5\n\
             flotilla_encryption_values_behind 7\n\
             flotilla_scheduled_snapshot_timestamp_seconds 1700000000\n\
             flotilla_scheduled_snapshot_failure_info{reason=\"no \\\"space\\\"\"} 1\n"
            .to_owned();
        report.write(&mut metrics);
        let figures = Figures::parse(&metrics).unwrap();
        let now = Timestamp::from_second(1_700_000_000 + 26 * 3600).unwrap();
        let text = figures.text(now);
        for expected in [
            "Datastore:     embedded, revision 12\n",
            "3 keys, 2.0 KiB in memory",
            "key 0002 (older: 0001; 7 values to follow)",
            "1d02h ago",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        let json = figures.json();
        assert_eq!(json["snapshots"]["failure"], "no \"space\"");
        assert_eq!(Figures::parse("up 1\n"), None);
    }
}
