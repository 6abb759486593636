//! Owns what the API server counts, under upstream's names. Labels come from the resource table and known verbs alone, so that
//! their number is bounded.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

/// Upper bounds of the latency buckets in seconds.
const BUCKETS: [f64; 10] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 5.0, 15.0];

/// One kind of request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Labels {
    pub(crate) verb: String,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
}

#[derive(Debug, Default)]
struct Series {
    codes: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

#[derive(Debug, Default)]
struct State {
    requests: BTreeMap<Labels, Series>,
    inflight: u64,
}

/// Figures of somebody else, told on the same page.
pub trait MetricsSource: Send + Sync + std::fmt::Debug {
    /// Appends lines of the Prometheus text format.
    fn write(&self, out: &mut String);
}

/// Counters of requests.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    state: Mutex<State>,
    more: OnceLock<Arc<dyn MetricsSource>>,
}

/// A request under way; counted as such until it is dropped.
#[derive(Debug)]
pub(crate) struct Inflight<'a>(&'a Metrics);

impl Drop for Inflight<'_> {
    fn drop(&mut self) {
        self.0.with(|state| state.inflight = state.inflight.saturating_sub(1));
    }
}

impl Metrics {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a source; the first one stays.
    pub(crate) fn add(&self, source: Arc<dyn MetricsSource>) {
        self.more.get_or_init(|| source);
    }

    pub(crate) fn begin(&self) -> Inflight<'_> {
        self.with(|state| state.inflight += 1);
        Inflight(self)
    }

    pub(crate) fn count(&self, labels: Labels, code: u16, took: Duration) {
        let seconds = took.as_secs_f64();
        self.with(|state| {
            let series = state.requests.entry(labels).or_default();
            *series.codes.entry(code).or_default() += 1;
            series.count += 1;
            series.seconds += seconds;
            for (bucket, bound) in series.buckets.iter_mut().zip(BUCKETS) {
                *bucket += u64::from(seconds <= bound);
            }
        });
    }

    /// The Prometheus text, with the store's figures.
    pub(crate) fn render(&self, store: &store::Metrics) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _infallible = self.write(&mut out, store);
        if let Some(more) = self.more.get() {
            more.write(&mut out);
        }
        out
    }

    fn write(&self, out: &mut String, store: &store::Metrics) -> std::fmt::Result {
        self.with(|state| {
            writeln!(out, "# TYPE apiserver_current_inflight_requests gauge")?;
            writeln!(out, "apiserver_current_inflight_requests {}", state.inflight)?;
            writeln!(out, "# TYPE apiserver_request_total counter")?;
            for (labels, series) in &state.requests {
                for (code, count) in &series.codes {
                    writeln!(
                        out,
                        "apiserver_request_total{{{},code=\"{code}\"}} {count}",
                        text(labels)
                    )?;
                }
            }
            writeln!(out, "# TYPE apiserver_request_duration_seconds histogram")?;
            for (labels, series) in &state.requests {
                write_histogram(out, &text(labels), series)?;
            }
            Ok(())
        })?;
        for (name, kind, value) in [
            ("apiserver_storage_size_bytes", "gauge", store.bytes as u64),
            ("etcd_debugging_mvcc_keys_total", "gauge", store.keys as u64),
            ("etcd_debugging_mvcc_current_revision", "gauge", store.revision.unsigned_abs()),
            (
                "etcd_debugging_mvcc_compact_revision",
                "gauge",
                store.compact_revision.unsigned_abs(),
            ),
            ("etcd_debugging_mvcc_watcher_total", "gauge", store.watchers as u64),
            ("flotilla_store_history_events", "gauge", store.history_events as u64),
            ("flotilla_store_history_bytes", "gauge", store.history_bytes as u64),
            ("flotilla_store_watches_expired_total", "counter", store.watches_expired),
            ("flotilla_store_written_bytes_total", "counter", store.written.bytes),
            ("flotilla_store_flushes_total", "counter", store.written.flushes),
            ("flotilla_store_checkpoints_total", "counter", store.written.checkpoints),
            (
                "flotilla_store_checkpoint_failures_total",
                "counter",
                store.written.checkpoint_failures,
            ),
        ] {
            writeln!(out, "# TYPE {name} {kind}\n{name} {value}")?;
        }
        Ok(())
    }
}

fn text(labels: &Labels) -> String {
    format!(
        "verb=\"{}\",group=\"{}\",version=\"{}\",resource=\"{}\",subresource=\"{}\"",
        labels.verb, labels.group, labels.version, labels.resource, labels.subresource
    )
}

fn write_histogram(out: &mut String, labels: &str, series: &Series) -> std::fmt::Result {
    let name = "apiserver_request_duration_seconds";
    for (count, bound) in series.buckets.iter().zip(BUCKETS) {
        writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}")?;
    }
    writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", series.count)?;
    writeln!(out, "{name}_sum{{{labels}}} {}", series.seconds)?;
    writeln!(out, "{name}_count{{{labels}}} {}", series.count)
}
