//! Owns how an object is stored: JSON without `metadata.resourceVersion`, which readers splice in. Must not filter or print.

use std::io::Write as _;

use apimachinery::{object, status::ApiError};
use bytes::Bytes;
use serde_json::Value;
use store::{Entry, Revision};

/// Longest text of a revision with its key and comma.
const SPLICE_BYTES_MAX: usize = 48;

/// Appends the object as clients see it, at `revision`.
pub(crate) fn write(out: &mut Vec<u8>, entry: &Entry, revision: Revision) {
    let at = (entry.extracted.splice_at as usize).min(entry.value.len());
    if at == 0 {
        out.extend_from_slice(&entry.value);
        return;
    }
    out.reserve(entry.value.len() + SPLICE_BYTES_MAX);
    out.extend_from_slice(&entry.value[..at]);
    // Writing to a Vec cannot fail.
    let _infallible = write!(out, "\"resourceVersion\":\"{revision}\",");
    out.extend_from_slice(&entry.value[at..]);
}

/// The object as a tree, `resourceVersion` included.
pub(crate) fn decode(entry: &Entry) -> Result<Value, ApiError> {
    decode_at(entry, entry.mod_revision)
}

/// The object as a tree, as of `revision`.
pub(crate) fn decode_at(entry: &Entry, revision: Revision) -> Result<Value, ApiError> {
    let mut value: Value = serde_json::from_slice(&entry.value).map_err(|e| {
        let key = String::from_utf8_lossy(&entry.key).into_owned();
        ApiError::internal(format!("stored object {key} is not JSON: {e}"))
    })?;
    object::metadata_mut(&mut value)
        .insert("resourceVersion".to_owned(), revision.to_string().into());
    Ok(value)
}

/// The bytes to store: no `resourceVersion`, no `selfLink`, nothing null in metadata.
pub(crate) fn encode(object: &Value) -> Bytes {
    let mut object = object.clone();
    let metadata = object::metadata_mut(&mut object);
    metadata.remove("resourceVersion");
    metadata.remove("selfLink");
    metadata.retain(|_, v| !v.is_null());
    object.to_string().into()
}

/// Sets the revision that a client sees.
pub(crate) fn set_revision(object: &mut Value, revision: Revision) {
    object::metadata_mut(object).insert("resourceVersion".to_owned(), revision.to_string().into());
}
