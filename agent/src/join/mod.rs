//! `agent join`: from a token to a Ready node, with every step said and every failure named with its
//! remedy. Running it again renews the identity and restarts the agent.

pub(crate) mod bootstrap;
pub(crate) mod service;
pub(crate) mod settings;
pub(crate) mod token;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::cgroup;
use crate::cli::{JoinArgs, say};
use crate::config::Config;
use crate::identity::{DeviceKey, Identity};
use crate::join::bootstrap::{JoinError, Master, complete_server};
use crate::join::service::Started;
use crate::join::token::Token;
use crate::node::status::parse_taint;

const READY_DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);

pub(crate) fn join(args: &JoinArgs) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("joining needs root: run it with sudo");
    }
    check_memory_controller()?;
    let begun = Instant::now();
    let token = Token::parse(&args.token)?;
    let servers: Vec<String> =
        args.servers.iter().map(|server| complete_server(server)).collect::<Result<_, _>>()?;
    let mut config = configuration(args, &servers)?;
    let config_path = args.config_dir.join("agent.toml");
    let name = config.node_name.clone();
    say(&format!("Joining {} as node {name:?}", servers.join(", ")));
    let master = find(&servers, &token)?;
    say("  the master's identity matches the token");
    let key = DeviceKey::ensure(&config.identity_dir())?;
    let certificate = master.enroll(&token, &key, &name)?;
    say("  the master signed the node's certificate");
    let as_node = master.as_node(&certificate, &key)?;
    settings::adopt(&mut config, &as_node.settings()?)?;
    Identity::write(&config.identity_dir(), &master.ca_pem, &certificate)?;
    config.save(&config_path)?;
    std::fs::create_dir_all(&config.manifests_dir)
        .with_context(|| format!("cannot make {}", config.manifests_dir.display()))?;
    say(&format!("  wrote {}", config_path.display()));
    if args.no_service {
        let path = config_path.display();
        say(&format!("Joined. Nothing was started; run: agent run --config {path}"));
        return Ok(());
    }
    let mut started = service::start(&config, &config_path)?;
    say(&format!("  started {}; its log: {}", started.what, started.logs));
    await_ready(&as_node, &name, &mut started)
        .with_context(|| format!("the agent's log may say more: {}", started.logs))?;
    say(&format!("Node {name:?} is Ready after {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(())
}

/// The first master that can be reached; why the last one can't, where none can.
fn find(servers: &[String], token: &Token) -> anyhow::Result<Master> {
    let mut servers = servers.iter().peekable();
    while let Some(server) = servers.next() {
        match Master::find(server, token) {
            Err(JoinError::NoMaster { server, why }) if servers.peek().is_some() => {
                say(&format!("  {server} can't be reached ({why}); trying the next"));
            }
            found => return Ok(found?),
        }
    }
    bail!("no master is named")
}

fn check_memory_controller() -> anyhow::Result<()> {
    if cgroup::has_memory_controller() {
        return Ok(());
    }
    let file = ["/boot/firmware/cmdline.txt", "/boot/cmdline.txt"]
        .into_iter()
        .find(|path| PathBuf::from(path).exists());
    let remedy = match file {
        Some(file) => format!(
            "add `cgroup_enable=memory cgroup_memory=1` to the one line of {file} and reboot"
        ),
        None => "add `cgroup_enable=memory cgroup_memory=1` to the kernel's command line (on a \
                 Raspberry Pi: cmdline.txt; with GRUB: GRUB_CMDLINE_LINUX in /etc/default/grub, \
                 then update-grub) and reboot"
            .to_owned(),
    };
    bail!(
        "this kernel has no cgroup memory controller, so pods' memory limits can't be kept: {remedy}"
    )
}

fn configuration(args: &JoinArgs, servers: &[String]) -> anyhow::Result<Config> {
    let path = args.config_dir.join("agent.toml");
    let mut config = if path.exists() { Config::load(&path)? } else { Config::default() };
    if args.config_dir != std::path::Path::new(crate::config::CONFIG_DIR) {
        config.manifests_dir = args.config_dir.join("manifests");
        config.registries_file = args.config_dir.join("registries.toml");
    }
    config.servers = servers.to_vec();
    if let Some(name) = &args.node_name {
        config.node_name.clone_from(name);
    } else if config.node_name.is_empty() {
        config.node_name = hostname()?;
    }
    check_name(&config.node_name)?;
    if !args.node_ip.is_empty() {
        config.node_ip.clone_from(&args.node_ip);
    }
    if let Some(dir) = &args.data_dir {
        config.data_dir.clone_from(dir);
        config.image_drop_dir = dir.join("import");
    }
    if let Some(dir) = &args.run_dir {
        config.run_dir.clone_from(dir);
    }
    if let Some(dir) = &args.log_dir {
        config.log_dir.clone_from(dir);
    }
    if let Some(parent) = &args.cgroup_parent {
        config.cgroup_parent = format!("/{}", parent.trim_matches('/'));
    }
    let labels: BTreeMap<String, String> =
        args.labels.iter().map(|label| parse_label(label)).collect::<anyhow::Result<_>>()?;
    if !labels.is_empty() {
        config.labels = labels;
    }
    for taint in &args.taints {
        parse_taint(taint)?;
    }
    if !args.taints.is_empty() {
        config.taints.clone_from(&args.taints);
    }
    Ok(config)
}

fn hostname() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("this device has no hostname")?;
    Ok(name.to_string_lossy().to_lowercase())
}

/// A node's name is a DNS-1123 subdomain.
fn check_name(name: &str) -> anyhow::Result<()> {
    let label = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if name.is_empty() || name.len() > 253 || !name.split('.').all(label) {
        bail!(
            "{name:?} can't be a node's name: lower-case letters, digits, '-' and '.' only; choose \
             one with --node-name"
        );
    }
    Ok(())
}

fn parse_label(text: &str) -> anyhow::Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => bail!("label {text:?} is not key=value"),
    }
}

/// Ready counts when this agent says so: an earlier one's word stands until its lease runs out.
fn await_ready(master: &Master, name: &str, started: &mut Started) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_DEADLINE;
    let mut said = String::new();
    loop {
        let asked = master.node_ready(name).and_then(|ready| match ready {
            Some((true, _)) => Ok((ready, master.lease_renewed(name)?)),
            _ => Ok((ready, None)),
        });
        let state = match asked {
            Ok((Some((true, _)), renewed)) if renewed.is_some_and(|at| at >= started.at) => {
                return Ok(());
            }
            Ok((Some((true, _)), _)) => "the agent is starting".to_owned(),
            Ok((Some((false, message)), _)) => format!("not Ready yet: {message}"),
            Ok((None, _)) => "not registered yet".to_owned(),
            Err(error) => error.to_string(),
        };
        if let Some(ended) = started.ended()? {
            bail!("the agent ended with {ended}");
        }
        if Instant::now() > deadline {
            bail!("node {name:?} is not Ready after {} s: {state}", READY_DEADLINE.as_secs());
        }
        if state != said {
            say(&format!("  node {name:?}: {state}"));
            said = state;
        }
        std::thread::park_timeout(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels() {
        for good in ["pi-3", "n1.lan", "0a"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "Pi", "-a", "a-", "a..b", "a_b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_label("a/b=c").unwrap(), ("a/b".into(), "c".into()));
        assert!(parse_label("x").is_err());
    }
}
