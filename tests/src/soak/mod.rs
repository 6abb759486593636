//! What proves the store: `scripts/soak`. Random histories against a model, power cuts, a file system that forgets, killed
//! masters, bugs put in on purpose. Nothing here is linked into a product binary.

pub mod in_process;
pub mod mutations;
