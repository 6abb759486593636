//! Field paths and field errors with upstream's types and texts (`k8s.io/apimachinery/pkg/util/validation/field`).
//! Must not decide what is valid: that is `validate`.

use std::fmt;

use serde_json::Value;

use crate::status::Cause;

/// A path into an object, built by borrowing its parent: nothing is allocated until an error is made.
#[derive(Debug, Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Segment<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// A path of one name, such as `spec`.
    pub const fn new(name: &'a str) -> Self {
        Self { parent: None, segment: Segment::Name(name) }
    }

    /// `self.name`
    pub const fn child<'b>(&'b self, name: &'b str) -> Path<'b> {
        Path { parent: Some(self), segment: Segment::Name(name) }
    }

    /// `self[index]`
    pub const fn index<'b>(&'b self, index: usize) -> Path<'b> {
        Path { parent: Some(self), segment: Segment::Index(index) }
    }

    /// `self[key]`, for maps.
    pub const fn key<'b>(&'b self, key: &'b str) -> Path<'b> {
        Path { parent: Some(self), segment: Segment::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.segment {
            Segment::Name(name) if self.parent.is_some() => write!(f, ".{name}"),
            Segment::Name(name) => f.write_str(name),
            Segment::Index(index) => write!(f, "[{index}]"),
            Segment::Key(key) => write!(f, "[{key}]"),
        }
    }
}

/// Upstream's `field.ErrorType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorType {
    /// A value that should exist does not.
    NotFound,
    /// A value is absent that must be there.
    Required,
    /// Two values that must differ are equal.
    Duplicate,
    /// A malformed value.
    Invalid,
    /// A value outside the known set.
    NotSupported,
    /// A valid value that is not permitted here.
    Forbidden,
    /// A value with more bytes than allowed.
    TooLong,
    /// A list with more items than allowed.
    TooMany,
    /// A fault of the server itself.
    Internal,
    /// A value of the wrong type.
    TypeInvalid,
}

impl ErrorType {
    /// The machine-readable reason of a cause.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

/// One thing wrong with one field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// What sort of error.
    pub kind: ErrorType,
    /// Rendered path.
    pub field: String,
    /// Message without the field, as in a cause.
    pub body: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body)
    }
}

impl FieldError {
    /// An error whose text shows the value (`Invalid`, `Duplicate`, `NotFound`, `NotSupported`, `TooMany`).
    fn shown(kind: ErrorType, field: &Path<'_>, value: &Value, detail: &str) -> Self {
        let mut body = format!("{}: {}", kind.text(), show(value));
        append(&mut body, detail);
        Self { kind, field: field.to_string(), body }
    }

    fn bare(kind: ErrorType, field: &Path<'_>, detail: &str) -> Self {
        let mut body = kind.text().to_owned();
        append(&mut body, detail);
        Self { kind, field: field.to_string(), body }
    }

    /// `Invalid value: <value>: <detail>`
    pub fn invalid(field: &Path<'_>, value: impl Into<Value>, detail: impl AsRef<str>) -> Self {
        Self::shown(ErrorType::Invalid, field, &value.into(), detail.as_ref())
    }

    /// Like `invalid`, with the value's text given (a Go struct as upstream prints it).
    pub fn invalid_text(field: &Path<'_>, value: &str, detail: impl AsRef<str>) -> Self {
        let mut body = format!("{}: {value}", ErrorType::Invalid.text());
        append(&mut body, detail.as_ref());
        Self { kind: ErrorType::Invalid, field: field.to_string(), body }
    }

    /// `Invalid value: <value>: <detail>` with the reason of a wrong type.
    pub fn type_invalid(
        field: &Path<'_>,
        value: impl Into<Value>,
        detail: impl AsRef<str>,
    ) -> Self {
        Self::shown(ErrorType::TypeInvalid, field, &value.into(), detail.as_ref())
    }

    /// `Required value: <detail>`
    pub fn required(field: &Path<'_>, detail: impl AsRef<str>) -> Self {
        Self::bare(ErrorType::Required, field, detail.as_ref())
    }

    /// `Forbidden: <detail>`
    pub fn forbidden(field: &Path<'_>, detail: impl AsRef<str>) -> Self {
        Self::bare(ErrorType::Forbidden, field, detail.as_ref())
    }

    /// `Internal error: <detail>`
    pub fn internal(field: &Path<'_>, detail: impl AsRef<str>) -> Self {
        Self::bare(ErrorType::Internal, field, detail.as_ref())
    }

    /// `Duplicate value: <value>`
    pub fn duplicate(field: &Path<'_>, value: impl Into<Value>) -> Self {
        Self::shown(ErrorType::Duplicate, field, &value.into(), "")
    }

    /// Like `duplicate`, with the value's text given (a Go struct as upstream prints it).
    pub fn duplicate_text(field: &Path<'_>, value: &str) -> Self {
        let body = format!("{}: {value}", ErrorType::Duplicate.text());
        Self { kind: ErrorType::Duplicate, field: field.to_string(), body }
    }

    /// `Not found: <value>`
    pub fn not_found(field: &Path<'_>, value: impl Into<Value>) -> Self {
        Self::shown(ErrorType::NotFound, field, &value.into(), "")
    }

    /// `Unsupported value: <value>: supported values: "A", "B"`
    pub fn not_supported(field: &Path<'_>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|s| quote(s)).collect();
        let detail = if quoted.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", quoted.join(", "))
        };
        Self::shown(ErrorType::NotSupported, field, &value.into(), &detail)
    }

    /// `Too long: may not be more than <bytes_max> bytes`
    pub fn too_long(field: &Path<'_>, bytes_max: usize) -> Self {
        let unit = if bytes_max == 1 { "byte" } else { "bytes" };
        Self::bare(ErrorType::TooLong, field, &format!("may not be more than {bytes_max} {unit}"))
    }

    /// `Too many: <count>: must have at most <count_max> items`
    pub fn too_many(field: &Path<'_>, count: usize, count_max: usize) -> Self {
        let unit = if count_max == 1 { "item" } else { "items" };
        let detail = format!("must have at most {count_max} {unit}");
        Self::shown(ErrorType::TooMany, field, &Value::from(count), &detail)
    }

    /// As a cause of a `Status`.
    pub fn cause(&self) -> Cause {
        Cause {
            reason: self.kind.reason().into(),
            message: self.body.clone(),
            field: self.field.clone(),
        }
    }
}

fn append(body: &mut String, detail: &str) {
    if !detail.is_empty() {
        body.push_str(": ");
        body.push_str(detail);
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::String(s) => quote(s),
        other => other.to_string(),
    }
}

/// Go's `strconv.Quote`.
pub fn quote(s: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            // Writing to a String does not fail.
            c if u32::from(c) < 0x20 || c == '\u{7f}' => {
                write!(out, "\\x{:02x}", u32::from(c)).unwrap_or_default();
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Every error of one object, in the order in which upstream finds them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    /// No errors.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds one.
    pub fn push(&mut self, error: FieldError) {
        self.0.push(error);
    }

    /// Adds those of another list.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// True when the object is valid.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// In order.
    pub fn iter(&self) -> std::slice::Iter<'_, FieldError> {
        self.0.iter()
    }

    /// Drops those for which the condition is false.
    pub fn retain(&mut self, keep: impl FnMut(&FieldError) -> bool) {
        self.0.retain(keep);
    }
}

impl From<FieldError> for FieldErrors {
    fn from(error: FieldError) -> Self {
        Self(vec![error])
    }
}

impl FromIterator<FieldError> for FieldErrors {
    fn from_iter<T: IntoIterator<Item = FieldError>>(iter: T) -> Self {
        Self(iter.into_iter().collect())
    }
}

impl Extend<FieldError> for FieldErrors {
    fn extend<T: IntoIterator<Item = FieldError>>(&mut self, iter: T) {
        self.0.extend(iter);
    }
}

impl IntoIterator for FieldErrors {
    type Item = FieldError;
    type IntoIter = std::vec::IntoIter<FieldError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Upstream's aggregate: one error bare, several in brackets, repeated texts once.
impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut texts: Vec<String> = Vec::with_capacity(self.0.len());
        for error in &self.0 {
            let text = error.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        match texts.as_slice() {
            [one] => f.write_str(one),
            many => write!(f, "[{}]", many.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_read_like_upstreams() {
        let spec = Path::new("spec");
        let containers = spec.child("containers");
        let first = containers.index(0);
        let cases = [
            (
                FieldError::invalid(&first.child("name"), "c!", "nope"),
                r#"spec.containers[0].name: Invalid value: "c!": nope"#,
            ),
            (
                FieldError::invalid(&first.child("port"), 99999, "must be lower"),
                "spec.containers[0].port: Invalid value: 99999: must be lower",
            ),
            (
                FieldError::required(&first.child("image"), ""),
                "spec.containers[0].image: Required value",
            ),
            (
                FieldError::not_supported(&spec.child("type"), "Nope", &["A", "B"]),
                r#"spec.type: Unsupported value: "Nope": supported values: "A", "B""#,
            ),
            (
                FieldError::duplicate(&spec.key("a/b"), json!({"a": "b"})),
                r#"spec[a/b]: Duplicate value: {"a":"b"}"#,
            ),
            (
                FieldError::too_long(&spec.child("x"), 63),
                "spec.x: Too long: may not be more than 63 bytes",
            ),
            (
                FieldError::too_many(&spec.child("x"), 3, 1),
                "spec.x: Too many: 3: must have at most 1 item",
            ),
            (FieldError::invalid(&spec, Value::Null, "x"), "spec: Invalid value: null: x"),
        ];
        for (error, want) in cases {
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn several_errors_stand_in_brackets_and_equal_ones_once() {
        let spec = Path::new("spec");
        let one = FieldError::required(&spec.child("a"), "");
        let mut errors = FieldErrors::from(one.clone());
        errors.push(one);
        assert_eq!(errors.to_string(), "spec.a: Required value");
        errors.push(FieldError::forbidden(&spec, "no"));
        assert_eq!(errors.to_string(), "[spec.a: Required value, spec: Forbidden: no]");
    }
}
