//! Files of ours: small JSON documents, replaced whole, written only when their text changes.
//!
//! Format: `{"version":1,"data":…}`. A newer version is refused by name; an unreadable file is put aside, never deleted.
//! Must not know what is in them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Services, endpoints and nodes as last seen.
pub(crate) const CLUSTER: &str = "cluster.json";
/// Kernel settings that were changed.
pub(crate) const SYSCTLS: &str = "sysctls.json";
/// Addresses that were added to `lo`.
pub(crate) const ADDRESSES: &str = "addresses.json";
/// All files in the state folder, with what is put aside or half written.
pub(crate) const FILES: [&str; 9] = [
    CLUSTER,
    "cluster.bad",
    "cluster.new",
    SYSCTLS,
    "sysctls.bad",
    "sysctls.new",
    ADDRESSES,
    "addresses.bad",
    "addresses.new",
];
/// Version of the envelope and of all documents in it.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct EnvelopeRef<'a, T> {
    version: u32,
    data: &'a T,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Envelope<T> {
    data: T,
}

/// Reads a document; none when the file is missing. An undecodable one is renamed to `<name>.bad`.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if let Ok(Version { version }) = serde_json::from_slice(&text)
        && version > VERSION
    {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("format version {version} is newer than this program's {VERSION}"),
        ));
    }
    match serde_json::from_slice::<Envelope<T>>(&text) {
        Ok(envelope) => Ok(Some(envelope.data)),
        Err(error) => {
            let aside = path.with_extension("bad");
            tracing::warn!(file = %path.display(), %error, aside = %aside.display(), "unreadable; put aside");
            fs::rename(path, aside)?;
            Ok(None)
        }
    }
}

/// Replaces a document: written beside, flushed, renamed. Returns its bytes, so that the caller can skip the next write.
pub(crate) fn store<T: Serialize>(path: &Path, data: &T) -> io::Result<()> {
    let text = encode(data)?;
    write(path, &text)
}

/// A document's text.
pub(crate) fn encode<T: Serialize>(data: &T) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&EnvelopeRef { version: VERSION, data })?)
}

/// Replaces a file by this text, durably.
pub(crate) fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text)?;
    file.sync_data()?;
    fs::rename(&beside, path)
}

/// Removes a file; succeeds when there is none.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_newer_and_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert_eq!(load::<Vec<u8>>(&path).unwrap(), None);
        store(&path, &vec![1u8, 2]).unwrap();
        assert_eq!(load::<Vec<u8>>(&path).unwrap(), Some(vec![1, 2]));
        fs::write(&path, r#"{"version":2,"data":{"new":"shape"}}"#).unwrap();
        assert_eq!(load::<Vec<u8>>(&path).unwrap_err().kind(), io::ErrorKind::Unsupported);
        fs::write(&path, r#"{"version":1,"da"#).unwrap();
        assert_eq!(load::<Vec<u8>>(&path).unwrap(), None);
        assert!(dir.path().join("a.bad").exists(), "what can't be read is kept");
    }
}
