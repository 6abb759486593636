//! Kubernetes' protobuf bodies (`application/vnd.kubernetes.protobuf`), which clients of client-go send for built-in kinds, as JSON.
//! Only reads: answers are JSON, which such clients accept too. Must not validate: what comes out is decoded like any body.
//!
//! `messages.txt` holds the wire contract (`generated.proto` of Kubernetes 1.35), one message per line, in this grammar:
//! ```text
//! core.v1.Volume name:1s! ~:2VolumeSource
//!                └─┬┘ │││ └ inlined: the message's fields are the parent's in JSON
//!                  │  ││└ `!`: a zero says something and stays; without it Go's JSON leaves a zero out, and so does this
//!                  │  │└ type: s string, y bytes, b bool, i integer, d double, or a message (same package, or with its own)
//!                  │  └ field number; then `[` for a list or `{` for a map from strings
//!                  └ name in JSON
//! ```

use std::{collections::HashMap, sync::OnceLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::object;

/// What every body begins with.
pub const MAGIC: &[u8] = b"k8s\0";
/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// Deeper messages are refused.
const DEPTH_MAX: usize = 64;

static TABLE: &str = include_str!("protobuf/messages.txt");

/// Not a body of this form.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProtobufError {
    /// The first bytes are others.
    #[error("provided data does not appear to be a protobuf message, expected prefix \"k8s\\x00\"")]
    Magic,
    /// The bytes end in the middle, or a number is too long.
    #[error("malformed protobuf at byte {at}")]
    Malformed {
        /// Where, within the innermost message.
        at: usize,
    },
    /// A field has another type than it should.
    #[error("protobuf field {number} of {message} has an unexpected type")]
    Unexpected {
        /// The message.
        message: String,
        /// The field.
        number: u64,
    },
    /// No such kind.
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\" in protobuf")]
    UnknownKind {
        /// What the body says.
        api_version: String,
        /// What the body says.
        kind: String,
    },
    /// Messages within messages without an end.
    #[error("protobuf messages are nested too deeply")]
    TooDeep,
}

/// Reads a body as the JSON object that it stands for, `apiVersion` and `kind` included.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let mut reader = Reader::new(body.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?);
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => {
                let mut meta = Reader::new(bytes);
                while let Some((number, wire)) = meta.field()? {
                    match (number, wire) {
                        (1, Wire::Bytes(text)) => api_version = utf8(text),
                        (2, Wire::Bytes(text)) => kind = utf8(text),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let name = root(&api_version, &kind);
    if !messages().contains_key(name.as_str()) {
        return Err(ProtobufError::UnknownKind { api_version, kind });
    }
    let mut object = Map::new();
    message(&name, raw, &mut object, 0)?;
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

fn root(api_version: &str, kind: &str) -> String {
    if kind == "DeleteOptions" {
        return "meta.v1.DeleteOptions".to_owned();
    }
    let (group, version) = crate::gvk::split_api_version(api_version);
    let package = match group.split('.').next().unwrap_or_default() {
        "" => "core",
        package => package,
    };
    format!("{package}.{version}.{kind}")
}

fn messages() -> &'static HashMap<&'static str, &'static str> {
    static MESSAGES: OnceLock<HashMap<&'static str, &'static str>> = OnceLock::new();
    MESSAGES.get_or_init(|| TABLE.lines().map(|l| l.split_once(' ').unwrap_or((l, ""))).collect())
}

/// A field of `messages.txt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field<'a> {
    name: &'a str,
    number: u64,
    list: bool,
    map: bool,
    keeps_zero: bool,
    kind: &'a str,
}

impl<'a> Field<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (name, rest) = text.split_once(':')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, rest) = rest.split_at(digits);
        let (list, map) = (rest.starts_with('['), rest.starts_with('{'));
        let kind = rest.trim_start_matches(['[', '{']);
        let keeps_zero = kind.ends_with('!');
        let kind = kind.trim_end_matches('!');
        Some(Self { name, number: number.parse().ok()?, list, map, keeps_zero, kind })
    }

    fn find(message: &str, number: u64) -> Option<Field<'static>> {
        let fields = messages().get(message).copied()?;
        fields.split(' ').filter_map(Field::parse).find(|f| f.number == number)
    }
}

/// The full name of a message that `within` refers to.
fn full(kind: &str, within: &str) -> String {
    if kind.contains('.') {
        return kind.to_owned();
    }
    let package = within.rsplit_once('.').map_or("", |(package, _)| package);
    format!("{package}.{kind}")
}

fn message(
    name: &str,
    bytes: &[u8],
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError::TooDeep);
    }
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.field()? {
        // A field of a newer version is dropped, as Go's decoder does.
        let Some(field) = Field::find(name, number) else { continue };
        let unexpected = || ProtobufError::Unexpected { message: name.to_owned(), number };
        if field.map {
            let Wire::Bytes(entry) = wire else { return Err(unexpected()) };
            let (key, value) = map_entry(&field, name, entry, depth)?;
            object::map_mut(out.entry(field.name).or_insert_with(|| json!({}))).insert(key, value);
            continue;
        }
        if field.name == "~" {
            let Wire::Bytes(inner) = wire else { return Err(unexpected()) };
            message(&full(field.kind, name), inner, out, depth + 1)?;
            continue;
        }
        let value = value(&field, name, wire, depth)?;
        if field.list {
            let list = out.entry(field.name).or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut() {
                list.push(value);
            }
        } else if !is_unset(&value) || field.keeps_zero {
            out.insert(field.name.to_owned(), value);
        }
    }
    Ok(())
}

/// What Go's JSON leaves out: the zero of a scalar. Empty objects stay, as in `emptyDir: {}`.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        _ => false,
    }
}

fn map_entry(
    field: &Field<'_>,
    within: &str,
    bytes: &[u8],
    depth: usize,
) -> Result<(String, Value), ProtobufError> {
    let mut key = String::new();
    let mut found = None;
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Bytes(text)) => key = utf8(text),
            (2, wire) => found = Some(value(field, within, wire, depth)?),
            _ => {}
        }
    }
    let value = match (found, field.kind) {
        (Some(value), _) => value,
        (None, "s" | "y") => "".into(),
        (None, _) => value(field, within, Wire::Bytes(&[]), depth)?,
    };
    Ok((key, value))
}

fn value(
    field: &Field<'_>,
    within: &str,
    wire: Wire<'_>,
    depth: usize,
) -> Result<Value, ProtobufError> {
    Ok(match (field.kind, wire) {
        ("s", Wire::Bytes(bytes)) => utf8(bytes).into(),
        ("y", Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        ("b", Wire::Varint(n)) => (n != 0).into(),
        ("i", Wire::Varint(n)) => n.cast_signed().into(),
        ("d", Wire::Fixed64(n)) => f64::from_bits(n).into(),
        (kind, Wire::Bytes(bytes)) if kind.len() > 1 => {
            let kind = full(kind, within);
            match special(&kind, bytes)? {
                Some(value) => value,
                None => {
                    let mut inner = Map::new();
                    message(&kind, bytes, &mut inner, depth + 1)?;
                    // A named list type, such as the values of `extra`, is a list in JSON.
                    match (kind.ends_with(".ExtraValue"), inner.remove("items")) {
                        (true, items) => items.unwrap_or_else(|| json!([])),
                        (false, Some(items)) => {
                            inner.insert("items".to_owned(), items);
                            Value::Object(inner)
                        }
                        (false, None) => Value::Object(inner),
                    }
                }
            }
        }
        _ => {
            let (message, number) = (within.to_owned(), field.number);
            return Err(ProtobufError::Unexpected { message, number });
        }
    })
}

/// Types whose JSON is not an object of their fields.
fn special(kind: &str, bytes: &[u8]) -> Result<Option<Value>, ProtobufError> {
    let mut reader = Reader::new(bytes);
    let (mut numbers, mut texts) = ([0i64; 4], [&[][..]; 4]);
    let is_special = matches!(
        kind,
        "resource.Quantity"
            | "intstr.IntOrString"
            | "runtime.RawExtension"
            | "meta.v1.Time"
            | "meta.v1.MicroTime"
            | "meta.v1.Duration"
            | "meta.v1.FieldsV1"
    );
    if !is_special {
        return Ok(None);
    }
    while let Some((number, wire)) = reader.field()? {
        let Ok(number) = usize::try_from(number) else { continue };
        match wire {
            Wire::Varint(n) => {
                numbers.get_mut(number).into_iter().for_each(|s| *s = n.cast_signed())
            }
            Wire::Bytes(text) => texts.get_mut(number).into_iter().for_each(|s| *s = text),
            Wire::Fixed64(_) | Wire::Fixed32 => {}
        }
    }
    let [_, first, second, _] = numbers;
    Ok(Some(match kind {
        "resource.Quantity" => utf8(texts[1]).into(),
        "intstr.IntOrString" if first == 1 => utf8(texts[3]).into(),
        "intstr.IntOrString" => second.into(),
        "meta.v1.Duration" => first.into(),
        "meta.v1.Time" | "meta.v1.MicroTime" if first == 0 && second == 0 => Value::Null,
        "meta.v1.Time" | "meta.v1.MicroTime" => {
            let nanoseconds = i32::try_from(second).unwrap_or_default();
            match jiff::Timestamp::new(first, nanoseconds) {
                Ok(at) if kind == "meta.v1.Time" => object::time(at).into(),
                Ok(at) => object::micro_time(at).into(),
                Err(_) => Value::Null,
            }
        }
        _ => serde_json::from_slice(texts[1]).unwrap_or(Value::Null),
    }))
}

fn utf8(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a field carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn malformed(&self) -> ProtobufError {
        ProtobufError::Malformed { at: self.at }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ProtobufError> {
        let end = self.at.checked_add(count).ok_or_else(|| self.malformed())?;
        let taken = self.bytes.get(self.at..end).ok_or_else(|| self.malformed())?;
        self.at = end;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first().ok_or_else(|| self.malformed())?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.malformed())
    }

    /// The next field; `None` at the end.
    fn field(&mut self) -> Result<Option<(u64, Wire<'a>)>, ProtobufError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?.try_into().map_err(|_| self.malformed())?;
                Wire::Fixed64(u64::from_le_bytes(bytes))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| self.malformed())?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err(self.malformed()),
        };
        Ok(Some((key >> 3, wire)))
    }
}

#[cfg(test)]
mod tests;
