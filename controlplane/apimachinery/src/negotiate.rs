//! Which format a client wants and sent: `Accept`, `Content-Type`. Must not read bodies.

use crate::status::ApiError;

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `application/json`
    #[default]
    Json,
    /// `application/yaml`
    Yaml,
}

impl Format {
    /// For the `Content-Type` header.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        }
    }
}

/// A conversion asked for with `as=`, `g=` and `v=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct As {
    /// Such as `Table`, `PartialObjectMetadataList`, `APIGroupDiscoveryList`.
    pub kind: String,
    /// Such as `meta.k8s.io`.
    pub group: String,
    /// Such as `v1`.
    pub version: String,
}

impl As {
    /// True for this kind of `meta.k8s.io` at a version that is served (`v1`, `v1beta1`).
    pub fn is_meta(&self, kind: &str) -> bool {
        self.kind == kind
            && self.group == "meta.k8s.io"
            && matches!(self.version.as_str(), "v1" | "v1beta1")
    }
}

/// One acceptable answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// JSON or YAML.
    pub format: Format,
    /// The conversion, if one is asked for.
    pub convert: Option<As>,
    /// Indented JSON.
    pub pretty: bool,
    /// `stream=watch`
    pub stream: bool,
}

const ACCEPTED: [&str; 2] = ["application/json", "application/yaml"];
/// More ranges than this in one header are not read.
const RANGES_MAX: usize = 32;

/// Picks the client's best range that is served; `can_convert` says which conversions this endpoint offers.
pub fn accept(header: Option<&str>, can_convert: impl Fn(&As) -> bool) -> Result<Answer, ApiError> {
    let Some(header) = header.map(str::trim).filter(|header| !header.is_empty()) else {
        return Ok(Answer::default());
    };
    let mut best: Option<(f32, Answer)> = None;
    for range in header.split(',').take(RANGES_MAX) {
        let Some((quality, answer)) = read_range(range) else { continue };
        let served = answer.convert.as_ref().is_none_or(&can_convert);
        if served && quality > 0.0 && best.as_ref().is_none_or(|(high, _)| quality > *high) {
            best = Some((quality, answer));
        }
    }
    best.map(|(_, answer)| answer).ok_or_else(|| ApiError::not_acceptable(&ACCEPTED))
}

fn read_range(range: &str) -> Option<(f32, Answer)> {
    let mut parts = range.split(';').map(str::trim);
    let format = match parts.next()?.to_ascii_lowercase().as_str() {
        "application/json" | "*/*" | "application/*" => Format::Json,
        "application/yaml" => Format::Yaml,
        _ => return None,
    };
    let mut answer = Answer { format, ..Answer::default() };
    let (mut kind, mut group, mut version) = (None, "", "");
    let mut quality = 1.0;
    for parameter in parts {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = value.trim().trim_matches('"');
        match key.trim().to_ascii_lowercase().as_str() {
            "q" => quality = value.parse().ok()?,
            "as" => kind = Some(value),
            "g" => group = value,
            "v" => version = value,
            "pretty" => answer.pretty = value == "1",
            "stream" => answer.stream = value == "watch",
            _ => {}
        }
    }
    answer.convert = kind.map(|kind| As {
        kind: kind.to_owned(),
        group: group.to_owned(),
        version: version.to_owned(),
    });
    Some((quality, answer))
}

/// What a body holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json`
    Json,
    /// `application/merge-patch+json`
    Merge,
    /// `application/strategic-merge-patch+json`
    Strategic,
    /// `application/apply-patch+yaml`
    Apply,
}

impl PatchType {
    /// The media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

fn media_type(header: Option<&str>) -> String {
    let header = header.unwrap_or_default();
    header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The format of a body of create, update or delete; no header means JSON.
pub fn body_format(content_type: Option<&str>) -> Result<Format, ApiError> {
    match media_type(content_type).as_str() {
        "" | "application/json" => Ok(Format::Json),
        "application/yaml" => Ok(Format::Yaml),
        _ => Err(ApiError::unsupported_media_type(&ACCEPTED)),
    }
}

/// The kind of patch, if it is one of those that the resource takes.
pub fn patch_type(
    content_type: Option<&str>,
    supported: &[PatchType],
) -> Result<PatchType, ApiError> {
    let media_type = media_type(content_type);
    supported.iter().copied().find(|patch| patch.content_type() == media_type).ok_or_else(|| {
        let names: Vec<_> = supported.iter().map(|patch| patch.content_type()).collect();
        ApiError::unsupported_media_type(&names)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

    #[test]
    fn the_first_best_range_wins() {
        let any = |_: &As| true;
        let none = |_: &As| false;
        let table = accept(Some(TABLES), any).unwrap();
        assert!(table.convert.is_some_and(|to| to.is_meta("Table") && to.version == "v1"));
        assert_eq!(accept(Some(TABLES), none).unwrap(), Answer::default());
        assert_eq!(accept(None, none).unwrap(), Answer::default());
        assert_eq!(accept(Some("*/*"), none).unwrap(), Answer::default());
        let protobuf = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(accept(Some(protobuf), none).unwrap(), Answer::default());
        assert_eq!(
            accept(Some("application/json;q=0.5, application/yaml"), none).unwrap().format,
            Format::Yaml
        );
        assert!(
            accept(Some("application/json;stream=watch;pretty=1"), none)
                .is_ok_and(|answer| answer.stream && answer.pretty)
        );
    }

    #[test]
    fn what_is_not_served_is_refused() {
        for header in [
            "text/html",
            "application/vnd.kubernetes.protobuf",
            "application/json;q=0",
            "application/json;as=Table",
        ] {
            let error = accept(Some(header), |_| false).unwrap_err();
            assert_eq!((error.code, error.reason.as_str()), (406, "NotAcceptable"));
        }
        assert_eq!(body_format(Some("text/plain")).unwrap_err().code, 415);
        assert_eq!(body_format(Some("application/JSON; charset=utf-8")).unwrap(), Format::Json);
        let supported = [PatchType::Json, PatchType::Merge];
        assert_eq!(
            patch_type(Some("application/merge-patch+json"), &supported).unwrap(),
            PatchType::Merge
        );
        assert_eq!(
            patch_type(Some("application/strategic-merge-patch+json"), &supported)
                .unwrap_err()
                .message,
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json"
        );
    }
}
