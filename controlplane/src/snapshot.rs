//! Owns the commands `snapshot save`, `verify` and `restore`. What a snapshot is, the store knows; here a running master is asked for one, a
//! stopped one's store is opened, and a restored one is put in its place when it has been opened once.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use store::local::{Local, LocalError, Pieces};
use store::snapshot::{self, SnapshotInfo};
use store::{Disk, KeyRange, Range, RealDisk, Revision, Store};

use crate::cli::{Output, SnapshotRestoreArgs, SnapshotSaveArgs, SnapshotVerifyArgs};
use crate::datastore::{folder, settings};
use crate::figures::size;
use crate::secrets::{self, Loaded, PREFIX};

const FILE_MODE: u32 = 0o600;
/// So much is flushed at once, that no flush of the master's log waits long for it.
const FLUSH_BYTES: u64 = 4 << 20;
/// A restored store begins so far behind its snapshot: more than any cluster writes from one snapshot to the next.
const REVISIONS_AHEAD: Revision = 1_000_000_000;

/// Where a running master answers its own commands.
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("etcd.sock")
}

/// The command `snapshot verify`.
///
/// # Errors
/// The file can't be read, or is damaged.
pub fn verify(args: &SnapshotVerifyArgs) -> anyhow::Result<()> {
    let info = snapshot::verify(&args.file)?;
    tell(args.output, "Whole", &args.file, &info)
}

/// The command `snapshot save`.
///
/// # Errors
/// The master can't be asked nor its store be opened, or the file can't be written.
pub fn save(args: &SnapshotSaveArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let path = socket(&args.data_dir);
    let info = runtime.block_on(async {
        match Local::connect(&path).await {
            Ok(local) => save_online(&local, &args.file).await,
            Err(LocalError::NotRunning { .. }) => save_offline(args).await,
            Err(error) => Err(error.into()),
        }
    })?;
    tell(args.output, "Saved", &args.file, &info)
}

async fn save_online(local: &Local, file: &Path) -> anyhow::Result<SnapshotInfo> {
    let unfinished = PathBuf::from(format!("{}.unfinished", file.display()));
    let saved = async {
        let named = || unfinished.display().to_string();
        receive(local.snapshot().await?, &unfinished).await.with_context(named)?;
        let info = snapshot::verify(&unfinished)?;
        fs::rename(&unfinished, file).with_context(|| file.display().to_string())?;
        flush_folder_of(file)?;
        Ok(info)
    };
    let saved: anyhow::Result<_> = saved.await;
    if saved.is_err() {
        // Of no use to anybody; the first error is the one to tell.
        fs::remove_file(&unfinished).ok();
    }
    saved
}

async fn receive(mut pieces: Pieces, path: &Path) -> anyhow::Result<()> {
    // What had the name is not written to: it may be somebody else's to read, or a link.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(FILE_MODE).open(path)?;
    let terminal = io::stderr().is_terminal();
    let (mut written, mut flushed) = (0, 0);
    while let Some((piece, left)) = pieces.next().await? {
        file.write_all(&piece)?;
        written += piece.len() as u64;
        if written - flushed >= FLUSH_BYTES {
            file.sync_data()?;
            flushed = written;
            if terminal {
                write!(io::stderr(), "\r{} of about {} ", size(written), size(written + left))?;
            }
        }
    }
    file.sync_all()?;
    if terminal {
        write!(io::stderr(), "\r{:40}\r", "")?;
    }
    Ok(())
}

pub(crate) fn flush_folder_of(file: &Path) -> anyhow::Result<()> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flushed = File::open(dir).and_then(|dir| dir.sync_all());
    flushed.with_context(|| dir.display().to_string())
}

async fn save_offline(args: &SnapshotSaveArgs) -> anyhow::Result<SnapshotInfo> {
    let dir = folder(&args.data_dir);
    let taken = take(&dir, "a master that is just starting will answer soon")?;
    if !taken.is_some_and(|(_, occupied)| occupied) {
        let (own, socket) = (args.data_dir.display(), socket(&args.data_dir));
        bail!(
            "{own} holds no state, and no master answers at {}; --data-dir names a master's folder, and a master whose state is in an etcd cluster must run",
            socket.display()
        );
    }
    let loaded = Loaded::read(&args.data_dir, args.cluster_secret_file.as_deref())?;
    let store = Store::open(settings(dir, &loaded)).map_err(|error| loaded.explain(error))?;
    let saved = snapshot::save(store.snapshot(), &args.file).await;
    store.close().await;
    saved?;
    Ok(snapshot::verify(&args.file)?)
}

/// The command `snapshot restore`.
///
/// # Errors
/// The snapshot is damaged, the cluster secret isn't its, or the folder holds a state or can't be written.
pub fn restore(args: &SnapshotRestoreArgs) -> anyhow::Result<()> {
    let (dir, store) = (&args.data_dir, folder(&args.data_dir));
    let snapshot = snapshot::verify(&args.file)?;
    let loaded = restored_secret(args)?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| dir.display().to_string())?;
    // Kept until the end: no master starts meanwhile.
    let taken = take(&store, "stop the master first")?;
    let occupied = taken.as_ref().is_some_and(|(_, occupied)| *occupied);
    if occupied && !args.force {
        bail!("{} holds a cluster's state already; --force moves it aside", store.display());
    }
    let restoring = dir.join("store.restoring");
    if restoring.exists() {
        fs::remove_dir_all(&restoring).with_context(|| restoring.display().to_string())?;
    }
    let info = snapshot::restore(&args.file, &restoring, snapshot.revision + REVISIONS_AHEAD)?;
    if let Err(error) = open_once(&restoring, &loaded) {
        fs::remove_dir_all(&restoring).with_context(|| restoring.display().to_string())?;
        return Err(error);
    }
    keep_secret(args, &loaded)?;
    put_in_place(&restoring, &store, occupied)?;
    tell(args.output, "Restored", &args.file, &info)?;
    if args.output == Output::Text {
        writeln!(io::stdout(), "Start the master now; nodes come back by themselves.")?;
    }
    Ok(())
}

fn restored_secret(args: &SnapshotRestoreArgs) -> anyhow::Result<Loaded> {
    let usual = args.data_dir.join(secrets::FILE_NAME);
    let file = args.cluster_secret_file.as_ref().unwrap_or(&usual);
    Loaded::read(&args.data_dir, Some(file))
        .context("a snapshot is restored with the cluster secret")
}

/// A folder that is there, kept from every other process, and whether it holds a store.
pub(crate) fn take(store: &Path, remedy: &str) -> anyhow::Result<Option<(RealDisk, bool)>> {
    if !store.exists() {
        return Ok(None);
    }
    let disk = RealDisk::open(store).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => {
            anyhow::anyhow!(
                "{} is in use by another process (pid {error}); {remedy}",
                store.display()
            )
        }
        _ => anyhow::Error::new(error).context(store.display().to_string()),
    })?;
    let names = Disk::names(&disk).with_context(|| store.display().to_string())?;
    Ok(Some((disk, !names.is_empty())))
}

/// Opens a restored store with the cluster secret, so that what can't be opened is found before anything is replaced.
fn open_once(dir: &Path, loaded: &Loaded) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let store = Store::open(settings(dir, loaded)).map_err(|error| loaded.explain(error))?;
    let range = Range::all(KeyRange::Prefix(PREFIX.into()));
    let sealed = store.range(&range).map(|found| found.entries);
    let sealed = sealed.context("the cluster's keys can't be read");
    runtime.block_on(store.close());
    let sealed: Vec<_> = sealed?.iter().map(|one| (one.key.clone(), one.value.clone())).collect();
    Ok(loaded.check(&sealed)?)
}

/// The name of what is replaced, or left.
pub(crate) fn aside(path: &Path, what: &str) -> PathBuf {
    let now = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    PathBuf::from(format!("{}.{what}-{now}", path.display()))
}

pub(crate) fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    let renamed = fs::rename(from, to);
    renamed.with_context(|| format!("{} to {}", from.display(), to.display()))
}

/// The restored store's cluster secret becomes the master's.
fn keep_secret(args: &SnapshotRestoreArgs, loaded: &Loaded) -> anyhow::Result<()> {
    let secret = args.data_dir.join(secrets::FILE_NAME);
    if secrets::read_secret(&secret).ok().flatten().as_ref() == Some(loaded.ring().secret()) {
        return Ok(());
    }
    if secret.exists() {
        rename(&secret, &aside(&secret, "replaced"))?;
    }
    Ok(secrets::write_secret(&secret, loaded.ring().secret())?)
}

/// Gives a whole log its name. What had the name is kept, if it is `occupied`.
pub(crate) fn put_in_place(whole: &Path, store: &Path, occupied: bool) -> anyhow::Result<()> {
    if occupied {
        // In one step: at no time there is no store, of which a starting master would make an empty cluster.
        let kept = aside(store, "replaced");
        renameat_with(CWD, whole, CWD, store, RenameFlags::EXCHANGE)
            .with_context(|| format!("exchanging {} and {}", whole.display(), store.display()))?;
        flush_folder_of(store)?;
        rename(whole, &kept)?;
        writeln!(io::stderr(), "The state that was there is kept in {}.", kept.display())?;
    } else {
        if store.exists() {
            fs::remove_dir_all(store).with_context(|| store.display().to_string())?;
        }
        rename(whole, store)?;
    }
    flush_folder_of(store)
}

fn tell(output: Output, what: &str, file: &Path, info: &SnapshotInfo) -> anyhow::Result<()> {
    let SnapshotInfo { revision, keys, bytes, file_bytes, sha256 } = info;
    let text = match output {
        Output::Text => format!(
            "{what}: {}\nRevision: {revision}\nKeys: {keys} ({})\nFile: {}, sha256 {sha256}\n",
            file.display(),
            size(*bytes),
            size(*file_bytes),
        ),
        Output::Json => {
            let told = serde_json::json!({
                "file": file, "revision": revision, "keys": keys, "bytes": bytes,
                "fileBytes": file_bytes, "sha256": sha256,
            });
            format!("{told}\n")
        }
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}
