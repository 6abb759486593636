//! `lab`: the command behind `scripts/lab`. It parses words and calls `tests::lab`; nothing else.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use tests::lab::{Lab, UpOptions, hold, image, snapshot};

/// Masters, etcd members and N nodes on this machine, each a host of its own.
#[derive(Debug, Parser)]
#[command(name = "lab", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct At {
    /// The lab's folder.
    #[arg(long, default_value = "/tmp/flotilla-lab")]
    dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Bring a lab up and wait until all nodes are Ready.
    Up {
        #[command(flatten)]
        at: At,
        /// How many nodes.
        #[arg(long, default_value_t = 3)]
        nodes: u8,
        /// How many masters; several need etcd members.
        #[arg(long, default_value_t = 1)]
        masters: u8,
        /// How many etcd members; none: the master's own log is the datastore.
        #[arg(long, value_name = "MEMBERS", default_value_t = 0)]
        etcd: u8,
        /// A registries file for the nodes instead of the lab's own registry.
        #[arg(long)]
        registries: Option<PathBuf>,
        /// Where the binaries are; beside this one by default.
        #[arg(long)]
        bin_dir: Option<PathBuf>,
        /// Arguments of `controlplane run`, after `--`.
        #[arg(last = true)]
        master_args: Vec<String>,
    },
    /// Take the lab down and remove its folder.
    Down {
        #[command(flatten)]
        at: At,
    },
    /// Show hosts and nodes.
    Status {
        #[command(flatten)]
        at: At,
    },
    /// Run a command on a host.
    Exec {
        #[command(flatten)]
        at: At,
        /// A node, `master`, `etcd1` or `registry`.
        host: String,
        /// The command.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Cut a host's link, or the one between two hosts.
    Cut {
        #[command(flatten)]
        at: At,
        /// The host.
        host: String,
        /// Cut only what goes to this one.
        other: Option<String>,
    },
    /// Heal what was cut, in the same words.
    Heal {
        #[command(flatten)]
        at: At,
        /// The host.
        host: String,
        /// Heal only what goes to this one.
        other: Option<String>,
    },
    /// Signal one process: NODE (its agent), NODE/monitor, master or etcd1.
    Kill {
        #[command(flatten)]
        at: At,
        /// Whose process.
        target: String,
        /// Signal number or name.
        #[arg(default_value = "KILL")]
        signal: String,
    },
    /// Take a host's power away: everything on it dies at once.
    Power {
        #[command(flatten)]
        at: At,
        /// The host.
        host: String,
    },
    /// Start what does not run on a host.
    Start {
        #[command(flatten)]
        at: At,
        /// The host.
        host: String,
    },
    /// Print a host's log.
    Logs {
        #[command(flatten)]
        at: At,
        /// The host.
        host: String,
    },
    /// Write what a host (a node, or `host` for this machine) holds to a file.
    Snapshot {
        #[command(flatten)]
        at: At,
        /// A node, `master` or `host`.
        host: String,
        /// The file.
        file: PathBuf,
    },
    /// Compare two snapshots; exit 1 when they differ.
    Diff {
        /// The earlier one.
        before: PathBuf,
        /// The later one.
        after: PathBuf,
    },
    /// Write the image of the test server as an archive for `agent image import`.
    Image {
        /// The archive.
        file: PathBuf,
    },
    /// The holder of a host's namespaces.
    #[command(hide = true)]
    Hold {
        /// Name of the host.
        name: String,
        /// Folder of the host.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Up { at, nodes, masters, etcd, registries, bin_dir, master_args } => {
            let bin_dir = match bin_dir {
                Some(dir) => dir,
                None => std::env::current_exe()?.parent().context("no folder")?.to_path_buf(),
            };
            let (dir, etcds) = (at.dir, etcd);
            let options =
                UpOptions { nodes, masters, etcds, dir, bin_dir, registries, master_args };
            let lab = Lab::up(&options)?;
            println!("{}", lab.kubeconfig().display());
        }
        Verb::Down { at } => Lab::open(&at.dir)?.down()?,
        Verb::Status { at } => status(&Lab::open(&at.dir)?)?,
        Verb::Exec { at, host, command } => {
            let (program, arguments) = command.split_first().context("nothing to run")?;
            let lab = Lab::open(&at.dir)?;
            let mut path = std::env::var("PATH").unwrap_or_default();
            path.insert_str(0, &format!("{}:", lab.bin_dir.display()));
            let mut command = lab.host(&host)?.command("env")?;
            command.arg(format!("PATH={path}")).arg(program).args(arguments);
            return Err(command.exec()).context("cannot run nsenter");
        }
        Verb::Cut { at, host, other } => {
            set_link(&Lab::open(&at.dir)?, (&host, other.as_deref()), "down")?
        }
        Verb::Heal { at, host, other } => {
            set_link(&Lab::open(&at.dir)?, (&host, other.as_deref()), "up")?
        }
        Verb::Kill { at, target, signal } => {
            let pids = Lab::open(&at.dir)?.kill(&target, signal_number(&signal)?)?;
            println!("signalled {pids:?}");
        }
        Verb::Power { at, host } => Lab::open(&at.dir)?.host(&host)?.power_off()?,
        Verb::Start { at, host } => Lab::open(&at.dir)?.start(&host)?,
        Verb::Logs { at, host } => {
            let lab = Lab::open(&at.dir)?;
            let file = lab.host(&host)?.dir.join(lab.role(&host).log());
            print!("{}", fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?);
        }
        Verb::Snapshot { at, host, file } => {
            let lines = if host == "host" {
                snapshot::of_machine()?
            } else {
                snapshot::of_host(&Lab::open(&at.dir)?.host(&host)?)?
            };
            let text: Vec<String> = lines.into_iter().collect();
            fs::write(&file, text.join("\n") + "\n")?;
        }
        Verb::Diff { before, after } => {
            let changed = snapshot::diff(&read_lines(&before)?, &read_lines(&after)?);
            for line in &changed {
                println!("{line}");
            }
            return Ok(if changed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Verb::Image { file } => {
            let binary = std::env::current_exe()?.with_file_name("testserver");
            let image = image::testserver(&binary, Path::new("/bin/busybox"))?;
            let archive = image.archive("docker.io/library/testserver:latest")?;
            fs::write(&file, archive).with_context(|| format!("{}", file.display()))?;
        }
        Verb::Hold { name, dir } => hold(&name, &dir)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn set_link(lab: &Lab, (host, other): (&str, Option<&str>), state: &str) -> Result<()> {
    let host = lab.host(host)?;
    match other {
        Some(other) => host.set_link_to(&lab.host(other)?, state),
        None => host.set_link(state),
    }
}

fn status(lab: &Lab) -> Result<()> {
    for name in lab.hosts() {
        println!("{}", tests::lab::describe(&lab.host(name)?));
    }
    println!("\nKUBECONFIG={}\n", lab.kubeconfig().display());
    print!("{}", lab.kubectl(&["get", "nodes", "-o", "wide"])?);
    Ok(())
}

fn read_lines(file: &Path) -> Result<BTreeSet<String>> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn signal_number(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match text.trim_start_matches("SIG") {
        "KILL" => Ok(libc::SIGKILL),
        "TERM" => Ok(libc::SIGTERM),
        "INT" => Ok(libc::SIGINT),
        "STOP" => Ok(libc::SIGSTOP),
        "CONT" => Ok(libc::SIGCONT),
        "HUP" => Ok(libc::SIGHUP),
        "USR1" => Ok(libc::SIGUSR1),
        "QUIT" => Ok(libc::SIGQUIT),
        other => bail!("no signal {other:?}; a number, or KILL, TERM, INT, STOP, CONT, HUP, QUIT"),
    }
}
