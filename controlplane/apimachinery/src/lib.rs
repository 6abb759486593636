//! What an API object is, without I/O: raw JSON with parsed fields, selectors, schemas, patches, requests and Status.

pub mod default;
pub mod field;
#[cfg(test)]
mod fuzz;
pub mod gvk;
pub mod negotiate;
pub mod object;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod request_info;
pub mod scan;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strict;
pub mod validate;
