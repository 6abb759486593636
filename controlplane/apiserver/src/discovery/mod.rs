//! Discovery: `/api`, `/apis` and the documents below, plain and aggregated.
//!
//! Owns the choice of the form by `Accept` and the ETag of the aggregated one. What is served stands in the resource
//! table alone.

mod documents;

use crate::body::{self, Body};
use crate::resource::ResourceTable;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use serde_json::Value;

const AGGREGATED: HeaderValue = HeaderValue::from_static(
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
);

/// The answer to a discovery path; `None` when the path is no such. `address` is `host:port` of this server.
pub fn respond(table: &ResourceTable, parts: &Parts, address: &str) -> Option<Response<Body>> {
    if parts.method != Method::GET && parts.method != Method::HEAD {
        return None;
    }
    let path = parts.uri.path().trim_matches('/');
    let segments: Vec<&str> = path.split('/').collect();
    match segments.as_slice() {
        ["api"] | ["apis"] if wants_aggregated(&parts.headers) => {
            Some(aggregated(&documents::aggregated(table, path == "api"), &parts.headers))
        }
        ["api"] => Some(plain(&documents::core_versions(address))),
        ["apis"] => Some(plain(&documents::group_list(table))),
        ["api", version] => documents::resource_list(table, "", version).as_ref().map(plain),
        ["apis", group] => documents::group(table, group).as_ref().map(plain),
        ["apis", group, version] => {
            documents::resource_list(table, group, version).as_ref().map(plain)
        }
        _ => None,
    }
}

/// Whether the first form that the client names and we know is the aggregated one.
fn wants_aggregated(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let parameters: Vec<&str> = parts.collect();
            let has = |wanted: &str| parameters.contains(&wanted);
            let converted = parameters.iter().any(|p| p.starts_with("as="));
            match media {
                "application/json" if has("as=APIGroupDiscoveryList") && has("v=v2") => {
                    Some(has("g=apidiscovery.k8s.io"))
                }
                "application/json" | "*/*" | "application/*" if !converted => Some(false),
                _ => None,
            }
        })
        .unwrap_or(false)
}

fn plain(document: &Value) -> Response<Body> {
    body::json(StatusCode::OK, document)
}

fn aggregated(document: &Value, headers: &HeaderMap) -> Response<Body> {
    let text = document.to_string();
    let etag = etag(text.as_bytes());
    let known = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|one| one.trim() == etag || one.trim() == "*"));
    let mut response = match known {
        true => {
            let mut response = Response::new(body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        false => body::respond(StatusCode::OK, "application/json", text),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, AGGREGATED);
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(ETAG, etag);
    }
    response
}

/// A quoted hash of the document.
pub(crate) fn etag(document: &[u8]) -> String {
    format!("\"{}\"", hash(document))
}

/// The SHA-512 of the document, as upstream writes it.
pub(crate) fn hash(document: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA512, document);
    digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn ask(path: &str, headers: &[(&str, &str)]) -> Option<Response<Body>> {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        respond(&ResourceTable::builtin(), &parts, "10.0.0.1:6443")
    }

    const CLIENT_GO: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

    #[test]
    fn the_form_follows_accept() {
        let kind = |accept: &str| {
            let response = ask("/apis", &[("accept", accept)]).unwrap();
            response.headers()[CONTENT_TYPE].to_str().unwrap().contains("APIGroupDiscoveryList")
        };
        assert!(kind(CLIENT_GO));
        assert!(!kind("application/json"));
        assert!(!kind("application/json, */*"));
        assert!(!kind(
            "application/json,application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        ));
        assert!(!kind("application/vnd.kubernetes.protobuf,application/json"));
    }

    #[test]
    fn a_known_document_is_not_sent_again() {
        let first = ask("/apis", &[("accept", CLIENT_GO)]).unwrap();
        let etag = first.headers()[ETAG].to_str().unwrap().to_owned();
        let again = ask("/apis", &[("accept", CLIENT_GO), ("if-none-match", &etag)]).unwrap();
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        let core = ask("/api", &[("accept", CLIENT_GO), ("if-none-match", &etag)]).unwrap();
        assert_eq!(core.status(), StatusCode::OK);
    }

    #[test]
    fn unknown_paths_are_not_discoverys() {
        assert!(ask("/apis/nope", &[]).is_none());
        assert!(ask("/apis/apps/v9", &[]).is_none());
        assert!(ask("/api/v2", &[]).is_none());
        assert!(ask("/version", &[]).is_none());
        assert!(ask("/apis/apps/v1/", &[]).is_some());
    }
}
