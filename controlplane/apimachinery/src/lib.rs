//! What an API object is, without I/O: raw JSON with parsed fields, selectors, schemas, patches, requests and Status.
