//! What the controllers are told from outside: CA, address ranges, periods, the clock.
//! Must not read files or the environment; the binary does.

use ipnet::IpNet;
use jiff::Timestamp;
use std::{fmt, sync::Arc, time::Duration};

/// Settings of all controllers.
#[derive(Clone)]
pub struct Config {
    /// PEM certificate of the cluster CA, which signs node certificates.
    pub cluster_ca_cert_pem: String,
    /// PEM (PKCS#8) key of the cluster CA, ECDSA P-256.
    pub cluster_ca_key_pem: String,
    /// PEM bundle published as ConfigMap `kube-root-ca.crt` in every namespace.
    pub root_ca_pem: String,
    /// Ranges from which nodes get their pod CIDR, at most one per address family.
    pub cluster_cidrs: Vec<IpNet>,
    /// Prefix length of a node's IPv4 pod CIDR (Kubernetes: 24).
    pub node_mask_ipv4: u8,
    /// Prefix length of a node's IPv6 pod CIDR (Kubernetes: 64).
    pub node_mask_ipv6: u8,
    /// A node that did not renew its lease for this long is unreachable.
    pub node_monitor_grace: Duration,
    /// How often the age of leases is looked at.
    pub node_monitor_period: Duration,
    /// Life of a signed certificate where the request names none.
    pub certificate_duration: Duration,
    /// Finished pods above this number are deleted, oldest first (Kubernetes: 12,500; small masters keep fewer).
    pub terminated_pods_max: usize,
    /// The wall clock; tests turn it. Liveness never depends on it (it uses tokio's monotonic clock).
    pub clock: Clock,
}

impl Config {
    /// Kubernetes' defaults with the given CA.
    #[must_use]
    pub fn new(
        cluster_ca_cert_pem: String,
        cluster_ca_key_pem: String,
        root_ca_pem: String,
    ) -> Self {
        Self {
            cluster_ca_cert_pem,
            cluster_ca_key_pem,
            root_ca_pem,
            cluster_cidrs: Vec::new(),
            node_mask_ipv4: 24,
            node_mask_ipv6: 64,
            node_monitor_grace: Duration::from_secs(40),
            node_monitor_period: Duration::from_secs(1),
            certificate_duration: Duration::from_secs(365 * 24 * 3600),
            terminated_pods_max: 1000,
            clock: Clock::system(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("cluster_cidrs", &self.cluster_cidrs)
            .field("node_monitor_grace", &self.node_monitor_grace)
            .finish_non_exhaustive()
    }
}

/// Where wall-clock time comes from.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(Timestamp::now))
    }

    /// A clock of the caller's, for tests and simulation.
    pub fn from_fn(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The current time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
