//! Owns what the commands `status` and `version` tell, and how an error of the API is told to people. Must not change anything.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use jiff::Timestamp;
use serde_json::Value;

use crate::cli::{Output, StatusArgs};
use crate::figures::Figures;
use crate::{kubeconfig, pki};

/// The Kubernetes version whose API is served.
const KUBERNETES: &str = "1.36";

/// The command `version`.
///
/// # Errors
/// Standard output is gone.
pub fn version() -> anyhow::Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    Ok(writeln!(std::io::stdout(), "controlplane {own} (Kubernetes {KUBERNETES})")?)
}

/// What `status` found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    server: String,
    version: String,
    ready: Result<(), String>,
    nodes: (usize, usize),
    pods: (usize, usize),
    certificates: Vec<(String, String)>,
    store: Option<Figures>,
}

/// The command `status`.
///
/// # Errors
/// The master does not answer, or is not ready.
pub fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(find(&args.data_dir))?;
    let text = match args.output {
        Output::Text => render_text(&found),
        Output::Json => render_json(&found),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    match found.ready {
        Ok(()) => Ok(()),
        Err(why) => bail!("the master is not ready: {why}"),
    }
}

async fn find(data_dir: &Path) -> anyhow::Result<Found> {
    let client = kubeconfig::client(data_dir).await?;
    let explained = |error| explain(data_dir, error);
    let get = |path: &'static str| http::Request::get(path).body(Vec::new());
    let version: Value = client.request(get("/version")?).await.map_err(explained)?;
    let ready = match client.request_text(get("/readyz")?).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => return Err(explain(data_dir, error)),
    };
    let nodes: Value = client.request(get("/api/v1/nodes")?).await.map_err(explained)?;
    let pods: Value = client.request(get("/api/v1/pods")?).await.map_err(explained)?;
    let metrics = client.request_text(get("/metrics")?).await.map_err(explained)?;
    Ok(Found {
        server: server(data_dir),
        version: version["gitVersion"].as_str().unwrap_or("?").to_owned(),
        ready,
        nodes: counted(&nodes, is_ready),
        pods: counted(&pods, |pod| pod["status"]["phase"] == "Running"),
        certificates: certificates(&data_dir.join("pki")),
        store: Figures::parse(&metrics),
    })
}

/// An API's error for people: what did not work, and what to do.
pub fn explain(data_dir: &Path, error: kube::Error) -> anyhow::Error {
    let server = server(data_dir);
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        kube::Error::HyperError(_) | kube::Error::Service(_) => {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(next) = cause.source() {
                cause = next;
            }
            anyhow::anyhow!(
                "the master at {server} does not answer ({cause}); is `controlplane run` running?"
            )
        }
        other => anyhow::Error::new(other).context(format!("asking the master at {server}")),
    }
}

fn server(data_dir: &Path) -> String {
    let read = kube::config::Kubeconfig::read_from(kubeconfig::path(data_dir));
    let clusters = read.map(|read| read.clusters).unwrap_or_default();
    let server = clusters.into_iter().find_map(|named| named.cluster?.server);
    server.unwrap_or_else(|| "an unknown address".to_owned())
}

/// How many of a list are so, and how many there are.
fn counted(list: &Value, is: impl Fn(&Value) -> bool) -> (usize, usize) {
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    (items.iter().filter(|item| is(item)).count(), items.len())
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// Each certificate of the folder with its end; none where the folder can't be read.
fn certificates(dir: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.path();
            let name = path.file_stem()?.to_str()?.to_owned();
            let pem = std::fs::read_to_string(&path)
                .ok()
                .filter(|_| path.extension().is_some_and(|e| e == "crt"))?;
            Some((name, pki::not_after(&pem)?.to_string()))
        })
        .collect();
    found.sort();
    found
}

fn render_text(found: &Found) -> String {
    let ready = match &found.ready {
        Ok(()) => "ready".to_owned(),
        Err(why) => format!("not ready: {why}"),
    };
    let mut text = format!(
        "Master:        {} ({})\nState:         {ready}\nNodes:         {} of {} Ready\nPods:          {} of {} Running\n",
        found.server, found.version, found.nodes.0, found.nodes.1, found.pods.0, found.pods.1,
    );
    for (at, (name, end)) in found.certificates.iter().enumerate() {
        let head = if at == 0 { "Certificates:" } else { "" };
        text.push_str(&format!("{head:<15}{name} until {end}\n"));
    }
    text.push_str(&found.store.as_ref().map(|own| own.text(Timestamp::now())).unwrap_or_default());
    text
}

fn render_json(found: &Found) -> String {
    let certificates: serde_json::Map<_, _> = found
        .certificates
        .iter()
        .map(|(name, end)| (name.clone(), Value::from(end.as_str())))
        .collect();
    let told = serde_json::json!({
        "server": found.server,
        "version": found.version,
        "ready": found.ready.is_ok(),
        "message": found.ready.as_ref().err(),
        "nodes": { "ready": found.nodes.0, "total": found.nodes.1 },
        "pods": { "running": found.pods.0, "total": found.pods.1 },
        "certificates": certificates,
        "store": found.store.as_ref().map(Figures::json),
    });
    told.to_string() + "\n"
}

/// Installs the one source of cryptography; a second call changes nothing.
pub fn install_cryptography() -> anyhow::Result<()> {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let installed = rustls::crypto::ring::default_provider().install_default();
        installed.ok().context("another source of cryptography was installed meanwhile")?;
    }
    Ok(())
}
