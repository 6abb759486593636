//! The real master as a process: started on a loopback port with a data folder, asked whether it is ready, killed without a
//! warning.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Request;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

/// How long a start may take before it counts as failed.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How often a starting master is asked.
const POLL: Duration = Duration::from_millis(5);

/// Where a master is, and what it is started with.
#[derive(Debug, Clone)]
pub struct Site {
    /// `controlplane`.
    pub binary: PathBuf,
    /// Its data folder.
    pub data: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
    /// Its port on 127.0.0.1.
    pub port: u16,
}

impl Site {
    /// A site with a free port.
    ///
    /// # Errors
    /// There is no free port.
    pub fn new(binary: PathBuf, data: PathBuf, log: PathBuf) -> Result<Site> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        Ok(Site { binary, data, log, port: free.local_addr()?.port() })
    }

    /// The end of what the master said.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// A running master; killed when it is dropped.
pub struct Master {
    child: Child,
    /// A client that may do everything.
    pub client: Client,
    /// From the start of the process to the first good answer of `/readyz`.
    pub ready_after: Duration,
}

impl std::fmt::Debug for Master {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Master").field("child", &self.child).finish_non_exhaustive()
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Master {
    /// Starts a master and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or does not become ready.
    pub async fn start(site: &Site) -> Result<Master> {
        let log = File::create(&site.log).with_context(|| site.log.display().to_string())?;
        let port = site.port.to_string();
        let mut command = Command::new(&site.binary);
        command
            .args([
                "run",
                "--config=/dev/null",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
            ])
            .args(["--secure-port", &port, "--data-dir"])
            .arg(&site.data)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let begin = Instant::now();
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        let mut starting = Starting(Some(child));
        let mut client = None;
        loop {
            if let Some(status) = starting.child()?.try_wait()? {
                bail!("the master ended ({status}):\n{}", site.log_tail());
            }
            if client.is_none() {
                client = connect(&site.data).await;
            }
            if let Some(client) = &client
                && is_ready(client).await
            {
                let (client, ready_after) = (client.clone(), begin.elapsed());
                let child = starting.0.take().context("no process")?;
                return Ok(Master { child, client, ready_after });
            }
            if begin.elapsed() > START_DEADLINE {
                bail!("not ready in {START_DEADLINE:?}:\n{}", site.log_tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        // It may be gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A process that is killed when its start fails.
struct Starting(Option<Child>);

impl Starting {
    fn child(&mut self) -> Result<&mut Child> {
        self.0.as_mut().context("no process")
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// `None`: the administrator's kubeconfig is not there yet.
async fn connect(data: &Path) -> Option<Client> {
    let kubeconfig = Kubeconfig::read_from(data.join("admin.kubeconfig")).ok()?;
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.ok()?;
    Client::try_from(config).ok()
}

async fn is_ready(client: &Client) -> bool {
    let Ok(request) = Request::get("/readyz").body(Vec::new()) else { return false };
    client.request_text(request).await.is_ok()
}
