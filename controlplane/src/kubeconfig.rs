//! Owns the administrator's kubeconfig: its text, its file, and the command that prints it for somebody else.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::cli::KubeconfigArgs;
use crate::pki::{Pair, write_file};

const FILE_MODE: u32 = 0o600;
const SERVER_KEY: &str = "    server: ";

/// Where a master's own kubeconfig is.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.kubeconfig")
}

/// The text of a kubeconfig for a user with a client certificate.
pub fn render(server: &str, ca_pem: &str, user: &Pair) -> String {
    let [ca, certificate, key] =
        [ca_pem, &user.certificate_pem, &user.key_pem].map(|pem| STANDARD.encode(pem));
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: flotilla
  cluster:
{SERVER_KEY}{server}
    certificate-authority-data: {ca}
contexts:
- name: flotilla
  context:
    cluster: flotilla
    user: admin
current-context: flotilla
preferences: {{}}
users:
- name: admin
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
"
    )
}

/// Writes it where only its owner can read it.
///
/// # Errors
/// The disk says no.
pub fn save(path: &Path, text: &str) -> std::io::Result<()> {
    write_file(path, text, FILE_MODE)
}

/// A client of the running master, by the kubeconfig in its folder.
///
/// # Errors
/// There is no such kubeconfig, or it can't be used.
pub async fn client(data_dir: &Path) -> anyhow::Result<kube::Client> {
    let path = path(data_dir);
    let kubeconfig = Kubeconfig::from_yaml(&read(data_dir)?)
        .with_context(|| format!("{} can't be used", path.display()))?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    Ok(kube::Client::try_from(config)?)
}

fn read(data_dir: &Path) -> anyhow::Result<String> {
    let path = path(data_dir);
    std::fs::read_to_string(&path).with_context(|| {
        format!(
            "{}: no kubeconfig of a master; is `controlplane run` using another --data-dir, or are you not root?",
            path.display()
        )
    })
}

/// The command `kubeconfig`.
///
/// # Errors
/// As it says.
pub fn print(args: &KubeconfigArgs) -> anyhow::Result<()> {
    let mut text = read(&args.data_dir)?;
    if let Some(server) = &args.server {
        text = with_server(&text, server)?;
    }
    match &args.output {
        Some(path) => save(path, &text).with_context(|| path.display().to_string()),
        None => Ok(std::io::stdout().write_all(text.as_bytes())?),
    }
}

fn with_server(text: &str, server: &str) -> anyhow::Result<String> {
    let uri: http::Uri =
        server.parse().with_context(|| format!("--server: {server:?} is no URL"))?;
    if uri.scheme_str() != Some("https") || uri.host().is_none() {
        bail!("--server: {server:?} is not https://HOST:PORT");
    }
    let line = |line: &str| {
        let own = line.strip_prefix(SERVER_KEY).map(|_| format!("{SERVER_KEY}{server}"));
        own.unwrap_or_else(|| line.to_owned()) + "\n"
    };
    Ok(text.lines().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_can_be_another() {
        let user = Pair { certificate_pem: "c".into(), key_pem: "k".into() };
        let text = render("https://127.0.0.1:6443", "ca", &user);
        let other = with_server(&text, "https://m.example:6443").unwrap();
        assert_eq!(other, render("https://m.example:6443", "ca", &user));
        let parsed = Kubeconfig::from_yaml(&other).unwrap();
        let cluster = parsed.clusters[0].cluster.clone().unwrap();
        assert_eq!(cluster.server.unwrap(), "https://m.example:6443");
        assert!(with_server(&text, "m.example:6443").is_err());
    }
}
