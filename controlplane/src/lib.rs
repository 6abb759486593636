//! The master: configuration, PKI, wiring and lifecycle of API server, scheduler and controllers.
//!
//! `main` turns flags into a [`config::Config`]; [`run`] turns that into parts, runs and drains them. The other commands are clients of
//! a running master. It owns no behaviour of Kubernetes: that lives in the crates it wires.

pub mod addresses;
pub mod cli;
pub mod components;
pub mod config;
pub mod datastore;
pub mod dns_service;
pub mod election;
pub mod encryption;
pub mod etcd_api;
pub mod figures;
pub mod in_process;
pub mod kubeconfig;
pub mod kubelet_config;
pub mod migrate;
pub mod pki;
pub mod report;
pub mod rotate;
pub mod run;
pub mod schedule;
pub mod secrets;
pub mod snapshot;
pub mod status;
pub mod takeover;
pub mod tls;
pub mod tokens;
pub mod upkeep;
