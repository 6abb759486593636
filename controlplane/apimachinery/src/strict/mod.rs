//! Bodies become objects of a kind: unknown and duplicate fields are found, wrong types refused, unknown fields pruned, values
//! brought into canonical form; in upstream's words. Must not fill in defaults.

mod conform;
mod read;

use serde_json::Value;

pub use conform::conform;
pub use read::{Read, ReadError, read};

use crate::field::{FieldError, Path};
use crate::gvk::{GroupVersionKind, split_api_version};
use crate::negotiate::Format;
use crate::object;
use crate::schema::{Schemas, Type};
use crate::status::ApiError;

/// More problems than this are not listed.
pub const PROBLEMS_MAX: usize = 100;

/// What is done about unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// They are dropped.
    Ignore,
    /// They are dropped, and the client is warned.
    #[default]
    Warn,
    /// The request is refused.
    Strict,
}

impl FieldValidation {
    /// Reads the query parameter; absent and empty mean `Warn`.
    pub fn parse(parameter: Option<&str>) -> Result<Self, FieldError> {
        match parameter.unwrap_or_default() {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => {
                let known = ["", "Ignore", "Strict", "Warn"];
                Err(FieldError::not_supported(&Path::new("fieldValidation"), other, &known))
            }
        }
    }
}

/// A decoded body.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// Pruned and canonical.
    pub object: Value,
    /// `unknown field "spec.x"`, `duplicate field "spec.y"`, in the order of the body.
    pub problems: Vec<String>,
}

impl Decoded {
    /// The object and the warnings for the client, or the refusal.
    pub fn settle(
        self,
        validation: FieldValidation,
        gvk: GroupVersionKind<'_>,
    ) -> Result<(Value, Vec<String>), ApiError> {
        match validation {
            _ if self.problems.is_empty() => Ok((self.object, Vec::new())),
            FieldValidation::Ignore => Ok((self.object, Vec::new())),
            FieldValidation::Warn => Ok((self.object, self.problems)),
            FieldValidation::Strict => Err(refused(gvk, gvk, &strict_text(&self.problems))),
        }
    }
}

/// `strict decoding error: unknown field "spec.x", …`
pub fn strict_text(problems: &[String]) -> String {
    format!("strict decoding error: {}", problems.join(", "))
}

fn refused(sent: GroupVersionKind<'_>, wanted: GroupVersionKind<'_>, why: &str) -> ApiError {
    ApiError::bad_request(format!(
        "{} in version \"{}\" cannot be handled as a {}: {why}",
        sent.kind, sent.version, wanted.kind
    ))
}

/// Decodes a body as an object of `wanted`, whose type is `schema`; an absent `apiVersion` or `kind` is filled in.
pub fn decode(
    body: &[u8],
    format: Format,
    wanted: GroupVersionKind<'_>,
    schema: &Type,
) -> Result<Decoded, ApiError> {
    let Read { mut value, duplicates } =
        read(body, format).map_err(|error| unrecognized(wanted, &error.to_string(), body))?;
    identify(&mut value, wanted).map_err(|why| unrecognized(wanted, &why, body))?;
    check_kind(&value, wanted)?;
    let unknown = conform(&mut value, schema).map_err(|why| refused(wanted, wanted, &why))?;
    let mut problems = unknown.clone();
    problems.extend(
        duplicates
            .into_iter()
            .filter(|path| !below(path, &unknown))
            .map(|path| format!("duplicate field \"{path}\"")),
    );
    if problems.len() > 1 {
        let positions = read::positions(body, format, problems.iter().map(|one| path_of(one)));
        problems.sort_by_cached_key(|problem| {
            let found = positions.get(path_of(problem)).map(Vec::as_slice).unwrap_or_default();
            // A duplicate is noticed where the key comes up for the second time.
            let nth = usize::from(problem.starts_with("duplicate"));
            found.get(nth).copied().unwrap_or(usize::MAX)
        });
    }
    problems.truncate(PROBLEMS_MAX);
    Ok(Decoded { object: value, problems })
}

/// Upstream does not look for duplicates within unknown fields.
fn below(path: &str, unknown: &[String]) -> bool {
    unknown.iter().any(|problem| {
        path.strip_prefix(path_of(problem))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

/// The path that a problem names.
fn path_of(problem: &str) -> &str {
    problem.split_once('"').map_or("", |(_, rest)| rest.strip_suffix('"').unwrap_or(rest))
}

const SUMMARY_BYTES: usize = 30;

fn unrecognized(wanted: GroupVersionKind<'_>, why: &str, body: &[u8]) -> ApiError {
    let head = &body[..body.len().min(SUMMARY_BYTES)];
    let more = if body.len() > SUMMARY_BYTES { " ..." } else { "" };
    let summary = match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(head)),
        Some(_) => {
            let hex: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{hex}{more}")
        }
    };
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {why} ({summary})",
        wanted.kind
    ))
}

/// Makes sure that `apiVersion` and `kind` are there.
fn identify(value: &mut Value, wanted: GroupVersionKind<'_>) -> Result<(), String> {
    const TARGET: &str = "struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }";
    let sort = conform::sort_of(value);
    let Value::Object(map) = value else {
        return Err(format!("json: cannot unmarshal {sort} into Go value of type {TARGET}"));
    };
    for (key, text) in [("apiVersion", wanted.api_version()), ("kind", wanted.kind.to_owned())] {
        match map.get(key) {
            Some(Value::String(present)) if !present.is_empty() => {}
            None | Some(Value::Null | Value::String(_)) => {
                map.insert(key.to_owned(), text.into());
            }
            Some(other) => {
                let sort = conform::sort_of(other);
                return Err(format!(
                    "json: cannot unmarshal {sort} into Go struct field .{key} of type string"
                ));
            }
        }
    }
    Ok(())
}

fn check_kind(value: &Value, wanted: GroupVersionKind<'_>) -> Result<(), ApiError> {
    let api_version = object::api_version(value);
    let (group, version) = split_api_version(api_version);
    let sent = GroupVersionKind::new(group, version, object::kind(value));
    if sent == wanted {
        return Ok(());
    }
    if Schemas::builtin().kinds().iter().any(|row| row.gvk == sent) {
        if (group, version) != (wanted.group, wanted.version) {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({api_version}) does not match the expected API version ({})",
                wanted.api_version()
            )));
        }
        let why = format!(
            "converting ({version}.{}) to ({}.{}): unknown conversion",
            sent.kind,
            internal_package(wanted.group),
            wanted.kind
        );
        return Err(refused(sent, wanted, &why));
    }
    let why = format!(
        "no kind \"{}\" is registered for version \"{api_version}\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
        sent.kind
    );
    Err(refused(sent, wanted, &why))
}

/// Go's package of a group's internal types.
fn internal_package(group: &str) -> &str {
    match group.split('.').next().unwrap_or_default() {
        "" => "core",
        first => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const POD: GroupVersionKind<'_> = GroupVersionKind::new("", "v1", "Pod");

    fn pod(body: &str) -> Result<Decoded, ApiError> {
        let schema = Schemas::builtin().of(POD).unwrap();
        decode(body.as_bytes(), Format::Json, POD, &schema)
    }

    #[test]
    fn unknown_and_duplicate_fields_are_named_in_order() {
        let body = r#"{"kind":"Pod","spec":{"zero":{"a":1,"a":2},"zero":2,"hostNetwork":true,"hostNetwork":false,
            "containers":[{"name":"a","imag":"b"}]},"metadata":{"labels":{"x":"1","x":"2"}},"a":1}"#;
        let decoded = pod(body).unwrap();
        assert_eq!(
            decoded.problems,
            [
                r#"unknown field "spec.zero""#,
                r#"duplicate field "spec.hostNetwork""#,
                r#"unknown field "spec.containers[0].imag""#,
                r#"duplicate field "metadata.labels.x""#,
                r#"unknown field "a""#,
            ]
        );
        assert_eq!(
            decoded.object,
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"labels": {"x": "2"}},
                "spec": {"hostNetwork": false, "containers": [{"name": "a"}]}})
        );
        let (_, warnings) = decoded.clone().settle(FieldValidation::Warn, POD).unwrap();
        assert_eq!(warnings.len(), 5);
        let (_, warnings) = decoded.clone().settle(FieldValidation::Ignore, POD).unwrap();
        assert!(warnings.is_empty());
        let error = decoded.settle(FieldValidation::Strict, POD).unwrap_err();
        assert!(error.message.starts_with(
            r#"Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.zero", duplicate"#
        ));
    }

    #[test]
    fn a_body_full_of_problems_is_read_in_its_size() {
        let keys: Vec<String> = (0..50_000).map(|n| format!("\"k{n}\":{{\"a\":1}}")).collect();
        let begin = std::time::Instant::now();
        let decoded = pod(&format!("{{{}}}", keys.join(","))).unwrap();
        assert_eq!(decoded.problems.len(), PROBLEMS_MAX);
        assert_eq!(decoded.object, json!({"apiVersion": "v1", "kind": "Pod"}));
        // What each key's path repeats of its parent's must not add up.
        let parent = "x".repeat(1 << 20);
        pod(&format!("{{\"a\":1,\"{parent}\":{{{}}}}}", keys.join(","))).unwrap();
        assert!(begin.elapsed() < std::time::Duration::from_secs(15), "{:?}", begin.elapsed());
    }

    #[test]
    fn what_is_not_the_kind_is_refused() {
        let cases = [
            (
                "",
                r"the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)",
            ),
            (
                r#"{"kind":5}"#,
                r#"the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: json: cannot unmarshal number into Go struct field .kind of type string ({"kind":5})"#,
            ),
            (
                r#"{"kind":"Service"}"#,
                r#"Service in version "v1" cannot be handled as a Pod: converting (v1.Service) to (core.Pod): unknown conversion"#,
            ),
            (
                r#"{"kind":"Deployment","apiVersion":"apps/v1"}"#,
                "the API version in the data (apps/v1) does not match the expected API version (v1)",
            ),
            (
                r#"{"kind":"Nope"}"#,
                r#"Nope in version "v1" cannot be handled as a Pod: no kind "Nope" is registered for version "v1" in scheme "pkg/api/legacyscheme/scheme.go:30""#,
            ),
        ];
        for (body, want) in cases {
            let error = pod(body).unwrap_err();
            assert_eq!((error.code, error.message.as_str()), (400, want), "{body}");
        }
        assert!(pod("[1]").unwrap_err().message.ends_with("(5b315d)"));
    }

    #[test]
    fn a_wrong_type_is_answered_as_a_real_server_does() {
        let folder = std::env::var_os("FLOTILLA_SPEC_DIR").map_or_else(
            || std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../spec"),
            std::path::PathBuf::from,
        );
        let Ok(bytes) = std::fs::read(folder.join("examples.json")) else {
            println!("SKIPPED: no examples.json (set FLOTILLA_SPEC_DIR)");
            return;
        };
        let examples: Value = serde_json::from_slice(&bytes).unwrap();
        let example = &examples["bad-type"];
        let error = pod(&example["sent"].to_string()).unwrap_err();
        assert_eq!(error.to_status(), example["answer"]);
    }

    #[test]
    fn yaml_reads_like_json() {
        let schema = Schemas::builtin().of(POD).unwrap();
        let body = b"apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  name: z\nspec:\n  priority: 5\n  bogus: 1\n";
        let decoded = decode(body, Format::Yaml, POD, &schema).unwrap();
        assert_eq!(
            decoded.object,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "z"}, "spec": {"priority": 5}})
        );
        assert_eq!(
            decoded.problems,
            [r#"duplicate field "metadata.name""#, r#"unknown field "spec.bogus""#]
        );
        assert!(decode(b"a: [", Format::Yaml, POD, &schema).is_err());
    }

    #[test]
    fn the_parameter_is_checked() {
        assert_eq!(FieldValidation::parse(None), Ok(FieldValidation::Warn));
        assert_eq!(FieldValidation::parse(Some("Strict")), Ok(FieldValidation::Strict));
        assert_eq!(
            FieldValidation::parse(Some("x")).unwrap_err().to_string(),
            r#"fieldValidation: Unsupported value: "x": supported values: "", "Ignore", "Strict", "Warn""#
        );
    }
}
