//! Constant load on several masters, and what it proves: every acknowledged write is kept with its revision, every watch
//! event in the order it came. Clients go to the next master when one does not answer, as a person's would.

mod watches;
mod writes;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::ApiResource;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use watches::Seen;
use watches::Watch;
use writes::Writer;

/// How long a client waits for one answer.
const ANSWER: Duration = Duration::from_secs(3);
/// How long what was written may take to be seen everywhere.
const SETTLE: Duration = Duration::from_secs(60);
/// Name of the object that all writers count up.
const COUNTER: &str = "counter";

/// Ways to the masters; a client keeps to one while it answers.
#[derive(Clone)]
struct Ways {
    kubeconfigs: Arc<Vec<PathBuf>>,
    at: usize,
    client: Option<kube::Client>,
}

impl std::fmt::Debug for Ways {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ways").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Ways {
    async fn client(&mut self) -> Result<kube::Client> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let file = &self.kubeconfigs[self.at % self.kubeconfigs.len()];
        let config = Kubeconfig::read_from(file)?;
        let mut config =
            kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        config.connect_timeout = Some(ANSWER);
        let client = kube::Client::try_from(config)?;
        self.client = Some(client.clone());
        Ok(client)
    }

    /// From now on the next master is asked, over a new connection.
    fn turn(&mut self) {
        self.at += 1;
        self.client = None;
    }
}

/// What the writers did.
#[derive(Debug, Default)]
pub struct Written {
    /// Name and revision of every object whose creation was acknowledged.
    pub acknowledged: Vec<(String, i64)>,
    /// Increments of the counter that were acknowledged.
    pub counted: u64,
    /// Increments whose answer did not come.
    pub in_doubt: u64,
    /// Writes that no master took, when, and why.
    pub failed: Vec<(SystemTime, String)>,
    /// The longest time between two acknowledged creations of one writer.
    pub longest_gap: Duration,
}

/// The load, until it is finished.
#[derive(Debug)]
pub struct Audit {
    runtime: Runtime,
    ways: Vec<Ways>,
    namespace: String,
    stop: watch::Sender<bool>,
    until: watch::Sender<Option<i64>>,
    written: Arc<Mutex<Written>>,
    writers: Vec<JoinHandle<Result<()>>>,
    watches: Vec<(String, JoinHandle<Result<Vec<Seen>>>)>,
}

/// What a watcher watched, and what it saw.
pub type Watched = (String, Vec<Seen>);

fn config_maps() -> ApiResource {
    ApiResource::erase::<ConfigMap>(&())
}

impl Audit {
    /// Starts a writer and a watcher at each of the masters that `kubeconfigs` lead to.
    pub fn start(kubeconfigs: Vec<PathBuf>, namespace: &str) -> Result<Audit> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let kubeconfigs = Arc::new(kubeconfigs);
        let way = |at| Ways { kubeconfigs: Arc::clone(&kubeconfigs), at, client: None };
        let mut audit = Audit {
            runtime,
            ways: (0..kubeconfigs.len()).map(way).collect(),
            namespace: namespace.to_owned(),
            stop: watch::Sender::new(false),
            until: watch::Sender::new(None),
            written: Arc::default(),
            writers: Vec::new(),
            watches: Vec::new(),
        };
        audit.make_counter()?;
        for number in 0..audit.ways.len() {
            audit.watch(number, config_maps(), namespace)?;
        }
        for (number, ways) in audit.ways.iter().cloned().enumerate() {
            let (namespace, stop) = (namespace.to_owned(), audit.stop.subscribe());
            let written = Arc::clone(&audit.written);
            let writer = Writer { number, ways, namespace, written };
            audit.writers.push(audit.runtime.spawn(writer.run(stop)));
        }
        Ok(audit)
    }

    fn make_counter(&self) -> Result<()> {
        let mut ways = self.ways[0].clone();
        self.runtime.block_on(async {
            let api: Api<ConfigMap> = Api::namespaced(ways.client().await?, &self.namespace);
            let mut counter = ConfigMap::default();
            counter.metadata.name = Some(COUNTER.to_owned());
            counter.data = Some([("n".to_owned(), "0".to_owned())].into());
            api.create(&kube::api::PostParams::default(), &counter).await?;
            Ok(())
        })
    }

    /// Watches one kind in one namespace from now on, beginning at the master of that number.
    pub fn watch(&mut self, number: usize, resource: ApiResource, namespace: &str) -> Result<()> {
        let mut ways = self.ways[number].clone();
        let from = self.runtime.block_on(list(&mut ways, &resource, namespace))?.1;
        let what = format!("{} from master {number}", resource.plural);
        let watch = Watch { ways, resource, namespace: namespace.to_owned(), from };
        let task = self.runtime.spawn(watch.run(self.until.subscribe()));
        self.watches.push((what, task));
        Ok(())
    }

    /// What the writers did so far.
    pub fn so_far<T>(&self, read: impl FnOnce(&Written) -> T) -> T {
        read(&self.written.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the load and judges it: all that was acknowledged is there at each master, and every watcher of ConfigMaps saw
    /// each of them once, in order. Returns what was written and what the other watchers saw.
    pub fn finish(mut self) -> Result<(Written, Vec<Watched>)> {
        self.stop.send_replace(true);
        for writer in std::mem::take(&mut self.writers) {
            self.runtime.block_on(writer).context("a writer panicked")??;
        }
        let written =
            std::mem::take(&mut *self.written.lock().map_err(|_| anyhow!("a writer panicked"))?);
        let mut newest = 0;
        for mut ways in self.ways.clone() {
            let resource = config_maps();
            let listed = list(&mut ways, &resource, &self.namespace);
            let (objects, revision) = self.runtime.block_on(listed)?;
            judge_list(&written, &objects)?;
            newest = newest.max(revision);
        }
        let marker = self.mark()?;
        self.until.send_replace(Some(marker.max(newest)));
        let mut others = Vec::new();
        for (what, task) in std::mem::take(&mut self.watches) {
            let ended = self.runtime.block_on(tokio_timeout(task));
            let seen = ended.with_context(|| format!("the watch of {what}"))?;
            if what.starts_with("configmaps") {
                judge_watch(&written, &seen).with_context(|| format!("the watch of {what}"))?;
            } else {
                others.push((what, seen));
            }
        }
        Ok((written, others))
    }

    /// Writes a last object, so that watchers know that they have seen all.
    fn mark(&self) -> Result<i64> {
        let mut ways = self.ways[0].clone();
        self.runtime.block_on(async {
            let api: Api<ConfigMap> = Api::namespaced(ways.client().await?, &self.namespace);
            let mut marker = ConfigMap::default();
            marker.metadata.name = Some("the-end".to_owned());
            let made = api.create(&kube::api::PostParams::default(), &marker).await?;
            Ok(made.metadata.resource_version.context("no revision")?.parse()?)
        })
    }
}

async fn tokio_timeout(task: JoinHandle<Result<Vec<Seen>>>) -> Result<Vec<Seen>> {
    match tokio::time::timeout(SETTLE, task).await {
        Ok(ended) => ended.context("it panicked")?,
        Err(_) => bail!("it has not seen the last write after {SETTLE:?}"),
    }
}

/// Every object, and the revision of the list.
async fn list(
    ways: &mut Ways,
    resource: &ApiResource,
    namespace: &str,
) -> Result<(Vec<DynamicObject>, i64)> {
    let begin = Instant::now();
    loop {
        let client = ways.client().await?;
        let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, resource);
        match tokio::time::timeout(ANSWER * 3, api.list(&ListParams::default())).await {
            Ok(Ok(list)) => {
                let revision = list.metadata.resource_version.context("no revision")?.parse()?;
                return Ok((list.items, revision));
            }
            failed if begin.elapsed() > SETTLE => bail!("listing {}: {failed:?}", resource.plural),
            // The same master again: what each of them says is to be known.
            _ => ways.client = None,
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn revision(object: &DynamicObject) -> Result<i64> {
    Ok(object.metadata.resource_version.as_deref().context("no revision")?.parse()?)
}

fn judge_list(written: &Written, objects: &[DynamicObject]) -> Result<()> {
    let mut there = std::collections::HashMap::new();
    let mut counter = 0u64;
    for object in objects {
        let name = object.metadata.name.clone().unwrap_or_default();
        if name == COUNTER {
            counter = object.data["data"]["n"].as_str().unwrap_or_default().parse()?;
        }
        there.insert(name, revision(object)?);
    }
    for (name, revision) in &written.acknowledged {
        let found = there.get(name);
        ensure!(found == Some(revision), "{name} was acknowledged at {revision}; now: {found:?}");
    }
    let (least, most) = (written.counted, written.counted + written.in_doubt);
    ensure!((least..=most).contains(&counter), "the counter is {counter}, not {least} to {most}");
    Ok(())
}

fn judge_watch(written: &Written, seen: &[Seen]) -> Result<()> {
    let mut added = std::collections::HashMap::new();
    for one in seen.iter().filter(|one| one.what == "ADDED") {
        let before = added.insert(one.name.as_str(), one.revision);
        ensure!(before.is_none(), "{} was added twice", one.name);
    }
    for (name, revision) in &written.acknowledged {
        let found = added.get(name.as_str());
        ensure!(found == Some(revision), "{name} at {revision} was not seen: {found:?}");
    }
    Ok(())
}
