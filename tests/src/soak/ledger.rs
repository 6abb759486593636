//! What clients were told of their `ConfigMaps`, and whether a master still says so after it was killed: every acknowledged write
//! there with its contents, the one without an answer whole or absent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Client, Resource, ResourceExt};

use super::in_process::random::Random;

const NAMESPACE: &str = "default";
/// Names of our objects begin so.
const PREFIX: &str = "soak-";
/// Objects of each client.
const OBJECTS: usize = 12;
/// How long one answer may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// A value of an object: which write it was; none: it is not there.
type Version = Option<u64>;

#[derive(Debug, Default)]
struct Object {
    told: Version,
    /// What was asked for without an answer.
    asked: Option<Version>,
}

#[derive(Debug, Default)]
struct Book {
    objects: BTreeMap<String, Object>,
    writes: u64,
    acknowledged: u64,
    newest: i64,
    wrong: Option<String>,
}

/// Everything that was told.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    book: Arc<Mutex<Book>>,
}

/// What was checked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checked {
    /// Objects compared.
    pub objects: usize,
    /// Writes without an answer that were there.
    pub kept: usize,
    /// Writes without an answer that were not.
    pub lost: usize,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.lock().acknowledged
    }

    /// Compares all objects with what was told; what was in doubt is settled by what is there.
    ///
    /// # Errors
    /// Something is lost, half there or made up.
    pub async fn check(&self, client: Client) -> Result<Checked> {
        let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        let list = api.list(&ListParams::default()).await.context("listing")?;
        let revision = list.metadata.resource_version.as_deref().and_then(|own| own.parse().ok());
        let mut there: BTreeMap<_, _> = list
            .items
            .into_iter()
            .filter(|map| map.name_any().starts_with(PREFIX))
            .map(|map| (map.name_any(), map))
            .collect();
        let mut book = self.lock();
        ensure!(
            revision.is_some_and(|revision: i64| revision >= book.newest),
            "the list is at {revision:?}, but {} had been answered",
            book.newest
        );
        let mut checked = Checked::default();
        for (name, object) in &mut book.objects {
            let found = there.remove(name).map(|map| read(name, &map)).transpose()?;
            checked.objects += 1;
            match object.asked.take() {
                Some(asked) if found == asked && found != object.told => {
                    checked.kept += 1;
                    object.told = asked;
                }
                asked => {
                    let told = object.told;
                    checked.lost += usize::from(asked.is_some());
                    ensure!(found == told, "{name} is {found:?}, told {told:?}, asked {asked:?}");
                }
            }
        }
        ensure!(there.is_empty(), "nobody asked for {:?}", there.keys());
        Ok(checked)
    }

    /// A client that writes one thing after the other to objects of its own until the master is gone or the time is over.
    ///
    /// # Errors
    /// An answer that cannot be right.
    pub async fn write(self, client: Client, who: usize, mut random: Random, until: Instant) {
        let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        while Instant::now() < until {
            let name = format!("{PREFIX}{who}-{}", random.index(OBJECTS));
            let (told, version) = self.ask(&name, random.percent(15));
            let answer = tokio::time::timeout(ANSWER_DEADLINE, act(&api, &name, told, version));
            match answer.await {
                Ok(Ok(revision)) => self.told(&name, version, revision),
                Ok(Err(kube::Error::Api(status))) if (400..500).contains(&status.code) => {
                    let wrong = format!("{name} (told {told:?}): {}", status.message);
                    self.lock().wrong.get_or_insert(wrong);
                    return;
                }
                // The master is gone, or refuses to write.
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// What went wrong while clients wrote.
    ///
    /// # Errors
    /// That.
    pub fn verdict(&self) -> Result<()> {
        match self.lock().wrong.take() {
            Some(wrong) => bail!("a wrong answer: {wrong}"),
            None => Ok(()),
        }
    }

    fn ask(&self, name: &str, deletes: bool) -> (Version, Version) {
        let mut book = self.lock();
        book.writes += 1;
        let writes = book.writes;
        let object = book.objects.entry(name.to_owned()).or_default();
        let version = if deletes && object.told.is_some() { None } else { Some(writes) };
        object.asked = Some(version);
        (object.told, version)
    }

    fn told(&self, name: &str, version: Version, revision: Option<i64>) {
        let mut book = self.lock();
        book.acknowledged += 1;
        book.newest = book.newest.max(revision.unwrap_or_default());
        if let Some(object) = book.objects.get_mut(name) {
            (object.told, object.asked) = (version, None);
        }
    }
}

/// Returns the object's revision.
async fn act(
    api: &Api<ConfigMap>,
    name: &str,
    told: Version,
    version: Version,
) -> Result<Option<i64>, kube::Error> {
    let Some(version) = version else {
        return api.delete(name, &DeleteParams::default()).await.map(|_| None);
    };
    let map = make(name, version);
    let made = match told {
        None => api.create(&PostParams::default(), &map).await?,
        Some(_) => api.replace(name, &PostParams::default(), &map).await?,
    };
    Ok(made.meta().resource_version.as_deref().and_then(|own| own.parse().ok()))
}

fn data(name: &str, version: u64) -> BTreeMap<String, String> {
    let mut random = Random::new(version ^ name.len() as u64);
    let length = random.index(40);
    let body: Vec<_> = (0..length).map(|_| format!("{:016x}", random.number())).collect();
    [("version", version.to_string()), ("name", name.to_owned()), ("body", body.concat())]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
}

fn make(name: &str, version: u64) -> ConfigMap {
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    ConfigMap { metadata, data: Some(data(name, version)), ..ConfigMap::default() }
}

/// Which write an object is; an error when it is none of them.
fn read(name: &str, map: &ConfigMap) -> Result<u64> {
    let found = map.data.clone().unwrap_or_default();
    let version = found.get("version").and_then(|own| own.parse().ok());
    let version = version.with_context(|| format!("{name} is half there: {found:?}"))?;
    ensure!(found == data(name, version), "{name} is half there: {found:?}");
    Ok(version)
}
