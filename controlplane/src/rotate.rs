//! Owns the command `encryption rotate`: a client of the running master's socket. It makes the key; the master has values follow it.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use store::local::Local;

use crate::cli::EncryptionRotateArgs;
use crate::secrets::{ENCRYPTION_PREFIX, Loaded, SEALED_PREFIX, next_encryption_key};
use crate::snapshot::socket;

/// How often is looked how far values are.
const POLL: Duration = Duration::from_millis(200);
/// Somebody else may be making a key at the same time.
const ATTEMPTS: usize = 5;

/// The command `encryption rotate`.
///
/// # Errors
/// The master does not run, or refuses.
pub fn rotate(args: &EncryptionRotateArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(rotated(args))
}

async fn rotated(args: &EncryptionRotateArgs) -> anyhow::Result<()> {
    let path = socket(&args.data_dir);
    let local = Local::connect(&path).await.context("the master does not run here")?;
    let name = make_key(&local, args).await?;
    let key = format!("{ENCRYPTION_PREFIX}{name}");
    let made = local.keys(&key).await?;
    let Some((_, revision)) = made.into_iter().find(|(own, _)| *own == key.as_bytes()) else {
        bail!("the encryption key {name} was removed as soon as it was made");
    };
    let mut out = std::io::stdout();
    writeln!(out, "Made the encryption key {name}; every Secret is written again with it.")?;
    let (mut shown, terminal) = (usize::MAX, std::io::stderr().is_terminal());
    loop {
        let left = local.written_up_to(SEALED_PREFIX, revision - 1).await?;
        if terminal && left != shown {
            write!(std::io::stderr(), "\r{left:>8} to go")?;
            shown = left;
        }
        if left == 0 {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    if terminal {
        writeln!(std::io::stderr())?;
    }
    writeln!(out, "Every Secret is encrypted with the key {name}.")?;
    Ok(())
}

async fn make_key(local: &Local, args: &EncryptionRotateArgs) -> anyhow::Result<String> {
    let usual = args.data_dir.join(crate::secrets::FILE_NAME);
    // Never one that is made now.
    let file: PathBuf = args.cluster_secret_file.clone().unwrap_or(usual);
    let loaded = Loaded::read(&args.data_dir, Some(&file))?;
    for _ in 0..ATTEMPTS {
        let keys = local.keys(ENCRYPTION_PREFIX).await?;
        let keys: Vec<&[u8]> = keys.iter().map(|(key, _)| &**key).collect();
        let key = next_encryption_key(&keys);
        loaded.check(&local.values(ENCRYPTION_PREFIX).await?)?;
        let value = loaded.ring().make_key(key.as_bytes())?;
        if local.create(&key, value).await? {
            return Ok(key.trim_start_matches(ENCRYPTION_PREFIX).to_owned());
        }
    }
    bail!("others are making encryption keys at the same time")
}
