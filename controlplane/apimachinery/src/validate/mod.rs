//! What is valid: names, labels, ports, addresses, metadata, and then kind by kind, in upstream's words and order.
//! Must not change what it looks at.

mod text;

pub use text::*;
