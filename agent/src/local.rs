//! Commands on the device, over the agent's Unix socket: they work with the master away. What they
//! print is for people, or JSON for programs.

pub(crate) mod client;
mod terminal;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::Value;

use crate::cli::{ConfigArg, ExecArgs, LocalArgs, LogsArgs, Output, say};
use crate::config::Config;
use crate::local::client::Client;

/// Kibibytes and so on, as people read sizes.
const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

fn client(config: &ConfigArg) -> anyhow::Result<Client> {
    let config = Config::load(&config.config)?;
    Ok(Client::new(config.local_socket()))
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn fetch(config: &ConfigArg, path: &str) -> anyhow::Result<Value> {
    let client = client(config)?;
    block_on(async move { client.json(path).await })
}

fn print_json(value: &Value) -> anyhow::Result<()> {
    say(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Columns as wide as their widest cell.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A container's state in a word.
fn state_word(status: &Value) -> String {
    let state = &status["state"];
    if state.get("running").is_some() {
        let ready = status["ready"].as_bool() == Some(true);
        return if ready { "Running".into() } else { "Running (not ready)".into() };
    }
    let reason = |kind: &str| state[kind]["reason"].as_str().map(ToOwned::to_owned);
    reason("waiting").or_else(|| reason("terminated")).unwrap_or_else(|| "Unknown".into())
}

pub(crate) fn ps(args: &LocalArgs) -> anyhow::Result<()> {
    let pods = fetch(&args.config, "/pods")?;
    if args.output == Output::Json {
        return print_json(&pods);
    }
    let mut rows =
        vec![row(&["NAMESPACE", "POD", "CONTAINER", "STATE", "RESTARTS", "IP", "IMAGE"])];
    for pod in pods["items"].as_array().into_iter().flatten() {
        let lists = ["/status/initContainerStatuses", "/status/containerStatuses"];
        let statuses = lists.iter().filter_map(|list| pod.pointer(list)?.as_array()).flatten();
        for status in statuses {
            rows.push(row(&[
                text(pod, "/metadata/namespace"),
                text(pod, "/metadata/name"),
                text(status, "/name"),
                &state_word(status),
                &status["restartCount"].to_string(),
                text(pod, "/status/podIP"),
                text(status, "/image"),
            ]));
        }
    }
    say(&table(&rows));
    Ok(())
}

fn size(bytes: u64) -> String {
    let mut value = bytes;
    let mut unit = 0;
    while value >= 10 * 1024 && unit + 1 < UNITS.len() {
        value /= 1024;
        unit += 1;
    }
    format!("{value} {}", UNITS[unit])
}

pub(crate) fn images(args: &LocalArgs) -> anyhow::Result<()> {
    let images = fetch(&args.config, "/flotilla/images")?;
    if args.output == Output::Json {
        return print_json(&images);
    }
    let mut rows = vec![row(&["IMAGE", "ID", "SIZE", "PINNED"])];
    for image in images.as_array().into_iter().flatten() {
        let id = text(image, "/id");
        let short: String = id.trim_start_matches("sha256:").chars().take(12).collect();
        let names = image["tags"].as_array().filter(|tags| !tags.is_empty());
        let names = names.or_else(|| image["digests"].as_array());
        let pinned = if image["pinned"] == true { "yes" } else { "" };
        for name in names.into_iter().flatten() {
            let name = name.as_str().unwrap_or("<none>");
            rows.push(row(&[
                name,
                &short,
                &size(image["sizeBytes"].as_u64().unwrap_or(0)),
                pinned,
            ]));
        }
    }
    say(&table(&rows));
    Ok(())
}

pub(crate) fn status(args: &LocalArgs) -> anyhow::Result<()> {
    let status = fetch(&args.config, "/flotilla/status")?;
    if args.output == Output::Json {
        return print_json(&status);
    }
    let servers: Vec<&str> =
        status["servers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let addresses: Vec<&str> =
        status["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let connected = if status["connected"] == true { "connected" } else { "not connected" };
    let rows = [
        row(&["node", text(&status, "/node")]),
        row(&["version", text(&status, "/version")]),
        row(&["master", &format!("{} ({connected})", servers.join(", "))]),
        row(&["addresses", &addresses.join(", ")]),
        row(&["network", text(&status, "/network")]),
        row(&["pods", &format!("{} ({} running)", status["pods"], status["podsRunning"])]),
        row(&["memory", &size(status["memoryBytes"].as_u64().unwrap_or(0))]),
        row(&["cgroups", text(&status, "/cgroups")]),
    ];
    say(&table(&rows));
    Ok(())
}

pub(crate) fn import(config: &ConfigArg, file: &Path) -> anyhow::Result<()> {
    let path = file.canonicalize().with_context(|| format!("no archive {}", file.display()))?;
    let path = client::encode(&path.to_string_lossy());
    let answer = fetch(config, &format!("/flotilla/import?path={path}"))?;
    for name in answer["imported"].as_array().into_iter().flatten() {
        say(&format!("imported {}", name.as_str().unwrap_or_default()));
    }
    Ok(())
}

/// `[NAMESPACE/]POD` and its container, the first one unless named.
async fn place(client: &Client, pod: &str, container: Option<&str>) -> anyhow::Result<String> {
    let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
    if let Some(container) = container {
        return Ok(format!("{namespace}/{name}/{}", client::encode(container)));
    }
    let pods = client.json("/pods").await?;
    let found = pods["items"].as_array().into_iter().flatten().find(|item| {
        text(item, "/metadata/namespace") == namespace && text(item, "/metadata/name") == name
    });
    let found = found.with_context(|| format!("no pod {namespace}/{name} on this device"))?;
    Ok(format!("{namespace}/{name}/{}", text(found, "/spec/containers/0/name")))
}

pub(crate) fn logs(args: &LogsArgs) -> anyhow::Result<()> {
    let client = client(&args.config)?;
    block_on(async move {
        let place = place(&client, &args.pod, args.container.as_deref()).await?;
        let mut query = format!(
            "follow={}&previous={}&timestamps={}",
            args.follow, args.previous, args.timestamps
        );
        if let Some(tail) = args.tail {
            query.push_str(&format!("&tailLines={tail}"));
        }
        client.copy(&format!("/containerLogs/{place}?{query}")).await
    })
}

pub(crate) fn exec(args: &ExecArgs) -> anyhow::Result<ExitCode> {
    let client = client(&args.config)?;
    block_on(async move {
        let place = place(&client, &args.pod, args.container.as_deref()).await?;
        let mut query =
            format!("output=1&input={}&tty={}", u8::from(args.stdin), u8::from(args.tty));
        if !args.tty {
            query.push_str("&error=1");
        }
        for word in &args.command {
            query.push_str(&format!("&command={}", client::encode(word)));
        }
        let socket = client.websocket(&format!("/exec/{place}?{query}")).await?;
        terminal::converse(socket, args.stdin, args.tty).await
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_see() {
        assert_eq!(table(&[row(&["A", "LONG"]), row(&["bbb", "c"])]), "A     LONG\nbbb   c");
        assert_eq!(size(512), "512 B");
        assert_eq!(size(11 << 20), "11 MiB");
        let waiting = serde_json::json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}});
        assert_eq!(state_word(&waiting), "CrashLoopBackOff");
    }
}
