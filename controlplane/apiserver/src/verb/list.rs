//! `list`: a consistent page of a collection, streamed in chunks. Must not hold more than a chunk of rendered bytes.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use apimachinery::{
    field::{FieldError, FieldErrors, Path},
    gvk::GroupKind,
    negotiate::Format,
    status::ApiError,
};
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use store::{Entry, KeyRange, Range, Revision};

use super::Call;
use crate::{
    body::{Body, BodyError},
    filter::Filter,
    key,
    page::Continue,
    query::Query,
    registry,
    resource::Resource,
    respond,
    view::View,
};

/// Rendered bytes per frame of the body.
const CHUNK_BYTES: usize = 64 * 1024;

/// Which revision a list is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Newest,
    NotOlderThan(Revision),
    Exact(Revision),
}

/// What is listed.
struct Plan {
    want: Want,
    start: Option<String>,
    limit: usize,
}

/// The entries of one page.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) revision: Revision,
    next: Option<Continue>,
    remaining: Option<usize>,
}

pub(crate) fn run(call: &Call) -> Result<Response<Body>, ApiError> {
    let filter = Filter::parse(&call.resource, &call.query, "")?;
    let plan = plan(&call.query)?;
    let page = read(call, &filter, &plan)?;
    let view = View { resource: Arc::clone(&call.resource), form: call.form };
    let metadata = metadata(&page);
    if call.answer.format == Format::Yaml {
        return respond::whole(call, &collected(&view, &page, &metadata)?);
    }
    let body = ListBody::new(view, page.entries, &metadata);
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

fn collected(view: &View, page: &Page, metadata: &Value) -> Result<Value, ApiError> {
    let (head, tail) = view.list_frame(metadata);
    let mut out = head.into_bytes();
    for (i, entry) in page.entries.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        view.item(&mut out, entry)?;
    }
    out.extend_from_slice(tail.as_bytes());
    serde_json::from_slice(&out).map_err(|e| ApiError::internal(e.to_string()))
}

fn metadata(page: &Page) -> Value {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), page.revision.to_string().into());
    if let Some(next) = &page.next {
        metadata.insert("continue".into(), next.encode().into());
        if let Some(remaining) = page.remaining {
            metadata.insert("remainingItemCount".into(), remaining.into());
        }
    }
    metadata.into()
}

/// Kubernetes 1.36, `ListOptions`: which revision the parameters ask for.
fn plan(query: &Query) -> Result<Plan, ApiError> {
    let limit = usize::try_from(query.number("limit")?.unwrap_or_default()).unwrap_or_default();
    let (token, version) = (query.get("continue"), query.get("resourceVersion"));
    let matching = query.get("resourceVersionMatch");
    if !token.is_empty() {
        if !matching.is_empty() {
            return Err(forbidden_match(
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if !matches!(version, "" | "0") {
            let text = "specifying resource version is not allowed when using continue";
            return Err(ApiError::bad_request(text));
        }
        let token = Continue::decode(token)?;
        return Ok(Plan { want: Want::Exact(token.rv), start: Some(token.start), limit });
    }
    if version.is_empty() && !matching.is_empty() {
        return Err(forbidden_match(
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ));
    }
    let revision = parse_revision(version)?;
    let want = match (matching, revision) {
        ("Exact", 0) => {
            return Err(forbidden_match(
                "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
        ("Exact", revision) => Want::Exact(revision),
        ("", revision) if limit > 0 && revision > 0 => Want::Exact(revision),
        ("" | "NotOlderThan", 0) => Want::Newest,
        ("" | "NotOlderThan", revision) => Want::NotOlderThan(revision),
        (other, _) => {
            let path = Path::new("resourceVersionMatch");
            let known = ["Exact", "NotOlderThan"];
            return Err(invalid(FieldError::not_supported(&path, other, &known)));
        }
    };
    Ok(Plan { want, start: None, limit })
}

/// What is wrong with `resourceVersionMatch` beside the other options of a list or watch.
pub(crate) fn forbidden_match(why: &str) -> ApiError {
    invalid(FieldError::forbidden(&Path::new("resourceVersionMatch"), why))
}

fn invalid(error: FieldError) -> ApiError {
    let kind = GroupKind::new("meta.k8s.io", "ListOptions");
    ApiError::invalid(kind, "", &FieldErrors::from(error))
}

/// A `resourceVersion` parameter; empty counts as 0.
pub(crate) fn parse_revision(text: &str) -> Result<Revision, ApiError> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse::<u64>().ok().and_then(|v| Revision::try_from(v).ok()).ok_or_else(|| {
        ApiError::bad_request(format!(
            "resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
        ))
    })
}

fn read(call: &Call, filter: &Filter, plan: &Plan) -> Result<Page, ApiError> {
    let store = call.server.registry().store();
    let revision = match plan.want {
        Want::Newest => None,
        Want::Exact(revision) => Some(revision),
        Want::NotOlderThan(revision) => {
            let current = store.revision();
            if revision > current {
                return Err(ApiError::too_large_resource_version(revision, current, 1));
            }
            None
        }
    };
    let (resource, namespace) = (&*call.resource, call.namespace());
    let prefix = key::collection(resource, namespace);
    let keys = match &plan.start {
        Some(start) => {
            let start = [prefix.as_slice(), start.as_bytes()].concat();
            KeyRange::Span { start, end: KeyRange::prefix_end(&prefix) }
        }
        None => filter.keys(resource, namespace),
    };
    // A filter may leave out any entry, so only an unfiltered range can be cut by the store.
    let limit = if filter.is_everything() { plan.limit } else { 0 };
    let range = Range { keys, revision, limit };
    let found = store.range(&range).map_err(|e| match (&plan.start, e) {
        (None, store::ReadError::Compacted { .. }) => {
            ApiError::expired("The resourceVersion for the provided list is too old.")
        }
        (_, error) => registry::read_error(error),
    })?;
    let mut page =
        Page { entries: found.entries, revision: found.revision, next: None, remaining: None };
    if filter.is_everything() {
        if found.more {
            page.remaining = found.count.checked_sub(page.entries.len());
            page.next = next_page(&page, &prefix);
        }
    } else {
        select(&mut page, (filter, resource), plan.limit, &prefix);
    }
    Ok(page)
}

/// Keeps what the filter wants, at most `limit` entries.
fn select(page: &mut Page, (filter, resource): (&Filter, &Resource), limit: usize, prefix: &[u8]) {
    page.entries.retain(|entry| filter.matches(resource, entry));
    if limit > 0 && page.entries.len() > limit {
        page.entries.truncate(limit);
        page.next = next_page(page, prefix);
    }
}

fn next_page(page: &Page, prefix: &[u8]) -> Option<Continue> {
    let last = page.entries.last()?.key.strip_prefix(prefix)?;
    Some(Continue::behind(page.revision, std::str::from_utf8(last).ok()?))
}

/// All entries that a filter wants, now, with the revision they are of.
pub(crate) fn all(call: &Call, filter: &Filter) -> Result<Page, ApiError> {
    read(call, filter, &Plan { want: Want::Newest, start: None, limit: 0 })
}

/// Renders entries chunk by chunk, as the connection takes them.
struct ListBody {
    view: View,
    entries: std::vec::IntoIter<Arc<Entry>>,
    first: bool,
    done: bool,
    head: Option<String>,
    tail: &'static str,
}

impl ListBody {
    fn new(view: View, entries: Vec<Arc<Entry>>, metadata: &Value) -> Self {
        let (head, tail) = view.list_frame(metadata);
        let entries = entries.into_iter();
        Self { view, entries, first: true, done: false, head: Some(head), tail }
    }

    fn chunk(&mut self) -> Result<Bytes, ApiError> {
        let mut out = self.head.take().map(String::into_bytes).unwrap_or_default();
        while out.len() < CHUNK_BYTES {
            let Some(entry) = self.entries.next() else {
                out.extend_from_slice(self.tail.as_bytes());
                self.done = true;
                break;
            };
            if !std::mem::replace(&mut self.first, false) {
                out.push(b',');
            }
            self.view.item(&mut out, &entry)?;
        }
        Ok(out.into())
    }
}

impl http_body::Body for ListBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let chunk = self.chunk().map_err(|e| BodyError::from(e.message));
        if chunk.is_err() {
            self.done = true;
        }
        Poll::Ready(Some(chunk.map(Frame::data)))
    }
}
