//! Owns the forms in which a client can ask for objects: themselves, as rows of a Table, or their metadata alone.
//! Must not choose which objects.

use std::sync::Arc;

use apimachinery::{object, status::ApiError};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use store::{Entry, Revision};

use crate::{print, resource::Resource, stored};

/// What a row of a Table says of its object besides the cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

/// The form a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Object,
    Table(Include),
    Metadata,
}

/// Renders objects of one resource in one form.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) resource: Arc<Resource>,
    pub(crate) form: Form,
}

impl View {
    /// Whether the stored bytes are what the client gets, but for the revision.
    pub(crate) fn is_raw(&self) -> bool {
        self.form == Form::Object && self.resource.convert.is_none()
    }

    /// One object, as of `revision`: a `GET`'s answer or a watch event's object.
    pub(crate) fn one(&self, entry: &Entry, revision: Revision) -> Result<Bytes, ApiError> {
        if self.is_raw() {
            let mut out = Vec::new();
            stored::write(&mut out, entry, revision);
            return Ok(out.into());
        }
        Ok(self.one_of(stored::decode_at(entry, revision)?).to_string().into())
    }

    /// One object out of its stored form, as a tree.
    pub(crate) fn one_of(&self, mut object: Value) -> Value {
        self.to_served(&mut object);
        match self.form {
            Form::Object => object,
            Form::Metadata => metadata_only(&object),
            Form::Table(include) => {
                let revision = object::resource_version(&object).to_owned();
                let row = self.row(object, include);
                let mut table = self.table_head(&json!({"resourceVersion": revision}));
                table["rows"] = json!([row]);
                table
            }
        }
    }

    /// Appends one item of a list (an object, or a row).
    pub(crate) fn item(&self, out: &mut Vec<u8>, entry: &Entry) -> Result<(), ApiError> {
        if self.is_raw() {
            stored::write(out, entry, entry.mod_revision);
            return Ok(());
        }
        let mut object = stored::decode(entry)?;
        self.to_served(&mut object);
        out.extend_from_slice(self.item_of(object).to_string().as_bytes());
        Ok(())
    }

    /// What stands before and behind the items of a list.
    pub(crate) fn list_frame(&self, metadata: &Value) -> (String, &'static str) {
        let head = match self.form {
            Form::Object => json!({"kind": self.resource.list_kind,
                "apiVersion": self.resource.api_version(), "metadata": metadata}),
            Form::Metadata => json!({"kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1", "metadata": metadata}),
            Form::Table(_) => self.table_head(metadata),
        };
        let items = if matches!(self.form, Form::Table(_)) { "rows" } else { "items" };
        let mut head = head.to_string();
        head.pop();
        (format!("{head},\"{items}\":["), "]}")
    }

    /// A whole list of trees in their stored form.
    pub(crate) fn list_of(&self, objects: Vec<Value>, metadata: &Value) -> Value {
        let (head, tail) = self.list_frame(metadata);
        let mut list: Value =
            serde_json::from_str(&format!("{head}{tail}")).unwrap_or_else(|_| json!({}));
        let items: Vec<Value> = objects
            .into_iter()
            .map(|mut object| {
                self.to_served(&mut object);
                self.item_of(object)
            })
            .collect();
        let key = if matches!(self.form, Form::Table(_)) { "rows" } else { "items" };
        list[key] = items.into();
        list
    }

    fn item_of(&self, object: Value) -> Value {
        match self.form {
            Form::Object => object,
            Form::Metadata => metadata_only(&object),
            Form::Table(include) => self.row(object, include),
        }
    }

    fn to_served(&self, object: &mut Value) {
        if let Some(convert) = self.resource.convert {
            (convert.from_stored)(object);
        }
    }

    fn table_head(&self, metadata: &Value) -> Value {
        json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
               "columnDefinitions": print::columns(&self.resource)})
    }

    fn row(&self, object: Value, include: Include) -> Value {
        let cells = print::cells(&self.resource, &object, Timestamp::now());
        match include {
            Include::None => json!({"cells": cells, "object": null}),
            Include::Metadata => json!({"cells": cells, "object": metadata_only(&object)}),
            Include::Object => json!({"cells": cells, "object": object}),
        }
    }
}

fn metadata_only(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
           "metadata": object["metadata"]})
}
