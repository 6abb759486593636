//! What is proved inside one process, on disks in memory: histories with crashes against a model, power cuts, every byte of a
//! small log. Needs the store and tokio alone, so that the same code judges a store with a bug put in on purpose.

pub mod bytes;
pub mod calls;
pub mod disk;
pub mod generate;
pub mod history;
pub mod judge;
pub mod leases;
pub mod media;
pub mod model;
pub mod past;
pub mod power;
pub mod random;
pub mod seeds;
pub mod watching;
