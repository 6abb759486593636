//! Two masters and three etcd members under constant load: killed, without power, cut off, restarted. No acknowledged write is
//! lost, watches resume without a gap, scheduling goes on within seconds, nothing is done twice, pods keep running.
#![allow(clippy::print_stdout, reason = "a test reports")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::core::ApiResource;
use serde_json::Value;
use tests::audit::{Audit, Seen};
use tests::fixture::{CONVERGE, Fixture, Shape, run_suite_on, web};
use tests::scenario::{Scenario, Verdict};
use tests::shell::{Output, capture, wait_for};

const NS: &str = "masters";
const LOAD: &str = "load";
/// From a fault to a new pod that runs, with debug builds on a busy machine; 15 s is what is promised, and the figures are printed.
const SCHEDULED: Duration = Duration::from_secs(30);
const PODS: u32 = 4;

/// Replicas that the Deployment was told to have.
static REPLICAS: AtomicU32 = AtomicU32::new(PODS);
/// The master that answered last.
static ANSWERED: AtomicUsize = AtomicUsize::new(0);
static AUDIT: Mutex<Option<Audit>> = Mutex::new(None);
/// When which master was dead for sure.
static DEATHS: Mutex<Vec<(String, SystemTime)>> = Mutex::new(Vec::new());

const SCENARIOS: &[Scenario<Fixture>] = &[
    ("both masters serve, and reach every pod", serve),
    ("addresses and ports are given once, whoever is asked", allocate),
    ("load begins", load),
    ("SIGKILL of each etcd member", |f| each(f, &f.lab.etcds, killed)),
    ("SIGKILL of each master", |f| each(f, &f.lab.masters, killed)),
    ("power cut of each etcd member", |f| each(f, &f.lab.etcds, without_power)),
    ("power cut of each master", |f| each(f, &f.lab.masters, without_power)),
    ("each etcd member cut off", |f| each(f, &f.lab.etcds, cut_off)),
    ("each master cut off", |f| each(f, &f.lab.masters, cut_off)),
    ("links between hosts cut", between),
    ("each master cut off from the datastore", blind),
    ("a leader that was frozen does nothing more", frozen),
    ("two of three etcd members gone, and back", without_quorum),
    ("masters restart one after the other without a failed request", rolling),
    ("a node that boots finds the master that is there", boots),
    ("nothing was lost, skipped, repeated or done twice", judged),
    ("no component ever ran on two masters", terms),
];

fn main() -> ExitCode {
    run_suite_on("masters", Shape { nodes: 2, masters: 2, etcds: 3, arguments: &[] }, SCENARIOS)
}

/// kubectl at one master, whatever comes of it.
fn ask(f: &Fixture, master: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = f.lab.kubectl_at(&f.lab.kubeconfig_of(master));
    capture(command.arg("--request-timeout=3s").args(arguments))
}

/// kubectl at the first master that answers, beginning with the one that did last.
fn anywhere(f: &Fixture, arguments: &[&str]) -> Result<String> {
    let first = ANSWERED.load(Ordering::Relaxed);
    let mut last = Err(anyhow!("no master"));
    for offset in 0..f.lab.masters.len() {
        let at = (first + offset) % f.lab.masters.len();
        let master = &f.lab.masters[at];
        last = ask(f, master, arguments)?.success().with_context(|| format!("at {master}"));
        if last.is_ok() {
            ANSWERED.store(at, Ordering::Relaxed);
            break;
        }
    }
    last
}

fn serve(f: &Fixture) -> Result<Verdict> {
    f.namespace(NS)?;
    f.namespace(LOAD)?;
    f.kubectl_with(&["apply", "-n", NS, "-f", "-"], &web("web", PODS, "x"))?.success()?;
    let pods = f.wait_ready(NS, "app=web", PODS as usize)?;
    for master in &f.lab.masters {
        for pod in &pods {
            let name = pod["metadata"]["name"].as_str().context("no name")?;
            let log = ask(f, master, &["logs", "-n", NS, name])?.success()?;
            ensure!(log.contains("serving on"), "{master}: {log:?}");
            let words = ["exec", "-n", NS, name, "--", "sh", "-c", "echo said"];
            let said = ask(f, master, &words)?.success()?;
            ensure!(said.trim() == "said", "{master}: {said:?}");
        }
    }
    whole(f)?;
    Ok(Verdict::Passed)
}

/// Many Services made at both masters at once.
fn allocate(f: &Fixture) -> Result<Verdict> {
    let makers = f.lab.masters.iter().map(|master| {
        let (f, master) = (f.lab.clone(), master.clone());
        thread::spawn(move || -> Result<()> {
            for number in 0..15 {
                let name = format!("{master}-{number}");
                let mut command = f.kubectl_at(&f.kubeconfig_of(&master));
                command.args(["create", "service", "nodeport", &name, "--tcp=80", "-n", LOAD]);
                capture(&mut command)?.success()?;
            }
            Ok(())
        })
    });
    for maker in makers.collect::<Vec<_>>() {
        maker.join().map_err(|_| anyhow!("a maker panicked"))??;
    }
    let services = f.get(&["services", "-n", LOAD])?;
    let services = services["items"].as_array().context("no items")?;
    let distinct = |pointer: &str| -> BTreeSet<String> {
        services.iter().filter_map(|s| Some(s.pointer(pointer)?.to_string())).collect()
    };
    for pointer in ["/spec/clusterIP", "/spec/ports/0/nodePort"] {
        let found = distinct(pointer).len();
        ensure!(found == services.len() && found == 30, "{pointer}: {found} different ones");
    }
    Ok(Verdict::Passed)
}

fn load(f: &Fixture) -> Result<Verdict> {
    let kubeconfigs = f.lab.masters.iter().map(|master| f.lab.kubeconfig_of(master)).collect();
    let mut audit = Audit::start(kubeconfigs, LOAD)?;
    for number in 0..f.lab.masters.len() {
        audit.watch(number, ApiResource::erase::<Pod>(&()), NS)?;
        audit.watch(number, ApiResource::erase::<ReplicaSet>(&()), NS)?;
    }
    wait_for("some acknowledged writes", CONVERGE, || {
        let count = audit.so_far(|written| written.acknowledged.len());
        ensure!(count > 50, "{count}");
        Ok(())
    })?;
    *AUDIT.lock().unwrap_or_else(PoisonError::into_inner) = Some(audit);
    Ok(Verdict::Passed)
}

/// PIDs of the test servers, as the machine sees them.
fn servers(f: &Fixture) -> Result<BTreeSet<u32>> {
    let below: Vec<String> =
        f.lab.nodes.iter().map(|node| format!("{}/", f.lab.addresses().cgroup(node))).collect();
    let mut pids = BTreeSet::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}"));
        let (Ok(groups), Ok(line)) = (read("cgroup"), read("cmdline")) else { continue };
        if below.iter().any(|below| groups.contains(below)) && line.starts_with("/bin/testserver") {
            pids.insert(pid);
        }
    }
    Ok(pids)
}

type Break = fn(&Fixture, &str) -> Result<()>;

/// How something is broken, and mended again.
struct Fault(Break, Break);

fn each(f: &Fixture, hosts: &[String], what: fn(&Fixture, &str) -> Fault) -> Result<Verdict> {
    for host in hosts {
        let Fault(breaks, mends) = what(f, host);
        endure(f, host, || breaks(f, host), || mends(f, host))?;
    }
    Ok(Verdict::Passed)
}

fn killed(_: &Fixture, _: &str) -> Fault {
    Fault(
        |f, host| {
            f.lab.kill_and_wait(host, libc::SIGKILL)?;
            died(host);
            Ok(())
        },
        |f, host| f.lab.start(host),
    )
}

fn without_power(_: &Fixture, _: &str) -> Fault {
    Fault(
        |f, host| {
            f.lab.host(host)?.power_off()?;
            died(host);
            Ok(())
        },
        |f, host| f.lab.start(host),
    )
}

fn cut_off(_: &Fixture, _: &str) -> Fault {
    Fault(|f, host| f.lab.host(host)?.set_link("down"), |f, host| f.lab.host(host)?.set_link("up"))
}

fn died(host: &str) {
    let mut deaths = DEATHS.lock().unwrap_or_else(PoisonError::into_inner);
    deaths.push((host.to_owned(), SystemTime::now()));
}

fn between(f: &Fixture) -> Result<Verdict> {
    for (one, other) in
        [("master", "etcd1"), ("master2", "etcd2"), ("etcd1", "etcd2"), ("master", "master2")]
    {
        let set = |state| f.lab.host(one)?.set_link_to(&f.lab.host(other)?, state);
        endure(f, &format!("{one} from {other}"), || set("down"), || set("up"))?;
    }
    Ok(Verdict::Passed)
}

/// A master that reaches no etcd member lets its nodes go to the other one.
fn blind(f: &Fixture) -> Result<Verdict> {
    for master in &f.lab.masters {
        let set = |state: &str| -> Result<()> {
            for etcd in &f.lab.etcds {
                f.lab.host(master)?.set_link_to(&f.lab.host(etcd)?, state)?;
            }
            Ok(())
        };
        endure(f, &format!("{master} from every etcd member"), || set("down"), || set("up"))?;
    }
    Ok(Verdict::Passed)
}

/// The leader stops in the middle of what it does, and goes on when another one leads.
fn frozen(f: &Fixture) -> Result<Verdict> {
    let path = "jsonpath={.spec.holderIdentity}";
    let lease = ["get", "lease", "-n", "kube-system", "kube-controller-manager", "-o", path];
    let holder = anywhere(f, &lease)?;
    let leader = holder.split('_').next().unwrap_or_default();
    let signal = |number| f.lab.kill(leader, number).map(drop);
    let freeze = || {
        signal(libc::SIGSTOP)?;
        died(leader);
        // kubectl's own patience with a master that says nothing is not what is measured.
        let other = f.lab.masters.iter().position(|master| master != leader);
        ANSWERED.store(other.unwrap_or_default(), Ordering::Relaxed);
        Ok(())
    };
    let thaw = || {
        for pid in f.lab.kill(leader, libc::SIGCONT)? {
            // nsenter stops together with its child, and has to reap it one day.
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
            let parent = parent.context("no parent")?.trim().to_owned();
            tests::shell::run(&["kill", "-CONT", &parent])?;
        }
        Ok(())
    };
    endure(f, &format!("{leader}, frozen"), freeze, thaw)?;
    let now = anywhere(f, &lease)?;
    ensure!(now != holder, "{now} leads still");
    grow(f)?;
    Ok(Verdict::Passed)
}

/// Nothing can be written; what runs goes on, and so does all else when a member is back.
fn without_quorum(f: &Fixture) -> Result<Verdict> {
    let before = servers(f)?;
    let gone = f.lab.etcds.iter().skip(1);
    for etcd in gone.clone() {
        f.lab.kill_and_wait(etcd, libc::SIGKILL)?;
    }
    let failed = || with_audit(|a| a.so_far(|w| w.failed.len()));
    let first = failed()?;
    let refused = wait_for("writes to be refused", CONVERGE, || {
        let count = failed()?;
        ensure!(count >= first + 4, "{count}");
        Ok(())
    });
    for etcd in gone {
        f.lab.start(etcd)?;
    }
    refused?;
    let begin = Instant::now();
    grow(f)?;
    println!("         a new pod runs {:.1?} after the members' start", begin.elapsed());
    ensure!(begin.elapsed() < SCHEDULED, "only after {:.1?}", begin.elapsed());
    ensure!(before.is_subset(&servers(f)?), "servers ended");
    whole(f)?;
    Ok(Verdict::Passed)
}

/// Breaks something, has a pod more, mends it.
fn endure(
    f: &Fixture,
    what: &str,
    breaks: impl FnOnce() -> Result<()>,
    mends: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = servers(f)?;
    breaks()?;
    let begin = Instant::now();
    let grown = grow(f);
    let took = begin.elapsed();
    mends()?;
    grown.with_context(|| format!("{what}: no new pod runs after {took:.1?}"))?;
    println!("         {what}: a new pod runs after {took:.1?}");
    ensure!(took < SCHEDULED, "{what}: a new pod ran only after {took:.1?}");
    let gone: Vec<_> = before.difference(&servers(f)?).copied().collect();
    ensure!(gone.is_empty(), "{what}: servers ended: {gone:?}");
    whole(f).with_context(|| format!("after {what}"))
}

/// One pod more, and waits until it is Ready.
fn grow(f: &Fixture) -> Result<()> {
    let wanted = REPLICAS.fetch_add(1, Ordering::Relaxed) + 1;
    let replicas = format!("--replicas={wanted}");
    wait_for("a master that takes the change", SCHEDULED, || {
        anywhere(f, &["scale", "deployment", "web", "-n", NS, &replicas])
    })?;
    let path = "jsonpath={.status.readyReplicas}";
    wait_for(&format!("{wanted} Ready pods"), CONVERGE, || {
        let ready = anywhere(f, &["get", "deployment", "web", "-n", NS, "-o", path])?;
        ensure!(ready == wanted.to_string(), "{ready}");
        Ok(())
    })
}

/// Every master is ready and an endpoint, every etcd member answers, every node is Ready.
fn whole(f: &Fixture) -> Result<()> {
    let mut wanted = BTreeSet::new();
    for master in &f.lab.masters {
        wanted.insert(f.lab.host(master)?.ip.to_string());
    }
    for master in &f.lab.masters {
        wait_for(&format!("{master} to know all masters"), CONVERGE, || {
            ask(f, master, &["get", "--raw", "/readyz"])?.success()?;
            let endpoints = ask(f, master, &["get", "endpoints", "kubernetes", "-o", "json"])?;
            let endpoints: Value = serde_json::from_str(&endpoints.success()?)?;
            let addresses = endpoints["subsets"][0]["addresses"].as_array();
            let addresses = addresses.context("no addresses")?.iter();
            let found: BTreeSet<_> =
                addresses.filter_map(|a| Some(a["ip"].as_str()?.to_owned())).collect();
            ensure!(found == wanted, "{found:?}");
            Ok(())
        })?;
    }
    for endpoint in f.lab.etcd_endpoints()? {
        wait_for(&format!("{endpoint} to answer"), CONVERGE, || {
            let health = format!("{endpoint}/health");
            tests::shell::run(&["curl", "-sS", "--fail", "--max-time", "3", &health])
        })?;
    }
    for node in &f.lab.nodes {
        wait_for(&format!("{node} to be Ready"), CONVERGE, || f.lab.node_ready(node))?;
    }
    Ok(())
}

fn with_audit<T>(read: impl FnOnce(&Audit) -> T) -> Result<T> {
    let audit = AUDIT.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(read(audit.as_ref().context("the load did not begin")?))
}

fn rolling(f: &Fixture) -> Result<Verdict> {
    let so_far = || with_audit(|a| a.so_far(|w| (w.acknowledged.len(), w.failed.len())));
    let before = so_far()?;
    for master in &f.lab.masters {
        f.lab.kill_and_wait(master, libc::SIGTERM)?;
        died(master);
        f.lab.start(master)?;
        whole(f)?;
    }
    let after = so_far()?;
    ensure!(after.0 > before.0 + 20, "only {} writes meanwhile", after.0 - before.0);
    let failed = with_audit(|a| a.so_far(|w| format!("{:?}", &w.failed[before.1..])))?;
    ensure!(after.1 == before.1, "writes failed: {failed}");
    grow(f)?;
    Ok(Verdict::Passed)
}

/// A node that joined at the first master boots without it.
fn boots(f: &Fixture) -> Result<Verdict> {
    let [first, other] = f.lab.masters.as_slice() else { bail!("not two masters") };
    let node = f.lab.nodes.first().context("no node")?;
    f.lab.host(first)?.power_off()?;
    died(first);
    f.lab.host(node)?.power_off()?;
    f.lab.start(node)?;
    let field = format!("--field-selector=spec.nodeName={node}");
    let path = "jsonpath={.items[0].metadata.name}";
    let listed = ask(f, other, &["get", "pods", "-n", NS, &field, "-o", path])?;
    let pod = listed.success()?;
    wait_for("a pod's log from the node", CONVERGE, || {
        let log = ask(f, other, &["logs", "-n", NS, &pod])?.success()?;
        ensure!(log.contains("serving on"), "{log:?}");
        Ok(())
    })?;
    f.lab.start(first)?;
    grow(f)?;
    whole(f)?;
    Ok(Verdict::Passed)
}

/// What a watcher saw of a kind: how many came into being, and that none went.
fn made(seen: &[Seen]) -> Result<usize> {
    let added: BTreeSet<_> = seen.iter().filter(|s| s.what == "ADDED").map(|s| &s.uid).collect();
    let gone: Vec<_> = seen.iter().filter(|s| s.what == "DELETED").map(|s| &s.name).collect();
    ensure!(gone.is_empty(), "deleted: {gone:?}");
    Ok(added.len())
}

fn judged(f: &Fixture) -> Result<Verdict> {
    whole(f)?;
    let audit = AUDIT.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (written, others) = audit.context("the load did not begin")?.finish()?;
    println!(
        "         {} creations and {} increments acknowledged, {} in doubt, {} not taken; longest gap {:.1?}",
        written.acknowledged.len(),
        written.counted,
        written.in_doubt,
        written.failed.len(),
        written.longest_gap,
    );
    let grown = (REPLICAS.load(Ordering::Relaxed) - PODS) as usize;
    for (what, seen) in others {
        let made = made(&seen).with_context(|| what.clone())?;
        let wanted = if what.starts_with("pods") { grown } else { 0 };
        ensure!(made == wanted, "{what}: {made} came into being, not {wanted}");
    }
    let sets = f.get(&["replicasets", "-n", NS])?;
    ensure!(sets["items"].as_array().map(Vec::len) == Some(1), "more than one ReplicaSet: {sets}");
    Ok(Verdict::Passed)
}

type Term = (Timestamp, Timestamp, String);

/// The terms of each lease as the masters' logs and their deaths tell them.
fn read_terms(f: &Fixture) -> Result<BTreeMap<String, Vec<Term>>> {
    let mut terms: BTreeMap<String, Vec<Term>> = BTreeMap::new();
    for master in &f.lab.masters {
        let log = std::fs::read_to_string(f.lab.host(master)?.dir.join("controlplane.log"))?;
        let mut open: BTreeMap<String, Timestamp> = BTreeMap::new();
        for line in log.lines() {
            let Some((at, text)) = line.split_once("  ").or_else(|| line.split_once(' ')) else {
                continue;
            };
            let lease = text.split("lease=\"").nth(1).and_then(|rest| rest.split('"').next());
            let (Some(lease), Ok(at)) = (lease, at.parse::<Timestamp>()) else { continue };
            let begins = text.contains("became the leader");
            let ends = text.contains("lost the lead;") || text.contains("let go of the lead");
            if (begins || ends)
                && let Some(from) = open.remove(lease)
            {
                // A frozen one ended when it froze: what it says of itself comes later.
                let to = match death(master, from) {
                    Ok(death) if ends => at.min(death),
                    Err(_) if ends => at,
                    other => other?,
                };
                terms.entry(lease.to_owned()).or_default().push((from, to, master.clone()));
            }
            if begins {
                open.insert(lease.to_owned(), at);
            }
        }
        for (lease, from) in open {
            let to = death(master, from).unwrap_or(Timestamp::MAX);
            terms.entry(lease).or_default().push((from, to, master.clone()));
        }
    }
    Ok(terms)
}

/// The first death of a master after a moment.
fn death(master: &str, after: Timestamp) -> Result<Timestamp> {
    let deaths = DEATHS.lock().unwrap_or_else(PoisonError::into_inner);
    let own = deaths.iter().filter(|(who, _)| who == master);
    let times = own.filter_map(|(_, at)| Timestamp::try_from(*at).ok());
    times.filter(|at| *at > after).min().with_context(|| format!("{master} led on from {after}"))
}

fn terms(f: &Fixture) -> Result<Verdict> {
    let terms = read_terms(f)?;
    ensure!(terms.len() == 2, "leases: {:?}", terms.keys());
    for (lease, mut terms) in terms {
        terms.sort();
        ensure!(terms.len() > 4, "{lease}: only {} terms", terms.len());
        for pair in terms.windows(2) {
            let [(_, ended, one), (began, _, other)] = pair else { continue };
            if ended > began {
                bail!("{lease}: {one} led until {ended}, {other} from {began}");
            }
        }
    }
    Ok(Verdict::Passed)
}
