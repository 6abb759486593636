//! What proves the store: `scripts/soak`. Random histories against a model, power cuts, a file system that forgets, killed
//! masters, bugs put in on purpose. Nothing here is linked into a product binary.

pub mod forgetful;
pub mod fuse;
pub mod in_process;
pub mod kill;
pub mod ledger;
pub mod master;
pub mod mutations;
