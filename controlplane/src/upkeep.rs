//! Owns what looks after a master's store for as long as the master runs: the following of encryption keys, scheduled snapshots, and the
//! report of both. It starts them and decides nothing.

use std::sync::Arc;

use apiserver::ApiServer;
use store::Store;
use store::seal::Keyring;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::encryption::{self, Pace};
use crate::report::Report;
use crate::schedule::{self, Schedule};

/// What is looked after.
#[derive(Debug)]
pub struct Upkeep {
    /// The store.
    pub store: Store,
    /// Its encryption keys.
    pub ring: Arc<Keyring>,
    /// `embedded`, or `etcd`.
    pub datastore: &'static str,
    /// Snapshots to take; `None`: none.
    pub schedule: Option<Schedule>,
}

impl Upkeep {
    /// Starts it all among other tasks, until `stop`.
    pub fn start(
        self,
        server: &ApiServer,
        tasks: &mut JoinSet<anyhow::Result<&'static str>>,
        stop: &watch::Receiver<bool>,
    ) {
        let Self { store, ring, datastore, schedule } = self;
        let progress = Arc::default();
        let snapshots = schedule.map(|schedule| {
            let told = Arc::default();
            let run = schedule::run(store.clone(), schedule, Arc::clone(&told), stop.clone());
            tasks.spawn(run);
            told
        });
        let report = Report { datastore, ring: ring.clone(), progress, snapshots };
        let progress = report.progress.clone();
        tasks.spawn(encryption::run(store, ring, progress, Pace::default(), stop.clone()));
        server.add_metrics(Arc::new(report));
    }
}
