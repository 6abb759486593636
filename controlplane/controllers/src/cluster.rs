//! What all controllers share: configuration, one cache per kind, the event recorder. Decides nothing.

use crate::{
    Config,
    kinds::{
        CertificateSigningRequest, ConfigMap, ControllerRevision, DaemonSet, Deployment,
        EndpointSlice, Endpoints, Job, Lease, Namespace, Node, Pod, PodDisruptionBudget,
        ReplicaSet, Secret, Service, ServiceAccount,
    },
    runtime::{Cache, Error, Recorder, object::Kind},
};
use futures::FutureExt;
use kube::{Api, Client, runtime::watcher};
use std::sync::Arc;
use tokio::task::JoinSet;

/// The shared state of all controllers.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) config: Config,
    pub(crate) events: Recorder,
    pub(crate) pods: Arc<Cache<Pod>>,
    pub(crate) replica_sets: Arc<Cache<ReplicaSet>>,
    pub(crate) deployments: Arc<Cache<Deployment>>,
    pub(crate) daemon_sets: Arc<Cache<DaemonSet>>,
    pub(crate) revisions: Arc<Cache<ControllerRevision>>,
    pub(crate) budgets: Arc<Cache<PodDisruptionBudget>>,
    pub(crate) jobs: Arc<Cache<Job>>,
    pub(crate) nodes: Arc<Cache<Node>>,
    pub(crate) node_leases: Arc<Cache<Lease>>,
    pub(crate) services: Arc<Cache<Service>>,
    pub(crate) endpoint_slices: Arc<Cache<EndpointSlice>>,
    pub(crate) endpoints: Arc<Cache<Endpoints>>,
    pub(crate) namespaces: Arc<Cache<Namespace>>,
    pub(crate) service_accounts: Arc<Cache<ServiceAccount>>,
    /// Only those named `kube-root-ca.crt`.
    pub(crate) root_ca_maps: Arc<Cache<ConfigMap>>,
    /// Only bootstrap tokens.
    pub(crate) tokens: Arc<Cache<Secret>>,
    pub(crate) csrs: Arc<Cache<CertificateSigningRequest>>,
}

/// Namespace of the nodes' leases.
pub(crate) const NODE_LEASES: &str = "kube-node-lease";
/// Name of the ConfigMap with the cluster's CA.
pub(crate) const ROOT_CA_MAP: &str = "kube-root-ca.crt";

impl Cluster {
    pub(crate) fn new(client: Client, config: Config, events: Recorder) -> Arc<Self> {
        let c = || client.clone();
        Arc::new(Self {
            pods: Cache::new(c()),
            replica_sets: Cache::new(c()),
            deployments: Cache::new(c()),
            daemon_sets: Cache::new(c()),
            revisions: Cache::new(c()),
            budgets: Cache::new(c()),
            jobs: Cache::new(c()),
            nodes: Cache::new(c()),
            node_leases: Cache::new(c()),
            services: Cache::new(c()),
            endpoint_slices: Cache::new(c()),
            endpoints: Cache::new(c()),
            namespaces: Cache::new(c()),
            service_accounts: Cache::new(c()),
            root_ca_maps: Cache::new(c()),
            tokens: Cache::new(c()),
            csrs: Cache::new(c()),
            client,
            config,
            events,
        })
    }

    /// Starts the watches. Controllers have registered their handlers before.
    pub(crate) fn start(&self, tasks: &mut JoinSet<()>) {
        self.reflect(&self.pods, watcher::Config::default(), tasks);
        self.reflect(&self.replica_sets, watcher::Config::default(), tasks);
        self.reflect(&self.deployments, watcher::Config::default(), tasks);
        self.reflect(&self.daemon_sets, watcher::Config::default(), tasks);
        self.reflect(&self.revisions, watcher::Config::default(), tasks);
        self.reflect(&self.budgets, watcher::Config::default(), tasks);
        self.reflect(&self.jobs, watcher::Config::default(), tasks);
        self.reflect(&self.nodes, watcher::Config::default(), tasks);
        self.reflect(&self.services, watcher::Config::default(), tasks);
        self.reflect(&self.endpoint_slices, watcher::Config::default(), tasks);
        self.reflect(&self.endpoints, watcher::Config::default(), tasks);
        self.reflect(&self.namespaces, watcher::Config::default(), tasks);
        self.reflect(&self.service_accounts, watcher::Config::default(), tasks);
        self.reflect(&self.csrs, watcher::Config::default(), tasks);
        let named = format!("metadata.name={ROOT_CA_MAP}");
        self.reflect(&self.root_ca_maps, watcher::Config::default().fields(&named), tasks);
        let tokens = watcher::Config::default().fields("type=bootstrap.kubernetes.io/token");
        self.reflect(&self.tokens, tokens, tasks);
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NODE_LEASES);
        let events = watcher(leases, watcher::Config::default());
        tasks.spawn(Arc::clone(&self.node_leases).reflect(events).boxed());
    }

    fn reflect<K: Kind>(
        &self,
        cache: &Arc<Cache<K>>,
        config: watcher::Config,
        tasks: &mut JoinSet<()>,
    ) {
        let events = watcher(Api::<K>::all(self.client.clone()), config);
        tasks.spawn(Arc::clone(cache).reflect(events).boxed());
    }

    /// Waits until every cache is filled.
    pub(crate) async fn synced(&self) {
        tokio::join!(
            self.pods.synced(),
            self.replica_sets.synced(),
            self.deployments.synced(),
            self.daemon_sets.synced(),
            self.revisions.synced(),
            self.budgets.synced(),
            self.jobs.synced(),
            self.nodes.synced(),
            self.node_leases.synced(),
            self.services.synced(),
            self.endpoint_slices.synced(),
            self.endpoints.synced(),
            self.namespaces.synced(),
            self.service_accounts.synced(),
            self.root_ca_maps.synced(),
            self.tokens.synced(),
            self.csrs.synced(),
        );
    }

    /// The wall clock.
    pub(crate) fn now(&self) -> jiff::Timestamp {
        self.config.clock.now()
    }
}

/// Whether an object may adopt or release others: it is still the same one and not being deleted, says the API server.
pub(crate) async fn may_adopt<K: Kind>(cache: &Cache<K>, owner: &K) -> Result<bool, Error> {
    let live = cache.live(&owner.key()).await?;
    Ok(live.is_some_and(|l| l.uid() == owner.uid() && !l.is_deleting()))
}
