//! `hostPath`: a path of the node, checked or made as its type asks.

use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

const FOLDER_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

pub(crate) fn ensure(source: &HostPathVolumeSource) -> Result<PathBuf, String> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => make_folder(&path)?,
        "FileOrCreate" if !path.exists() => make_file(&path)?,
        _ => {}
    }
    let found = std::fs::metadata(&path).map(|meta| meta.file_type());
    let fails =
        |what: &str| Err(format!("hostPath type check failed: {} is not {what}", path.display()));
    let is = |test: fn(&std::fs::FileType) -> bool| found.as_ref().is_ok_and(test);
    match kind {
        "" => {
            // Docker's habit, which kubelet keeps: a missing path becomes a folder.
            if !path.exists() {
                make_folder(&path)?;
            }
            Ok(path)
        }
        "DirectoryOrCreate" | "Directory" if !is(std::fs::FileType::is_dir) => fails("a directory"),
        "FileOrCreate" | "File" if !is(std::fs::FileType::is_file) => fails("a file"),
        "Socket" if !is(FileTypeExt::is_socket) => fails("a socket file"),
        "CharDevice" if !is(FileTypeExt::is_char_device) => fails("a character device"),
        "BlockDevice" if !is(FileTypeExt::is_block_device) => fails("a block device"),
        _ => Ok(path),
    }
}

fn make_folder(path: &Path) -> Result<(), String> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(path)
        .map_err(|error| format!("mkdir {}: {error}", path.display()))
}

fn make_file(path: &Path) -> Result<(), String> {
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path)
        .map(drop)
        .map_err(|error| format!("open {}: {error}", path.display()))
}
