//! Owns what the API server is told at its start. Must not read files: paths are the binary's matter.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

/// The API server's settings. Keys and certificates come as PEM, already read.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address at which clients and pods reach this master; endpoint of the `kubernetes` Service.
    pub advertise_address: IpAddr,
    /// The port behind `advertise_address`.
    pub advertise_port: u16,
    /// Service CIDRs: one, or one of each family; the first is the primary family.
    pub service_cidrs: Vec<IpNet>,
    /// First and last node port.
    pub node_ports: (u16, u16),
    /// DNS suffix of the cluster.
    pub cluster_domain: String,
    /// The cluster CA (PEM): verifies client certificates, answered at `/cacerts`.
    pub ca_pem: String,
    /// ECDSA P-256 key (PKCS#8 PEM) that signs service-account tokens.
    pub service_account_key_pem: String,
    /// Public keys (SPKI PEM) that verify tokens besides the signing key's own, for rotation.
    pub service_account_public_keys_pem: Vec<String>,
    /// `iss` of service-account tokens.
    pub service_account_issuer: String,
    /// Audiences the API server accepts; the first is the default of new tokens.
    pub api_audiences: Vec<String>,
    /// Whether requests without credentials become `system:anonymous`.
    pub anonymous_auth: bool,
    /// Settings of the tunnel and of streams toward nodes.
    pub node_tls: NodeTls,
    /// This master's name among those that share the datastore; `None`: it is alone.
    pub master_id: Option<String>,
    /// How long an Event is kept after its last write; whole seconds, at least one.
    pub event_ttl: Duration,
    /// How long open requests may go on after shutdown was asked for.
    pub drain: Duration,
}

/// How a node without a tunnel (a real kubelet) is dialled.
#[derive(Debug, Clone, Default)]
pub struct NodeTls {
    /// Client certificate chain (PEM) shown to nodes.
    pub certificate_pem: Option<String>,
    /// Its key (PKCS#8 PEM).
    pub key_pem: Option<String>,
    /// CA of the nodes' serving certificates (PEM); the cluster CA when absent.
    pub ca_pem: Option<String>,
}
