//! Owns the renewal of a log that holds Secrets in the open, from before they were encrypted: it is written anew from a snapshot of itself and
//! put in its place at once, and no file of before stays. Once in the life of a cluster; must not be interrupted into a loss.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use store::{Store, snapshot};

use crate::datastore::folder;

/// Writes the log anew. The store is closed, and may be opened again, also after an error.
///
/// # Errors
/// The disk says no; then all is as it was.
pub async fn renew(data_dir: &Path, store: Store) -> anyhow::Result<()> {
    let (own, renewed) = (folder(data_dir), data_dir.join("store.renewed"));
    let file = data_dir.join("store.renewed.snapshot");
    remove(&renewed, &file)?;
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
    remove(&renewed, &file)?;
    made
}

fn remove(renewed: &Path, file: &Path) -> anyhow::Result<()> {
    if renewed.exists() {
        fs::remove_dir_all(renewed).with_context(|| renewed.display().to_string())?;
    }
    if file.exists() {
        fs::remove_file(file).with_context(|| file.display().to_string())?;
    }
    Ok(())
}
