//! A writer: creates objects and counts a shared one up, one write after the other. A write that a master does not
//! acknowledge is tried again at the next one; only what was acknowledged is recorded as such.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, anyhow};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{ANSWER, COUNTER, Ways, Written};

/// Pause between two writes, so that the load leaves the machine to what it tests.
const PACE: Duration = Duration::from_millis(30);
/// Pause before the next master is asked.
const PAUSE: Duration = Duration::from_millis(100);
/// Every so many writes one counts up.
const COUNT_EVERY: u64 = 5;

pub(super) struct Writer {
    pub(super) number: usize,
    pub(super) ways: Ways,
    pub(super) namespace: String,
    pub(super) written: Arc<Mutex<Written>>,
}

impl Writer {
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<()> {
        let mut last = Instant::now();
        for round in 0u64.. {
            if *stop.borrow_and_update() {
                break;
            }
            if round % COUNT_EVERY == COUNT_EVERY - 1 {
                self.count().await;
            } else if self.create(&format!("w{}-{round}", self.number)).await {
                let gap = last.elapsed();
                last = Instant::now();
                self.note(|written| written.longest_gap = written.longest_gap.max(gap));
            }
            tokio::time::sleep(PACE).await;
        }
        Ok(())
    }

    fn note(&self, change: impl FnOnce(&mut Written)) {
        change(&mut self.written.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn api(&mut self) -> Result<Api<ConfigMap>> {
        Ok(Api::namespaced(self.ways.client().await?, &self.namespace))
    }

    /// Creates an object at this master or the next one; whether one of them acknowledged it.
    async fn create(&mut self, name: &str) -> bool {
        let mut why = String::new();
        for _ in 0..self.ways.kubeconfigs.len() {
            match self.try_create(name).await {
                Ok(Some(revision)) => {
                    self.note(|written| written.acknowledged.push((name.to_owned(), revision)));
                    return true;
                }
                // The first master took it without being able to say so.
                Ok(None) => return true,
                Err(error) => why = format!("{why}{error:#}; "),
            }
            self.ways.turn();
            tokio::time::sleep(PAUSE).await;
        }
        self.note(|written| written.failed.push((SystemTime::now(), format!("{name}: {why}"))));
        false
    }

    async fn try_create(&mut self, name: &str) -> Result<Option<i64>> {
        let api = self.api().await?;
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.to_owned());
        let params = PostParams::default();
        match timeout(ANSWER, api.create(&params, &object)).await {
            Ok(Ok(made)) => Ok(Some(made.metadata.resource_version.unwrap_or_default().parse()?)),
            Ok(Err(kube::Error::Api(status))) if status.reason == "AlreadyExists" => Ok(None),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(anyhow!("no answer within {ANSWER:?}")),
        }
    }

    /// Counts up; a conflict, or no answer to the read, is no harm.
    async fn count(&mut self) {
        let Ok(api) = self.api().await else { return };
        let Ok(Ok(mut counter)) = timeout(ANSWER, api.get(COUNTER)).await else {
            return self.ways.turn();
        };
        let data = counter.data.get_or_insert_default();
        let count: u64 = data.get("n").and_then(|n| n.parse().ok()).unwrap_or_default();
        data.insert("n".to_owned(), (count + 1).to_string());
        let params = PostParams::default();
        match timeout(ANSWER, api.replace(COUNTER, &params, &counter)).await {
            Ok(Ok(_)) => self.note(|written| written.counted += 1),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            _ => {
                self.note(|written| written.in_doubt += 1);
                self.ways.turn();
            }
        }
    }
}
