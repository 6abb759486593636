//! Owns how events are cut into responses. Pure.

use std::sync::Arc;

use crate::grpc::messages::{Event, EventType, KeyValue};
use crate::revision;

/// A response is of about this size: revisions are not torn apart for it, except where the client takes fragments.
pub(super) const BYTES_MAX: usize = 512 << 10;

/// How a client wants its events.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// With the key before.
    pub(super) previous: bool,
    /// A response that is too large comes in pieces.
    pub(super) fragment: bool,
}

/// Events of one response.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<'a, E = Arc<revision::Event>> {
    events: &'a [E],
    /// More of the same follows.
    pub(super) fragment: bool,
}

impl Part<'_> {
    pub(super) fn messages(&self, shape: Shape) -> Vec<Event> {
        self.events.iter().map(|event| message(event, shape)).collect()
    }
}

/// Cuts between revisions, and within one that is too large for a client that takes fragments.
pub(super) fn parts(events: &[Arc<revision::Event>], shape: Shape) -> Vec<Part<'_>> {
    let mut parts: Vec<Part<'_>> = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (at, event) in events.iter().enumerate() {
        let size = event_bytes(event, shape);
        let torn = at > 0 && events[at - 1].revision == event.revision;
        if at > begin && bytes + size > BYTES_MAX && (!torn || shape.fragment) {
            parts.push(Part { events: &events[begin..at], fragment: torn });
            (begin, bytes) = (at, 0);
        }
        bytes += size;
    }
    if begin < events.len() {
        parts.push(Part { events: &events[begin..], fragment: false });
    }
    parts
}

fn event_bytes(event: &revision::Event, shape: Shape) -> usize {
    // Numbers and prefixes of a message, about.
    const OVERHEAD_BYTES: usize = 64;
    let before = event.before.as_ref().filter(|_| shape.previous);
    let entries = event.after.iter().chain(before);
    OVERHEAD_BYTES + event.key().len() + entries.map(|e| e.key.len() + e.value.len()).sum::<usize>()
}

/// A deletion has the key and its revision, and nothing else.
fn message(event: &revision::Event, shape: Shape) -> Event {
    let prev_kv = event.before.as_ref().filter(|_| shape.previous);
    let prev_kv = prev_kv.map(|entry| KeyValue::from(&**entry));
    let (r#type, kv) = match (&event.after, &event.before) {
        (Some(after), _) => (EventType::Put, KeyValue::from(&**after)),
        (None, before) => {
            let key = before.as_ref().map(|entry| entry.key.clone()).unwrap_or_default();
            let mod_revision = event.revision;
            (EventType::Delete, KeyValue { key, mod_revision, ..KeyValue::default() })
        }
    };
    Event { r#type: r#type.into(), kv: Some(kv), prev_kv }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revision::{Entry, Extracts};

    fn event(revision: i64, bytes: usize) -> Arc<revision::Event> {
        let value = vec![0; bytes].into();
        let (create_revision, mod_revision) = (revision, revision);
        let (key, extracted) = ("k".into(), Extracts::default());
        let entry =
            Entry { key, value, create_revision, mod_revision, version: 1, lease: 0, extracted };
        revision::Event::new(revision, None, Some(Arc::new(entry)))
    }

    fn cut(events: &[Arc<revision::Event>], fragment: bool) -> Vec<(usize, bool)> {
        let parts = parts(events, Shape { previous: false, fragment });
        parts.iter().map(|part| (part.events.len(), part.fragment)).collect()
    }

    #[test]
    fn responses_end_with_revisions() {
        let large = BYTES_MAX / 2 + 1;
        let events = [event(2, 10), event(3, large), event(4, large), event(4, large)];
        assert_eq!(cut(&events, false), [(2, false), (2, false)]);
        assert_eq!(cut(&events, true), [(2, false), (1, true), (1, false)]);
        assert_eq!(cut(&[], true), []);
    }
}
