//! Owns the gRPC face of the store, which is etcd's v3 API. Must not decide what a request means: `txn`, `state`, `watch` and
//! `lease` do; here requests become theirs and answers become messages.

pub(crate) mod messages;
