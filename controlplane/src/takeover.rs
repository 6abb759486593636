//! Owns the renewal of a log that holds Secrets in the open, from before they were encrypted: it is written anew from a snapshot of itself and
//! put in its place at once, and no file of before stays. Once in the life of a cluster; must not be interrupted into a loss.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use store::{Store, snapshot};

use crate::datastore::folder;

const RENEWED: &str = "store.renewed";
const SNAPSHOT: &str = "store.renewed.snapshot";
const UNFINISHED: &str = "store.renewed.snapshot.unfinished";

/// Writes the log anew. The store is closed, and may be opened again, also after an error.
///
/// # Errors
/// The disk says no; then all is as it was.
pub async fn renew(data_dir: &Path, store: Store) -> anyhow::Result<()> {
    let (own, renewed) = (folder(data_dir), data_dir.join(RENEWED));
    let file = data_dir.join(SNAPSHOT);
    remove(data_dir)?;
    let (revision, keys) = (store.revision(), store.metrics().keys);
    let saved = snapshot::save(store.snapshot(), &file).await;
    store.close().await;
    let made = saved.map_err(anyhow::Error::from).and_then(|()| {
        let info = snapshot::restore(&file, &renewed, revision)?;
        // Keys that live in memory only are not there yet.
        if info.revision != revision || info.keys != keys {
            bail!("the renewed log has {} keys, not {keys}", info.keys);
        }
        // In one step: at no time there is no store.
        renameat_with(CWD, &own, CWD, &renewed, RenameFlags::EXCHANGE)
            .with_context(|| format!("exchanging {} and {}", own.display(), renewed.display()))?;
        File::open(data_dir)?.sync_all().with_context(|| data_dir.display().to_string())
    });
    remove(data_dir)?;
    made
}

/// Removes what an interrupted renewal left: the log of before, or one that is not whole. The caller has the folder for itself.
///
/// # Errors
/// The disk says no.
pub fn remove(data_dir: &Path) -> anyhow::Result<()> {
    let removed = |path: &Path, removed: io::Result<()>| match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    };
    let renewed = data_dir.join(RENEWED);
    removed(&renewed, fs::remove_dir_all(&renewed))?;
    for name in [SNAPSHOT, UNFINISHED] {
        let file = data_dir.join(name);
        removed(&file, fs::remove_file(&file))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stays_of_an_interrupted_renewal() {
        let dir = tempfile::tempdir().unwrap();
        remove(dir.path()).unwrap();
        fs::create_dir_all(dir.path().join(RENEWED)).unwrap();
        for name in ["store.renewed/log", SNAPSHOT, UNFINISHED, "store"] {
            fs::write(dir.path().join(name), "plain").unwrap();
        }
        remove(dir.path()).unwrap();
        let left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["store"]);
    }
}
