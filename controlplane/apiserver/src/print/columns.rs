//! What a column of a server-side table is, and how the tables write columns down.

use serde_json::{Value, json};

/// One column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its head: `Internal-IP`.
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `boolean`, `date`.
    pub kind: &'static str,
    /// `name` for the column with the object's name.
    pub format: &'static str,
    /// 0 is always shown, 1 by `-o wide`.
    pub priority: u8,
}

pub(super) const NAME: Column = Column { format: "name", ..text("Name") };
pub(super) const AGE: Column = text("Age");
pub(super) const CREATED_AT: Column = Column { kind: "date", ..text("Created At") };

pub(super) const fn text(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 0 }
}

pub(super) const fn integer(name: &'static str) -> Column {
    Column { kind: "integer", ..text(name) }
}

pub(super) const fn boolean(name: &'static str) -> Column {
    Column { kind: "boolean", ..text(name) }
}

/// A text that only `-o wide` shows.
pub(super) const fn wide(name: &'static str) -> Column {
    Column { priority: 1, ..text(name) }
}

const NAME_DESCRIPTION: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
const TIME_DESCRIPTION: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

impl Column {
    /// The column's definition in a `Table`.
    pub fn definition(&self) -> Value {
        let description = match self.name {
            "Name" => NAME_DESCRIPTION,
            "Age" | "Created At" => TIME_DESCRIPTION,
            other => other,
        };
        json!({
            "name": self.name, "type": self.kind, "format": self.format,
            "description": description, "priority": self.priority,
        })
    }
}
