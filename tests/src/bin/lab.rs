//! `lab`: the command behind `scripts/lab`. It parses words and calls `tests::lab`; nothing else.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use tests::lab::{Lab, MASTER, REGISTRY, UpOptions, hold, image, snapshot};

/// One master and N nodes on this machine, each a host of its own.
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
        /// A node, `master` or `registry`.
        host: String,
        /// The command.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Cut a host's link.
    Cut {
        #[command(flatten)]
        at: At,
        /// The host.
        host: String,
    },
    /// Heal a host's link.
    Heal {
        #[command(flatten)]
        at: At,
        /// The host.
        host: String,
    },
    /// Signal one process: NODE (its agent), NODE/monitor or master.
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
        Verb::Up { at, nodes, registries, bin_dir, master_args } => {
            let bin_dir = match bin_dir {
                Some(dir) => dir,
                None => std::env::current_exe()?.parent().context("no folder")?.to_path_buf(),
            };
            let lab = Lab::up(&UpOptions { nodes, dir: at.dir, bin_dir, registries, master_args })?;
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
        Verb::Cut { at, host } => Lab::open(&at.dir)?.host(&host)?.set_link("down")?,
        Verb::Heal { at, host } => Lab::open(&at.dir)?.host(&host)?.set_link("up")?,
        Verb::Kill { at, target, signal } => {
            let pids = Lab::open(&at.dir)?.kill(&target, signal_number(&signal)?)?;
            println!("signalled {pids:?}");
        }
        Verb::Power { at, host } => Lab::open(&at.dir)?.host(&host)?.power_off()?,
        Verb::Start { at, host } => Lab::open(&at.dir)?.start(&host)?,
        Verb::Logs { at, host } => {
            let log = match host.as_str() {
                MASTER => "controlplane.log",
                REGISTRY => "registry.log",
                _ => "agent.log",
            };
            let file = Lab::open(&at.dir)?.host(&host)?.dir.join(log);
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

fn status(lab: &Lab) -> Result<()> {
    let names = [MASTER, REGISTRY].into_iter().chain(lab.nodes.iter().map(String::as_str));
    for name in names {
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
