//! `patch`: JSON, merge and strategic-merge patches, applied to the served version. Must not loop for a patch that names a version.

use apimachinery::{
    gvk::GroupVersionKind,
    negotiate::{Format, PatchType, patch_type},
    object, patch,
    status::ApiError,
};
use http::{Response, StatusCode, header};
use serde_json::Value;

use super::{
    Call,
    update::{self, Part, Retry},
    write,
};
use crate::{body::Body, rules};

/// What is served; server-side apply is not yet.
const SUPPORTED: &[PatchType] = &[PatchType::Json, PatchType::Merge, PatchType::Strategic];

/// A patch as it came.
#[derive(Debug)]
pub(crate) struct Patch {
    kind: PatchType,
    body: Value,
}

impl Patch {
    pub(crate) async fn read(call: &Call, body: Body) -> Result<Self, ApiError> {
        let content_type = call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let kind = patch_type(content_type, SUPPORTED)?;
        let bytes = write::read_body(body).await?;
        Ok(Self { kind, body: rules::parse(&bytes, Format::Json)? })
    }

    /// Whether the patch itself says which version it is for.
    fn names_version(&self) -> bool {
        match &self.body {
            Value::Array(operations) => {
                operations.iter().any(|op| op["path"] == "/metadata/resourceVersion")
            }
            patch => !object::resource_version(patch).is_empty(),
        }
    }

    /// A patch that names a version is for that version only.
    pub(crate) fn retry(&self) -> Retry {
        if self.names_version() { Retry::IfUnversioned } else { Retry::Always }
    }

    /// The patched object.
    pub(crate) fn apply(
        &self,
        gvk: GroupVersionKind<'_>,
        object: &Value,
    ) -> Result<Value, ApiError> {
        let mut patched = object.clone();
        match self.kind {
            PatchType::Json => patch::json::apply(&mut patched, &self.body)?,
            PatchType::Merge => patch::merge::apply(&mut patched, &self.body),
            PatchType::Strategic => rules::strategic(gvk, &mut patched, &self.body)?,
            PatchType::Apply => return Err(ApiError::unsupported_media_type(&[])),
        }
        Ok(patched)
    }
}

pub(crate) async fn run(call: &Call, body: Body, part: Part) -> Result<Response<Body>, ApiError> {
    let patch = Patch::read(call, body).await?;
    let validation = rules::field_validation(&call.query, "PatchOptions")?;
    let r = &call.resource;
    let gvk = GroupVersionKind::new(&r.group, &r.version, &r.kind);
    let mut warnings = Vec::new();
    let stored = update::change(call, part, patch.retry(), |current| {
        let mut served = current.clone();
        if let Some(convert) = r.convert {
            (convert.from_stored)(&mut served);
        }
        let mut patched = patch.apply(gvk, &served)?;
        warnings = rules::check(gvk, &mut patched, validation)?;
        update::check_path(call, &mut patched)?;
        if let Some(convert) = r.convert {
            (convert.to_stored)(&mut patched);
        }
        Ok(patched)
    });
    let stored = stored.await?;
    stored.respond(call, StatusCode::OK, &warnings)
}
