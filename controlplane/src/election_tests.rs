//! Candidates against a real API server in this process: who leads, when, and never two at once.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};

use apiserver::extract::ObjectExtract;
use apiserver::{ApiServer, Body, BodyError, Caller, NodeTls, User};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::task::JoinHandle;

use super::*;
use crate::pki::{CA, Pki, SERVICE_ACCOUNT_KEY};

const SHORT: Timing = Timing {
    lease: Duration::from_secs(5),
    renew: Duration::from_secs(2),
    retry: Duration::from_millis(100),
};
const DEADLINE: Duration = Duration::from_secs(20);

/// Answers one candidate's requests, or none while its line is cut.
#[derive(Clone)]
struct Line {
    server: ApiServer,
    cut: watch::Receiver<bool>,
}

impl tower::Service<Request<kube::client::Body>> for Line {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let (server, mut cut) = (self.server.clone(), self.cut.clone());
        let request = request.map(|body| body.map_err(BodyError::from).boxed_unsync());
        let user = User::authenticated("system:kube-scheduler", &[]);
        Box::pin(async move {
            cut.wait_for(|cut| !*cut).await.unwrap();
            Ok(server.handle(request, Caller::new(user)).await)
        })
    }
}

async fn server(dir: &std::path::Path) -> ApiServer {
    let ca = (CA.make)(Timestamp::now()).unwrap().try_into().unwrap();
    let pki = Pki::open(&dir.join("pki"), ca).unwrap();
    let mut settings = store::Config::new(dir.join("store"));
    settings.extract = Arc::new(ObjectExtract::builtin());
    let config = apiserver::Config {
        advertise_address: "192.0.2.1".parse().unwrap(),
        advertise_port: 6443,
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        node_ports: (30000, 32767),
        cluster_domain: "cluster.local".into(),
        ca_pem: pki.ca().certificate_pem.clone(),
        service_account_key_pem: (SERVICE_ACCOUNT_KEY.make)(Timestamp::now()).unwrap().concat(),
        service_account_public_keys_pem: Vec::new(),
        service_account_issuer: "https://kubernetes.default.svc".into(),
        api_audiences: vec!["https://kubernetes.default.svc".into()],
        anonymous_auth: true,
        node_tls: NodeTls::default(),
        master_id: None,
        event_ttl: std::time::Duration::from_secs(3600),
        drain: Duration::from_secs(1),
    };
    ApiServer::new(config, store::Store::open(settings).unwrap()).await.unwrap()
}

/// Counts those who lead now.
struct Leading(Arc<AtomicUsize>);

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Candidate {
    cut: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    leads: watch::Receiver<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Candidate {
    fn start(server: &ApiServer, identity: &str, leaders: &Arc<AtomicUsize>) -> Self {
        let (cut, line) = watch::channel(false);
        let (stop, stopping) = watch::channel(false);
        let (tell, leads) = watch::channel(false);
        let client = Client::new(Line { server: server.clone(), cut: line }, "default");
        let election = Election::new(client, "kube-scheduler", identity.to_owned(), SHORT);
        let (tell, leaders) = (Arc::new(tell), leaders.clone());
        let component = move |mut stop: watch::Receiver<bool>| {
            let (tell, leaders) = (tell.clone(), leaders.clone());
            async move {
                assert_eq!(leaders.fetch_add(1, Ordering::SeqCst), 0, "two lead at once");
                let _leading = Leading(leaders);
                tell.send_replace(true);
                stopped(&mut stop).await;
                tell.send_replace(false);
                Ok(())
            }
        };
        let task = tokio::spawn(election.run(component, stopping));
        Self { cut, stop, leads, task }
    }

    async fn leads(&mut self) {
        timeout(DEADLINE, self.leads.wait_for(|leads| *leads)).await.unwrap().unwrap();
    }

    async fn end(self) {
        self.stop.send_replace(true);
        timeout(DEADLINE, self.task).await.unwrap().unwrap().unwrap();
    }
}

#[test]
fn a_record_is_taken_when_it_may_be() {
    let now: Timestamp = "2026-05-01T10:00:00Z".parse().unwrap();
    let second = Duration::from_secs(1);
    let had = |holder: &str, seconds: i32| LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: Some(seconds),
        lease_transitions: Some(3),
        acquire_time: Some(MicroTime("2026-05-01T09:00:00Z".parse().unwrap())),
        ..LeaseSpec::default()
    };
    let aimed =
        |aim, found: Option<&LeaseSpec>, silent| plan(found, silent, ("me", aim), &SHORT, now);
    let take = |found: Option<&LeaseSpec>, silent| aimed(Aim::Take, found, silent);
    let first = take(None, Duration::ZERO).unwrap();
    assert_eq!(first.holder_identity.as_deref(), Some("me"));
    assert_eq!((first.lease_transitions, first.lease_duration_seconds), (Some(0), Some(5)));
    assert_eq!(first.renew_time, Some(MicroTime(now)));
    // The length that counts is the record's; what its clock says counts for nothing.
    assert!(
        matches!(take(Some(&had("other", 5)), 4 * second), Err(Missed::Held(h)) if h == "other")
    );
    let taken = take(Some(&had("other", 5)), 5 * second).unwrap();
    assert_eq!((taken.lease_transitions, &taken.acquire_time), (Some(4), &Some(MicroTime(now))));
    assert_eq!(take(Some(&had("", 5)), Duration::ZERO).unwrap().lease_transitions, Some(4));
    let renewed = take(Some(&had("me", 5)), Duration::ZERO).unwrap();
    assert_eq!(renewed.acquire_time, had("me", 5).acquire_time);
    assert_eq!((renewed.lease_transitions, renewed.renew_time), (Some(3), Some(MicroTime(now))));
    // A term does not survive that the record was another's, whatever became of that one.
    assert!(aimed(Aim::Keep, Some(&had("me", 5)), Duration::ZERO).is_ok());
    for gone in [None, Some(&had("", 1)), Some(&had("other", 5))] {
        assert!(matches!(aimed(Aim::Keep, gone, 9 * second), Err(Missed::Held(_))), "{gone:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_until_it_ends_or_falls_silent() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path()).await;
    let leaders = Arc::new(AtomicUsize::new(0));
    let mut one = Candidate::start(&server, "one", &leaders);
    one.leads().await;
    let mut two = Candidate::start(&server, "two", &leaders);

    // A leader that ends lets go: the next one need not wait for the lease to run out.
    one.end().await;
    let released = Instant::now();
    two.leads().await;
    assert!(released.elapsed() < SHORT.lease, "{:?}", released.elapsed());

    // A leader without an API stops by itself, ahead of the next one (see `two lead at once`).
    let mut three = Candidate::start(&server, "three", &leaders);
    let cut = Instant::now();
    two.cut.send_replace(true);
    three.leads().await;
    assert!(cut.elapsed() >= SHORT.renew, "{:?}", cut.elapsed());
    assert_eq!(leaders.load(Ordering::SeqCst), 1);

    // Back, it is a candidate like any other.
    two.cut.send_replace(false);
    three.end().await;
    timeout(DEADLINE, async {
        while leaders.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    two.end().await;
    assert_eq!(leaders.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_of_an_earlier_term_changes_nothing() {
    use k8s_openapi::api::core::v1::ConfigMap;

    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path()).await;
    let leases: Api<Lease> = Api::namespaced(
        crate::in_process::client(server.clone(), "system:kube-scheduler", &[]),
        NAMESPACE,
    );
    let held = |holder: &str| LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        ..LeaseSpec::default()
    };
    let metadata = ObjectMeta { name: Some("kube-scheduler".to_owned()), ..<_>::default() };
    let lease = Lease { metadata, spec: Some(held("one")) };
    let mut lease = leases.create(&PostParams::default(), &lease).await.unwrap();
    assert!(server.fence("kube-scheduler", "two").await.is_err(), "it does not hold the lease");
    let writer = |fence| {
        let caller = Caller::new(User::authenticated("admin", &["system:masters"])).fenced(fence);
        let (server, caller) = (server.clone(), caller);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (server, caller) = (server.clone(), caller.clone());
            let request = request.map(|body| body.map_err(BodyError::from).boxed_unsync());
            async move { Ok::<_, Infallible>(server.handle(request, caller).await) }
        });
        Api::<ConfigMap>::namespaced(Client::new(service, "default"), "default")
    };
    let named = |name: &str| ConfigMap {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..<_>::default() },
        ..ConfigMap::default()
    };
    let params = PostParams::default();
    let one = writer(server.fence("kube-scheduler", "one").await.unwrap());
    let mut made = one.create(&params, &named("a")).await.unwrap();
    made.data = Some([("key".to_owned(), "changed".to_owned())].into());

    lease.spec = Some(held("two"));
    leases.replace("kube-scheduler", &params, &lease).await.unwrap();
    let two = writer(server.fence("kube-scheduler", "two").await.unwrap());
    for refused in [
        one.create(&params, &named("b")).await.map(drop),
        one.replace("a", &params, &made).await.map(drop),
        one.delete("a", &<_>::default()).await.map(drop),
    ] {
        let Err(kube::Error::Api(status)) = refused else { panic!("{refused:?}") };
        assert_eq!((status.code, &*status.message), (503, "another master leads by now"));
    }
    assert!(two.get_opt("b").await.unwrap().is_none());
    two.replace("a", &params, &made).await.unwrap();
    assert!(
        matches!(two.create(&params, &named("a")).await, Err(kube::Error::Api(s)) if s.code == 409)
    );
}
