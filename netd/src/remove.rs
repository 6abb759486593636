//! Takes away all that netd ever made in this network namespace, and nothing else.
//!
//! Goes on behind a failure and says at the end what is left. Ours are: what the folders name, links with our prefix, routes with our
//! protocol number, tables of our name, accept rules with our comment, settings and addresses that the state folder lists.

use std::fs;
use std::io;
use std::path::Path;

use rtnetlink::Handle;

use crate::error::RemoveError;
use crate::kernel::{nft, nft_dump};
use crate::link::{self, LinkError};
use crate::rules::{Family, Ruleset};
use crate::{Config, Mode, accepts, netns, network, pods, route, saved, sysctl};

/// Removes everything of ours; `left` in the error names what stayed.
pub(crate) async fn remove(config: &Config) -> Result<(), RemoveError> {
    let mut left = Vec::new();
    if let Err(error) = remove_tables(config) {
        left.push(format!("rules: {error}"));
    }
    if config.mode == Mode::Node {
        left.extend(remove_node(config).await);
    }
    if let Err(error) = remove_files(config) {
        left.push(format!("files: {}", text(error)));
    }
    if left.is_empty() { Ok(()) } else { Err(RemoveError { left }) }
}

/// What only the node of a Flotilla cluster has; returns what stayed.
async fn remove_node(config: &Config) -> Vec<String> {
    let mut left = Vec::new();
    let mut check = |what: &str, result: Result<(), String>| {
        if let Err(error) = result {
            left.push(format!("{what}: {error}"));
        }
    };
    check("network namespaces", remove_pins(config).map_err(text));
    check("accept rules", accepts::remove(config).map_err(text));
    match rtnetlink::new_connection_with_strict_check() {
        Ok((connection, handle, _)) => {
            let connection = tokio::spawn(connection);
            check("routes", remove_routes(&handle, config).await.map_err(text));
            check("links", remove_links(&handle).await.map_err(text));
            let addresses = network::remove_addresses(&handle, config).await;
            check("addresses", addresses.map_err(text));
            connection.abort();
        }
        Err(error) => check("netlink", Err(text(error))),
    }
    check("kernel settings", sysctl::restore(&config.state_dir).map_err(text));
    left
}

fn text(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}

fn remove_tables(config: &Config) -> Result<(), String> {
    for family in Family::BOTH {
        if nft_dump::exists(family, &config.table).map_err(text)? {
            nft::apply(&Ruleset::uninstall(family, &config.table)).map_err(text)?;
        }
    }
    Ok(())
}

fn remove_pins(config: &Config) -> io::Result<()> {
    for entry in list(&config.netns_dir())? {
        netns::unpin(&entry)?;
    }
    for entry in list(&pods::records_dir(config))? {
        saved::remove(&entry)?;
    }
    remove_dir(&config.netns_dir())?;
    remove_dir(&pods::records_dir(config))
}

fn list(dir: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn remove_routes(handle: &Handle, config: &Config) -> Result<(), LinkError> {
    for route in route::observe(handle, config.route_protocol, true).await? {
        route::delete(handle, &route, config.route_protocol).await?;
    }
    Ok(())
}

async fn remove_links(handle: &Handle) -> Result<(), LinkError> {
    for (_, index) in link::list_ours(handle).await? {
        link::delete(handle, index).await?;
    }
    Ok(())
}

/// The folder itself belongs to the caller; it goes when nothing else is in it.
fn remove_files(config: &Config) -> io::Result<()> {
    for file in saved::FILES {
        saved::remove(&config.state_dir.join(file))?;
    }
    match fs::remove_dir(&config.state_dir) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
