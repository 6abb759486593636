//! Container create and start through the monitor, beside `runc run` on the same root file system.
//!
//! Both are told to run `/bin/true` of a busybox root in new namespaces with a cgroup of its own; what is
//! timed is request to started (monitor) and `runc run --detach` to its exit (runc), turn by turn.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use monitor::MonitorConfig;
use monitor::protocol::{Answer, Call, ContainerSpec, Hello, Message, PROTOCOL_VERSION, Request};
use monitor::wire::{self, Decoder};
use serde_json::{Value, json};

use super::{Spread, Table};
use crate::lab::remove_cgroups;
use crate::shell::{has_program, run, wait_for};

/// Containers of each kind.
const RUNS: usize = 100;
/// How long the monitor may take to come up or to answer.
const DEADLINE: Duration = Duration::from_secs(20);

/// Adds both figures, interleaved in one run.
pub fn measure(bin_dir: &Path, table: &mut Table) -> Result<()> {
    if !has_program("runc") {
        table.row("container create+start", "SKIPPED".to_owned(), "runc is not installed");
        return Ok(());
    }
    let bench = Bench::start(bin_dir)?;
    let (ours, theirs) = bench.interleave()?;
    table.row("container create+start, monitor", ours.to_string(), "");
    table.row("container create+start, runc run", theirs.to_string(), "slower than the monitor");
    let ratio = theirs.quantile(50).as_secs_f64() / ours.quantile(50).as_secs_f64();
    table.row("runc / monitor, p50", format!("{ratio:.1}"), "> 1");
    Ok(())
}

struct Bench {
    dir: PathBuf,
    cgroup: String,
    process: Child,
    config: MonitorConfig,
}

impl Bench {
    fn start(bin_dir: &Path) -> Result<Bench> {
        let name = format!("flotilla-bench-{}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        rootfs(&dir.join("rootfs"))?;
        let config = MonitorConfig::new(dir.join("run"));
        let process = Command::new(bin_dir.join("agent"))
            .arg("monitor")
            .args(config.to_arguments())
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run agent monitor")?;
        Ok(Bench { dir, cgroup: format!("/{name}"), process, config })
    }

    fn interleave(&self) -> Result<(Spread, Spread)> {
        let mut client = Client::connect(&self.config)?;
        let bundle = self.bundle()?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for number in 0..RUNS {
            ours.push(self.monitor_once(&mut client, &format!("m{number}"))?);
            theirs.push(runc_once(&bundle, &format!("{}-{number}", &self.cgroup[1..]))?);
        }
        Ok((Spread::of(ours), Spread::of(theirs)))
    }

    fn monitor_once(&self, client: &mut Client, id: &str) -> Result<Duration> {
        let spec = ContainerSpec {
            id: id.to_owned(),
            pod_uid: "bench".to_owned(),
            name: id.to_owned(),
            annotations: BTreeMap::new(),
            args: vec!["/bin/true".to_owned()],
            rootfs: self.dir.join("rootfs"),
            cgroup: format!("{}/{id}", self.cgroup),
            ..ContainerSpec::default()
        };
        let start = Instant::now();
        client.call(Request::Create(Box::new(spec)))?;
        client.call(Request::Start { id: id.to_owned() })?;
        let took = start.elapsed();
        client.call(Request::Delete { id: id.to_owned() })?;
        Ok(took)
    }

    /// The bundle that runc gets: its own default specification, without a terminal.
    fn bundle(&self) -> Result<PathBuf> {
        let bundle = self.dir.join("bundle");
        fs::create_dir_all(&bundle)?;
        run(&["runc", "spec", "--bundle", &bundle.to_string_lossy()])?;
        let file = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["/bin/true"]);
        spec["root"] = json!({ "path": self.dir.join("rootfs"), "readonly": false });
        fs::write(&file, serde_json::to_vec(&spec)?)?;
        Ok(bundle)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let outcome = (|| -> Result<()> {
            self.process.kill()?;
            self.process.wait()?;
            remove_cgroups(&self.cgroup)?;
            Ok(fs::remove_dir_all(&self.dir)?)
        })();
        if let Err(error) = outcome {
            eprintln!("while cleaning up: {error:#}");
        }
    }
}

fn runc_once(bundle: &Path, id: &str) -> Result<Duration> {
    let bundle = bundle.to_string_lossy();
    let start = Instant::now();
    run(&["runc", "run", "--detach", "--bundle", &bundle, id])?;
    let took = start.elapsed();
    run(&["runc", "delete", "--force", id])?;
    Ok(took)
}

fn rootfs(root: &Path) -> Result<()> {
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("package busybox-static")?;
    std::os::unix::fs::symlink("busybox", root.join("bin/true"))?;
    Ok(())
}

struct Client {
    stream: UnixStream,
    decoder: Decoder,
    next: u64,
}

impl Client {
    fn connect(config: &MonitorConfig) -> Result<Client> {
        let stream = wait_for("the monitor's socket", DEADLINE, || {
            Ok(UnixStream::connect(config.socket())?)
        })?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut client = Client { stream, decoder: Decoder::default(), next: 1 };
        let hello = Hello { version: PROTOCOL_VERSION, release: "bench".into(), pid: 0 };
        wire::send(client.stream.as_fd(), &wire::encode(&hello)?, &[])?;
        let _theirs: Hello = client.receive()?;
        Ok(client)
    }

    fn receive<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        loop {
            if let Some(value) = self.decoder.next_frame()? {
                return Ok(value);
            }
            let (mut buffer, mut fds) = ([0; 4096], Vec::new());
            match wire::receive(self.stream.as_fd(), &mut buffer, &mut fds)? {
                0 => bail!("the monitor closed the connection"),
                count => self.decoder.push(&buffer[..count], fds),
            }
        }
    }

    fn call(&mut self, request: Request) -> Result<Answer> {
        let call = Call { id: self.next, request, fds: 0 };
        self.next += 1;
        wire::send(self.stream.as_fd(), &wire::encode(&call)?, &[])?;
        loop {
            if let Message::Answer { id, result, .. } = self.receive()?
                && id == call.id
            {
                return result.map_err(|failure| anyhow!("{failure:?}"));
            }
        }
    }
}
