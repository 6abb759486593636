//! OpenAPI: `/openapi/v3`, one document for each group version below it, and `/openapi/v2`.
//!
//! Owns negotiation and ETags. Documents are large, so they are made on request and not retained; only their ETags are, so that
//! a client that has a document already costs nothing.

mod documents;
mod paths;
mod protobuf;

use crate::body::{self, Body};
use crate::resource::ResourceTable;
use apimachinery::status::ApiError;
use http::header::{ACCEPT, CACHE_CONTROL, ETAG, IF_NONE_MATCH, VARY};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

const V3: &str = "/openapi/v3";
const V2: &str = "/openapi/v2";
/// How clients ask for version 2 in protobuf. kubectl does for kinds that version 3 does not know, and takes nothing else.
const V2_PROTOBUF: [&str; 2] =
    ["application/com.github.proto-openapi.spec.v2@v1.0+protobuf", V2_PROTOBUF_TYPE];
/// Its type in an answer: the one with an `@` is no media type.
const V2_PROTOBUF_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// Under which its ETag is remembered.
const V2_PROTOBUF_KEY: &str = "/openapi/v2 protobuf";

/// Answers OpenAPI's paths.
#[derive(Debug, Default)]
pub struct OpenApi {
    /// By path; at most one for each group version.
    etags: Mutex<HashMap<String, String>>,
}

impl OpenApi {
    /// The answer; `None` when the path is not OpenAPI's.
    pub fn respond(&self, table: &ResourceTable, parts: &Parts) -> Option<Response<Body>> {
        let path = canonical(parts.uri.path());
        let path = path.as_str();
        if parts.method != Method::GET && parts.method != Method::HEAD {
            return None;
        }
        if path == V3 {
            return Some(body::json(StatusCode::OK, &documents::v3_index(table)));
        }
        let in_protobuf = path == V2 && !accepts_json(&parts.headers);
        let key = if in_protobuf { V2_PROTOBUF_KEY } else { path };
        let known = self.etag(key);
        if let Some(etag) = known.filter(|etag| has(&parts.headers, etag)) {
            return Some(finish(not_modified(), &etag));
        }
        if in_protobuf {
            return Some(self.answer(key, V2_PROTOBUF_TYPE, Ok(protobuf::v2(table))));
        }
        let made = if path == V2 {
            documents::v2(table)
        } else {
            let segments: Vec<&str> =
                path.strip_prefix(V3)?.trim_start_matches('/').split('/').collect();
            match segments.as_slice() {
                ["api", version] => documents::v3(table, "", version)?,
                ["apis", group, version] => documents::v3(table, group, version)?,
                _ => return None,
            }
        };
        Some(self.answer(path, "application/json", made))
    }

    fn answer(
        &self,
        key: &str,
        media_type: &'static str,
        made: Result<Vec<u8>, serde_json::Error>,
    ) -> Response<Body> {
        match made {
            Ok(document) => {
                let etag = crate::discovery::etag(&document);
                self.remember(key, &etag);
                finish(body::respond(StatusCode::OK, media_type, document), &etag)
            }
            Err(error) => {
                let error = ApiError::internal(format!("write OpenAPI: {error}"));
                body::json(StatusCode::INTERNAL_SERVER_ERROR, &error.to_status())
            }
        }
    }

    fn etag(&self, path: &str) -> Option<String> {
        self.etags.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    fn remember(&self, path: &str, etag: &str) {
        let mut etags = self.etags.lock().unwrap_or_else(PoisonError::into_inner);
        etags.insert(path.to_owned(), etag.to_owned());
    }
}

/// The one way of writing a path, so that no client makes more keys than there are documents.
fn canonical(path: &str) -> String {
    let path = path.trim_end_matches('/');
    match path.strip_prefix(V3).map(|rest| rest.trim_start_matches('/')) {
        None | Some("") => path.to_owned(),
        Some(rest) => format!("{V3}/{rest}"),
    }
}

fn values<'a>(
    headers: &'a HeaderMap,
    name: &http::HeaderName,
) -> impl Iterator<Item = &'a str> + use<'a> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

fn has(headers: &HeaderMap, etag: &str) -> bool {
    values(headers, &IF_NONE_MATCH).any(|value| value.trim_start_matches("W/") == etag)
}

fn accepts_json(headers: &HeaderMap) -> bool {
    let mut ranges = values(headers, &ACCEPT).peekable();
    ranges.peek().is_none()
        || ranges.any(|range| !V2_PROTOBUF.iter().any(|own| range.starts_with(own)))
}

fn not_modified() -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

fn finish(mut response: Response<Body>, etag: &str) -> Response<Body> {
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(etag) {
        headers.insert(ETAG, etag);
    }
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn ask(api: &OpenApi, path: &str, header: (&str, &str)) -> Option<Response<Body>> {
        let request = Request::get(path).header(header.0, header.1).body(()).unwrap();
        api.respond(&ResourceTable::builtin(), &request.into_parts().0)
    }

    #[test]
    fn a_document_is_made_once_for_a_client_that_has_it() {
        let api = OpenApi::default();
        let path = "/openapi/v3/apis/coordination.k8s.io/v1?hash=X";
        let first = ask(&api, path, ("accept", "application/json")).unwrap();
        assert_eq!(first.status(), 200);
        let etag = first.headers()[ETAG].to_str().unwrap().to_owned();
        let again = ask(&api, path, ("if-none-match", &etag)).unwrap();
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        for slashes in 1..9 {
            let path = format!("/openapi/v3{}apis/coordination.k8s.io/v1", "/".repeat(slashes));
            assert!(ask(&api, &path, ("accept", "*/*")).is_some());
        }
        assert_eq!(api.etags.lock().unwrap().len(), 1);
        assert!(ask(&api, "/openapi/v3/apis/nope/v1", ("accept", "*/*")).is_none());
        let old = ask(&api, "/openapi/v2", ("accept", V2_PROTOBUF[0])).unwrap();
        assert_eq!(old.headers()["content-type"], V2_PROTOBUF_TYPE);
    }
}
