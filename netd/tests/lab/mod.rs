//! Hosts made of network namespaces and a small API server, for tests on the real kernel.
//!
//! A host is a thread in a namespace of its own with its own runtime; what it starts is in that namespace too.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

mod agent;
mod traffic;

pub(crate) use agent::{attach, attach_with_ports, config, start, start_with};
pub(crate) use traffic::{Server, UdpClient, answering, inside, request, transfer};

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, oneshot};

/// Whether the tests that change the kernel can run here; says so when they can't.
pub(crate) fn is_root(test: &str) -> bool {
    // `RUST_LOG=netd=debug` shows what netd does.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    drop(tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init());
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: needs root for network namespaces");
    }
    root
}

type Answer = UnsyncBoxBody<Bytes, std::io::Error>;
type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// A machine: a network namespace, a thread in it, folders.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) tid: i32,
    pub(crate) dir: PathBuf,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new(name: &str) -> Host {
        let dir = tempfile::Builder::new().prefix(&format!("netd-{name}-")).tempdir().unwrap();
        let (jobs, mut inbox) = mpsc::channel::<Job>(16);
        let (ready, tid) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                ready.send(nix::unistd::gettid().as_raw()).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = { runtime }.enable_all().build().unwrap();
                let tasks = tokio::task::LocalSet::new();
                runtime.block_on(tasks.run_until(async {
                    while let Some(job) = inbox.recv().await {
                        tokio::task::spawn_local(job());
                    }
                }));
            })
            .unwrap();
        let host = Host {
            name: name.to_owned(),
            tid: tid.recv().unwrap(),
            dir: dir.path().to_owned(),
            jobs: Some(jobs),
            thread: Some(thread),
            _dir: dir,
        };
        host.sh("ip link set lo up");
        host
    }

    /// Runs a future on the host's thread and waits for it.
    pub(crate) fn run<F, Fut, T>(&self, work: F) -> T
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            Box::pin(async move {
                drop(answer.send(work().await));
            })
        });
        self.jobs.as_ref().unwrap().blocking_send(job).ok().unwrap();
        result.blocking_recv().expect("the job ended")
    }

    pub(crate) fn netns(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/task/{}/ns/net", std::process::id(), self.tid))
    }

    /// Runs a shell command in the host's namespace; panics with its output when it fails.
    pub(crate) fn sh(&self, script: &str) -> String {
        let (ok, output) = self.try_sh(script);
        assert!(ok, "{}: {script}\n{output}", self.name);
        output
    }

    pub(crate) fn try_sh(&self, script: &str) -> (bool, String) {
        sh_in(&self.netns(), script)
    }

    /// Connects two hosts by a cable, named `link` at both ends; each end is up and has its address.
    pub(crate) fn cable(&self, link: &str, address: &str, other: (&Host, &str)) {
        let (other, other_address) = other;
        self.sh(&format!("ip link add {link} type veth peer name {link} netns {}", other.tid));
        for (host, address) in [(self, address), (other, other_address)] {
            host.sh(&format!("ip addr add {address} dev {link}; ip link set {link} up"));
        }
        for host in [self, other] {
            eventually("the cable is seen", || {
                let state = host.sh(&format!("ip -o link show {link}"));
                if state.contains("state UP") { Ok(()) } else { Err(state) }
            });
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        // Pins that a failed test left.
        let pins = Command::new("sh")
            .args(["-c", &format!("umount -l {}/run/netns/* 2>/dev/null", self.dir.display())])
            .status();
        drop(pins);
    }
}

/// Runs a shell command in a pinned namespace.
pub(crate) fn sh_in(netns: &Path, script: &str) -> (bool, String) {
    let output = Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .args(["sh", "-c", script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// Waits for a condition; panics with the last state when it doesn't come.
pub(crate) fn eventually<T: std::fmt::Debug>(what: &str, mut check: impl FnMut() -> Result<(), T>) {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        match check() {
            Ok(()) => return,
            Err(state) if Instant::now() > deadline => panic!("{what}: {state:?}"),
            Err(_) => std::thread::park_timeout(Duration::from_millis(50)),
        }
    }
}

/// An API server that knows lists and watches, and can be cut off.
#[derive(Clone)]
pub(crate) struct Api {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<(String, Value)>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<(String, String, String), Value>,
    revision: u64,
    cut: bool,
}

impl Api {
    pub(crate) fn new() -> Api {
        Api { state: Arc::default(), events: broadcast::channel(1024).0 }
    }

    /// Creates or replaces an object.
    pub(crate) fn apply(&self, plural: &str, mut object: Value) {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let known = state.objects.insert(key(plural, &object), object.clone()).is_some();
        let kind = if known { "MODIFIED" } else { "ADDED" };
        drop(self.events.send((plural.to_owned(), json!({"type": kind, "object": object}))));
    }

    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let object = state.objects.remove(&key).expect("it exists");
        drop(self.events.send((plural.to_owned(), json!({"type": "DELETED", "object": object}))));
    }

    /// From now on every request fails, and every watch ends.
    pub(crate) fn cut(&self) {
        self.state.lock().unwrap().cut = true;
        drop(self.events.send((String::new(), Value::Null)));
    }

    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { api.answer(&request) }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, request: &Request<Body>) -> Result<Response<Answer>, std::io::Error> {
        let state = self.state.lock().unwrap();
        if state.cut {
            return Err(std::io::Error::other("the link is cut"));
        }
        let plural = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        if !request.uri().query().unwrap_or_default().contains("watch=true") {
            let items: Vec<_> = state
                .objects
                .iter()
                .filter(|((kind, _, _), _)| *kind == plural)
                .map(|(_, object)| object.clone())
                .collect();
            let list = json!({"kind": "List", "apiVersion": "v1", "items": items,
                "metadata": {"resourceVersion": state.revision.to_string()}});
            return Ok(Response::new(
                Full::new(Bytes::from(serde_json::to_vec(&list).unwrap()))
                    .map_err(|never| match never {})
                    .boxed_unsync(),
            ));
        }
        let events = tokio_stream::wrappers::BroadcastStream::new(self.events.subscribe());
        let lines = events
            .take_while(|event| {
                let end = matches!(event, Ok((_, Value::Null)) | Err(_));
                std::future::ready(!end)
            })
            .filter_map(move |event| {
                let line = event.ok().filter(|(kind, _)| *kind == plural).map(|(_, event)| {
                    let mut line = serde_json::to_vec(&event).unwrap();
                    line.push(b'\n');
                    Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(line)))
                });
                std::future::ready(line)
            });
        Ok(Response::new(StreamBody::new(lines).boxed_unsync()))
    }
}

fn key(plural: &str, object: &Value) -> (String, String, String) {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    (plural.to_owned(), text("namespace"), text("name"))
}

/// A `Node`.
pub(crate) fn node(name: &str, ip: &str, cidr: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": ip},
                                 {"type": "Hostname", "address": name}]}})
}

/// A `Service` with these fields of `spec` beside name `web`, TCP and UDP port 80.
pub(crate) fn service(cluster_ip: &str, more: &Value) -> Value {
    let mut spec = json!({"type": "NodePort", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
        "ports": [{"name": "tcp", "protocol": "TCP", "port": 80, "nodePort": 30080},
                  {"name": "udp", "protocol": "UDP", "port": 80, "nodePort": 30080}]});
    for (name, value) in more.as_object().unwrap() {
        spec[name] = value.clone();
    }
    json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

/// The `EndpointSlice` of `web`: ready endpoints (address, node) on port 8080.
pub(crate) fn slice(endpoints: &[(String, &str)]) -> Value {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(ip, node)| json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": true}}))
        .collect();
    json!({"metadata": {"name": "web-x", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "tcp", "protocol": "TCP", "port": 8080},
                  {"name": "udp", "protocol": "UDP", "port": 8080}]})
}
