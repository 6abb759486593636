//! Bugs put in on purpose: does the proof find them? The store is copied beside the target folder, each bug is patched into the
//! copy behind a switch, and the histories judge the copy. The product itself never holds a bug nor a switch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// One bug: what it breaks, and the patches that put it in. `SWITCH` in a patch says whether this bug is on.
struct Mutation {
    name: &'static str,
    breaks: &'static str,
    patches: &'static [Patch],
}

/// A text of a source file, which is there once, and what it becomes.
struct Patch {
    file: &'static str,
    find: &'static str,
    replace: &'static str,
}

const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "answer-before-flush",
        breaks: "a batch is answered and published though its flush never happened",
        patches: &[Patch {
            file: "log/segment.rs",
            find: "self.file.write_at(self.offset, bytes).and_then(|()| self.file.sync())",
            replace: "self.file.write_at(self.offset, bytes).and_then(|()| if SWITCH { Ok(()) } else { self.file.sync() })",
        }],
    },
    Mutation {
        name: "later-batch-first",
        breaks: "a batch that has landed is published and answered before an earlier one that has not",
        patches: &[Patch {
            file: "backend/pipeline.rs",
            find: "while state.flights.front().is_some_and(|flight| flight.landed.is_some()) {
            let Some(Flight { batch, landed, .. }) = state.flights.pop_front() else { break };",
            replace: "while let Some(at) = state.flights.iter().position(|flight| flight.landed.is_some()).filter(|at| *at == 0 || SWITCH) {
            let Some(Flight { batch, landed, .. }) = state.flights.remove(at) else { break };",
        }],
    },
    Mutation {
        name: "failed-flush-believed",
        breaks: "what a failed flush left for readers to see is built upon without being written again",
        patches: &[Patch {
            file: "log/recover.rs",
            find: "recovery.write_unconfirmed(open)?;",
            replace: "if !SWITCH { recovery.write_unconfirmed(open)?; }",
        }],
    },
    Mutation {
        name: "event-skipped-at-registration",
        breaks: "a watch misses what is committed just behind its beginning",
        patches: &[Patch {
            file: "watch.rs",
            find: "let seen = now.revision.max(from - 1);",
            replace: "let seen = now.revision.max(from - 1) + Revision::from(SWITCH);",
        }],
    },
    Mutation {
        name: "revision-in-parts",
        breaks: "a reader can get the events of one revision in two parts",
        patches: &[Patch {
            file: "watch.rs",
            find: "wanted.chunk_by(|(one, _), (next, _)| one == next)",
            replace: "wanted.chunk_by(|(one, _), (next, _)| one == next && !SWITCH)",
        }],
    },
    Mutation {
        name: "progress-ahead",
        breaks: "a watch says that it is at a revision whose events still wait in its queue",
        patches: &[Patch {
            file: "watch.rs",
            find: "waiting.map_or(dispatched.max(self.before), |first| first - 1)",
            replace: "waiting.map_or(dispatched.max(self.before), |first| first - Revision::from(!SWITCH))",
        }],
    },
    Mutation {
        name: "torn-tail-kept",
        breaks: "what a lost batch left behind the last good record is not zeroed",
        patches: &[Patch {
            file: "log/recover.rs",
            find: "filter(|end| end.lost_until > end.offset)",
            replace: "filter(|end| end.lost_until > end.offset && !SWITCH)",
        }],
    },
    Mutation {
        name: "durable-mark-too-high",
        breaks: "a record says that those of its own batch were durable before it",
        patches: &[Patch {
            file: "log/appender.rs",
            find: "(self.next_sequence, self.durable.load(Ordering::Acquire));",
            replace: "(self.next_sequence, if SWITCH { self.next_sequence - 1 } else { self.durable.load(Ordering::Acquire) });",
        }],
    },
    Mutation {
        name: "needed-segment-removed",
        breaks: "segments go that the oldest checkpoint is not enough without",
        patches: &[Patch {
            file: "log.rs",
            find: "second.first_sequence <= base + 1",
            replace: "second.first_sequence <= base + 1 + 4 * u64::from(SWITCH)",
        }],
    },
    Mutation {
        name: "lease-attach-lost",
        breaks: "a key of a checkpoint is not attached to its lease again",
        patches: &[Patch {
            file: "backend/recovery.rs",
            find: "if entry.lease != 0 {",
            replace: "if entry.lease != 0 && !SWITCH {",
        }],
    },
    Mutation {
        name: "compaction-not-logged",
        breaks: "an acknowledged compaction is forgotten by a restart",
        patches: &[Patch {
            file: "backend/recovery.rs",
            find: "Op::Compacted { revision } => self.history.compact(revision),",
            replace: "Op::Compacted { revision } => if !SWITCH { self.history.compact(revision) },",
        }],
    },
    Mutation {
        name: "names-not-flushed",
        breaks: "a new segment is written to before its name is durable",
        patches: &[Patch {
            file: "log/segment.rs",
            find: "sync_names(disk).map_err(",
            replace: "(if SWITCH { Ok(()) } else { sync_names(disk) }).map_err(",
        }],
    },
];

/// What was found.
#[derive(Debug)]
pub struct Finding {
    /// The bug.
    pub name: &'static str,
    /// What it breaks.
    pub breaks: &'static str,
    /// After how many histories, with which seed, and what the judge said; `None`: not found.
    pub found: Option<Found>,
}

/// How a bug was found.
#[derive(Debug)]
pub struct Found {
    /// Histories that went well before.
    pub after: u64,
    /// The seed of the one that did not.
    pub seed: u64,
    /// What the judge said.
    pub what: String,
}

/// What is built: the patched store, and the judge that runs on it.
#[derive(Debug)]
pub struct Bench {
    binary: PathBuf,
}

const JUDGE: &str = r#"
#[path = "SOURCE"]
pub mod in_process;
use in_process::{history, seeds};
fn main() {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse().unwrap());
    let (seed, count) = (numbers.next().unwrap(), numbers.next().unwrap());
    let plan = seeds::Plan { seed, count, time_max: None, jobs: 2, repeat: 1 };
    let ran = seeds::run(plan, |runtime, seed| runtime.block_on(history::run(seed)), |_| false);
    match ran {
        Ok(seeds::Ran { runs, failure: None, .. }) => println!("clean {runs}"),
        Ok(seeds::Ran { runs, failure: Some(failed), .. }) => println!("found {runs} {} {}", failed.seed, failed.what),
        Err(error) => println!("found 0 {seed} {error}"),
    }
}
"#;

const SWITCH: &str = r#"
pub(crate) fn mutated(name: &str) -> bool {
    static ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var("SOAK_MUTATION").ok()).as_deref() == Some(name)
}
"#;

impl Bench {
    /// Copies, patches and builds.
    ///
    /// # Errors
    /// A patch does not fit the store any more, or the build fails.
    pub fn build(target: &Path) -> Result<Bench> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
        let dir = target.join("mutations");
        copy_tree(&root.join("controlplane/store/src"), &dir.join("store/src"))?;
        for mutation in MUTATIONS {
            for patch in mutation.patches {
                apply(&dir.join("store/src"), mutation.name, patch)?;
            }
        }
        let library = dir.join("store/src/lib.rs");
        write(&library, &(fs::read_to_string(&library)? + SWITCH))?;
        write_workspace(root, &dir)?;
        let source = root.join("tests/src/soak/in_process/mod.rs");
        write(
            &dir.join("judge/src/main.rs"),
            &JUDGE.replace("SOURCE", &source.display().to_string()),
        )?;
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--manifest-path"])
            .arg(dir.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(dir.join("target"))
            .env("RUSTFLAGS", "--cap-lints allow")
            .stdin(Stdio::null())
            .status()
            .context("cargo")?;
        ensure!(built.success(), "the patched store does not build: see {}", dir.display());
        Ok(Bench { binary: dir.join("target/debug/judge") })
    }

    /// Runs histories with a bug, or with none.
    ///
    /// # Errors
    /// The judge could not be run.
    pub fn judge(&self, bug: Option<&str>, seed: u64, histories: u64) -> Result<Option<Found>> {
        let mut command = Command::new(&self.binary);
        command.args([seed.to_string(), histories.to_string()]).stdin(Stdio::null());
        command.env("SOAK_MUTATION", bug.unwrap_or_default());
        let output = command.output().with_context(|| self.binary.display().to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut words = text.splitn(4, ' ');
        match words.next() {
            Some("clean") => Ok(None),
            Some("found") => {
                let mut number = || words.next().and_then(|word| word.parse().ok());
                let (after, seed) = number().zip(number()).context("the judge said nothing")?;
                let what = words.next().unwrap_or_default().to_owned();
                Ok(Some(Found { after, seed, what }))
            }
            _ => bail!("the judge: {text}{}", String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// Looks for every bug, in at most so many histories each.
    ///
    /// # Errors
    /// The judge could not be run, or finds something where there is no bug.
    pub fn findings(&self, seed: u64, histories: u64) -> Result<Vec<Finding>> {
        if let Some(found) = self.judge(None, seed, histories.min(500))? {
            bail!("without a bug, seed {}: {}", found.seed, found.what);
        }
        let find = |mutation: &Mutation| {
            let found = self.judge(Some(mutation.name), seed, histories)?;
            Ok(Finding { name: mutation.name, breaks: mutation.breaks, found })
        };
        MUTATIONS.iter().map(find).collect()
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // Untouched files are not built again.
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| path.display().to_string())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let (path, name) = {
            let entry = entry?;
            (entry.path(), entry.file_name())
        };
        if path.is_dir() {
            copy_tree(&path, &to.join(name))?;
        } else {
            write(&to.join(name), &fs::read_to_string(&path)?)?;
        }
    }
    Ok(())
}

fn apply(source: &Path, name: &str, patch: &Patch) -> Result<()> {
    let path = source.join(patch.file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let places = text.matches(patch.find).count();
    ensure!(
        places == 1,
        "mutation {name}: {} holds its text {places} times, not once; tests/src/soak/mutations.rs has to follow",
        patch.file
    );
    let replace = patch.replace.replace("SWITCH", &format!("crate::mutated({name:?})"));
    fs::write(&path, text.replacen(patch.find, &replace, 1))?;
    Ok(())
}

/// A workspace of the patched store and its judge, with the dependencies of the real one.
fn write_workspace(root: &Path, dir: &Path) -> Result<()> {
    let workspace = fs::read_to_string(root.join("Cargo.toml"))?;
    let dependencies =
        workspace.split("[workspace.dependencies]").nth(1).context("no dependencies")?;
    let dependencies = dependencies.split("\n[").next().unwrap_or_default();
    let lines = dependencies.lines().filter(|line| !line.contains("path = "));
    let package = workspace.split("[workspace.package]").nth(1).context("no package")?;
    let package = package.split("\n[").next().unwrap_or_default();
    let text = format!(
        "[workspace]\nresolver = \"3\"\nmembers = [\"store\", \"judge\"]\n[workspace.package]{package}\n\
         [workspace.dependencies]\n{}\n[profile.dev]\ndebug = false\n[profile.dev.package.store]\nopt-level = 1\n",
        lines.collect::<Vec<_>>().join("\n")
    );
    write(&dir.join("Cargo.toml"), &text)?;
    let store = fs::read_to_string(root.join("controlplane/store/Cargo.toml"))?;
    let store = store.replace("[lints]\nworkspace = true\n", "");
    let store = store.split("[dev-dependencies]").next().unwrap_or_default();
    write(&dir.join("store/Cargo.toml"), store)?;
    write(
        &dir.join("judge/Cargo.toml"),
        "[package]\nname = \"judge\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[dependencies]\n\
         store = { path = \"../store\" }\nbytes.workspace = true\ntokio.workspace = true\n",
    )?;
    let lock = dir.join("Cargo.lock");
    fs::copy(root.join("Cargo.lock"), &lock).map(drop).context("Cargo.lock")
}
