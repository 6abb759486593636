//! Owns what a master is told: flags over file over defaults, checked once. Must not act, nor look at the machine: what depends on it
//! stays `None` and is decided by `run`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use crate::cli::{CONFIG_FILE, RunArgs, ScheduleArgs};
use crate::datastore::Datastore;
use crate::schedule::Schedule;

/// The configuration of a master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Folder of all state.
    pub data_dir: PathBuf,
    /// File of the cluster secret; `None`: that in the data folder.
    pub cluster_secret_file: Option<PathBuf>,
    /// The etcd cluster that holds the state; `None`: a log in the data folder.
    pub datastore: Option<Datastore>,
    /// Snapshots to take; `None`: none.
    pub snapshots: Option<Schedule>,
    /// Address to listen on; `None`: every address, of both families.
    pub bind_address: Option<IpAddr>,
    /// Port of the API.
    pub secure_port: u16,
    /// Address and port of the etcd API over TLS; `None`: its Unix socket alone.
    pub etcd_listen_address: Option<SocketAddr>,
    /// Address at which others reach this master; `None`: as the machine's routes say.
    pub advertise_address: Option<IpAddr>,
    /// Ranges of the services' addresses, at most one per family.
    pub service_cidrs: Vec<IpNet>,
    /// Ranges of the pods' addresses, at most one per family.
    pub cluster_cidrs: Vec<IpNet>,
    /// Prefix length of a node's range in the IPv4 cluster CIDR.
    pub node_mask_ipv4: u8,
    /// First and last node port.
    pub node_ports: (u16, u16),
    /// Address of the cluster's DNS.
    pub cluster_dns: IpAddr,
    /// Domain of the cluster's DNS.
    pub cluster_domain: String,
    /// Further names in the API's certificate.
    pub tls_sans: Vec<String>,
    /// How long a node may be silent.
    pub node_monitor_grace: Duration,
    /// How long an Event is kept.
    pub event_ttl: Duration,
    /// Events live in memory only.
    pub volatile_events: bool,
    /// Filter of the log.
    pub log_filter: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{file}: {source}")]
    Parse {
        /// The file.
        file: String,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value is not possible.
    #[error("--{flag}: {value:?} {problem}")]
    Value {
        /// The flag, or the key of the file.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The file: the flags of `run` under their names.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    cluster_secret_file: Option<PathBuf>,
    datastore_endpoints: Option<OneOrMore<String>>,
    datastore_cafile: Option<PathBuf>,
    datastore_certfile: Option<PathBuf>,
    datastore_keyfile: Option<PathBuf>,
    snapshot_schedule: Option<String>,
    snapshot_retention: Option<usize>,
    snapshot_dir: Option<PathBuf>,
    bind_address: Option<IpAddr>,
    secure_port: Option<u16>,
    etcd_listen_address: Option<SocketAddr>,
    advertise_address: Option<IpAddr>,
    service_cluster_ip_range: Option<OneOrMore<IpNet>>,
    cluster_cidr: Option<OneOrMore<IpNet>>,
    node_cidr_mask_size: Option<u8>,
    service_node_port_range: Option<String>,
    cluster_dns: Option<IpAddr>,
    cluster_domain: Option<String>,
    tls_san: Option<OneOrMore<String>>,
    node_monitor_grace_period: Option<String>,
    event_ttl: Option<String>,
    volatile_events: Option<bool>,
    log_level: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> From<OneOrMore<T>> for Vec<T> {
    fn from(own: OneOrMore<T>) -> Self {
        match own {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        }
    }
}

impl Config {
    /// Flags over the file that they name, or the usual one where it exists.
    ///
    /// # Errors
    /// The file or a value is not possible.
    pub fn load(args: &RunArgs) -> Result<Self, ConfigError> {
        let path = args.config.clone().unwrap_or_else(|| CONFIG_FILE.into());
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && args.config.is_none() => {
                String::new()
            }
            Err(source) => {
                return Err(ConfigError::Read { file: path.display().to_string(), source });
            }
        };
        Self::merge(args, &text, &path)
    }

    /// Flags over the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// The text or a value is not possible.
    pub fn merge(args: &RunArgs, text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|source| ConfigError::Parse {
            file: path.display().to_string(),
            source: Box::new(source),
        })?;
        let args = args.clone();
        let service_cidrs =
            args.service_cluster_ip_range.or(file.service_cluster_ip_range.map(Into::into));
        let service_cidrs = families("service-cluster-ip-range", service_cidrs, SERVICE_CIDR)?;
        let cluster_cidrs = args.cluster_cidr.or(file.cluster_cidr.map(Into::into));
        let cluster_cidrs = families("cluster-cidr", cluster_cidrs, CLUSTER_CIDR)?;
        let ports = args.service_node_port_range.or(file.service_node_port_range);
        let grace = args.node_monitor_grace_period.or(file.node_monitor_grace_period);
        let mask = args.node_cidr_mask_size.or(file.node_cidr_mask_size).unwrap_or(24);
        let (store, endpoints) = (args.datastore, file.datastore_endpoints.map(Into::into));
        let snapshots = ScheduleArgs {
            snapshot_schedule: args.snapshots.snapshot_schedule.or(file.snapshot_schedule),
            snapshot_retention: args.snapshots.snapshot_retention.or(file.snapshot_retention),
            snapshot_dir: args.snapshots.snapshot_dir.or(file.snapshot_dir),
        };
        let config = Self {
            snapshots: schedule(snapshots, &args.data_dir)?,
            data_dir: args.data_dir,
            cluster_secret_file: args.cluster_secret_file.or(file.cluster_secret_file),
            datastore: Datastore {
                endpoints: store.datastore_endpoints.or(endpoints).unwrap_or_default(),
                ca_file: store.datastore_cafile.or(file.datastore_cafile),
                certificate_file: store.datastore_certfile.or(file.datastore_certfile),
                key_file: store.datastore_keyfile.or(file.datastore_keyfile),
            }
            .checked()?,
            bind_address: args.bind_address.or(file.bind_address),
            secure_port: args.secure_port.or(file.secure_port).unwrap_or(6443),
            etcd_listen_address: args.etcd_listen_address.or(file.etcd_listen_address),
            advertise_address: args.advertise_address.or(file.advertise_address),
            cluster_dns: cluster_dns(args.cluster_dns.or(file.cluster_dns), &service_cidrs)?,
            service_cidrs,
            node_mask_ipv4: node_mask(mask, &cluster_cidrs)?,
            cluster_cidrs,
            node_ports: node_ports(ports.as_deref().unwrap_or("30000-32767"))?,
            cluster_domain: args
                .cluster_domain
                .or(file.cluster_domain)
                .unwrap_or_else(|| "cluster.local".into()),
            tls_sans: args.tls_san.or(file.tls_san.map(Into::into)).unwrap_or_default(),
            node_monitor_grace: duration(
                "node-monitor-grace-period",
                grace.as_deref().unwrap_or("40s"),
            )?,
            event_ttl: event_ttl(args.event_ttl.or(file.event_ttl).as_deref().unwrap_or("1h"))?,
            volatile_events: args.volatile_events.or(file.volatile_events).unwrap_or_default(),
            log_filter: args.log_level.or(file.log_level).unwrap_or_else(|| "info".into()),
        };
        Ok(config)
    }

    /// The address of the `kubernetes` Service: the first of the primary range.
    pub fn kubernetes_service_address(&self) -> Option<IpAddr> {
        self.service_cidrs.first().and_then(|cidr| nth_address(cidr, 1))
    }
}

const SERVICE_CIDR: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 96, 0, 0), 12);
/// As elsewhere: two and a half days of one each twelve hours.
const SNAPSHOTS_KEPT: usize = 5;
/// Shorter ones would only wear out the disk.
const SNAPSHOT_PERIOD_MIN: Duration = Duration::from_secs(10);
const CLUSTER_CIDR: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 244, 0, 0), 16);
/// As everywhere in Kubernetes: the DNS service is the range's tenth address.
const DNS_INDEX: u32 = 10;

/// A value that is not possible.
pub(crate) fn value(
    flag: &'static str,
    value: impl ToString,
    problem: &'static str,
) -> ConfigError {
    ConfigError::Value { flag, value: value.to_string(), problem }
}

fn schedule(given: ScheduleArgs, data_dir: &Path) -> Result<Option<Schedule>, ConfigError> {
    let retention = given.snapshot_retention.unwrap_or(SNAPSHOTS_KEPT);
    if retention == 0 {
        return Err(value("snapshot-retention", retention, "is not at least 1"));
    }
    let Some(period) = given.snapshot_schedule else { return Ok(None) };
    let period = duration("snapshot-schedule", &period)?;
    if period < SNAPSHOT_PERIOD_MIN {
        return Err(value("snapshot-schedule", format!("{period:?}"), "is less than ten seconds"));
    }
    let dir = given.snapshot_dir.unwrap_or_else(|| data_dir.join("snapshots"));
    Ok(Some(Schedule { period, retention, dir }))
}

fn families(
    flag: &'static str,
    given: Option<Vec<IpNet>>,
    (address, length): (Ipv4Addr, u8),
) -> Result<Vec<IpNet>, ConfigError> {
    let Some(given) = given else { return Ok(vec![IpNet::new_assert(address.into(), length)]) };
    let text = given.iter().map(IpNet::to_string).collect::<Vec<_>>().join(",");
    let v4 = given.iter().filter(|cidr| cidr.addr().is_ipv4()).count();
    if given.is_empty() || v4 > 1 || given.len() - v4 > 1 {
        return Err(value(flag, text, "needs one range, or one of each family"));
    }
    if given.iter().any(|cidr| cidr.addr() != cidr.network()) {
        return Err(value(flag, text, "has bits behind its prefix"));
    }
    Ok(given)
}

/// The `n`th address of a range, if it has so many.
pub(crate) fn nth_address(cidr: &IpNet, n: u32) -> Option<IpAddr> {
    let address: IpAddr = match cidr.network() {
        IpAddr::V4(base) => base.to_bits().checked_add(n).map(Ipv4Addr::from_bits)?.into(),
        IpAddr::V6(base) => {
            base.to_bits().checked_add(n.into()).map(std::net::Ipv6Addr::from_bits)?.into()
        }
    };
    cidr.contains(&address).then_some(address)
}

fn cluster_dns(given: Option<IpAddr>, services: &[IpNet]) -> Result<IpAddr, ConfigError> {
    let usual = services.first().and_then(|cidr| nth_address(cidr, DNS_INDEX));
    let text = given.map_or_else(String::new, |address| address.to_string());
    let address = given.or(usual);
    let inside = |address: &IpAddr| services.iter().any(|cidr| cidr.contains(address));
    address.filter(inside).ok_or_else(|| value("cluster-dns", text, "is not in the service range"))
}

fn node_mask(mask: u8, cluster: &[IpNet]) -> Result<u8, ConfigError> {
    let v4 = cluster.iter().find(|cidr| cidr.addr().is_ipv4());
    if v4.is_none_or(|cidr| cidr.prefix_len() <= mask && mask <= 30) {
        return Ok(mask);
    }
    Err(value("node-cidr-mask-size", mask, "is not between the cluster CIDR's length and 30"))
}

fn node_ports(text: &str) -> Result<(u16, u16), ConfigError> {
    let parsed = text.split_once('-').and_then(|(first, last)| {
        let (first, last) = (first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?);
        (first > 0 && first <= last).then_some((first, last))
    });
    parsed.ok_or_else(|| value("service-node-port-range", text, "is not FIRST-LAST"))
}

/// A positive duration such as `40s` or `1h30m`.
///
/// # Errors
/// The text is something else.
pub fn duration(flag: &'static str, text: &str) -> Result<Duration, ConfigError> {
    let parsed = text.parse::<jiff::SignedDuration>().ok();
    let positive = parsed.and_then(|parsed| Duration::try_from(parsed).ok());
    positive.ok_or_else(|| value(flag, text, "is not a duration such as 40s, 15m or 24h"))
}

/// Leases count in seconds.
fn event_ttl(text: &str) -> Result<Duration, ConfigError> {
    let ttl = duration("event-ttl", text)?;
    let least = Duration::from_secs(1);
    if ttl < least { Err(value("event-ttl", text, "is less than a second")) } else { Ok(ttl) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(args: &RunArgs, text: &str) -> Result<Config, String> {
        Config::merge(args, text, Path::new("c.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_override_the_file_and_the_file_the_defaults() {
        let text = "secure-port = 7443\ncluster-domain = \"a.b\"\ntls-san = \"m.example\"\n\
                    service-cluster-ip-range = [\"10.43.0.0/16\", \"fd00::/108\"]";
        let args = RunArgs { secure_port: Some(8443), ..RunArgs::default() };
        let config = merge(&args, text).unwrap();
        assert_eq!((config.secure_port, config.cluster_domain.as_str()), (8443, "a.b"));
        assert_eq!(config.tls_sans, ["m.example"]);
        assert_eq!(config.cluster_dns.to_string(), "10.43.0.10");
        assert_eq!(config.kubernetes_service_address().unwrap().to_string(), "10.43.0.1");
        assert_eq!(config.node_monitor_grace, Duration::from_secs(40));
        assert_eq!(config.node_ports, (30000, 32767));
        assert_eq!(config.cluster_cidrs[0].to_string(), "10.244.0.0/16");
    }

    #[test]
    fn what_is_not_possible_is_named() {
        for (text, expected) in [
            ("secure_port = 1", "unknown field"),
            ("snapshot-schedule = \"1s\"", "less than ten seconds"),
            ("snapshot-retention = 0", "--snapshot-retention: \"0\" is not at least 1"),
            (
                "service-node-port-range = \"5-4\"",
                "--service-node-port-range: \"5-4\" is not FIRST-LAST",
            ),
            ("cluster-cidr = [\"10.0.0.0/16\", \"10.1.0.0/16\"]", "one of each family"),
            ("cluster-cidr = \"10.0.0.1/16\"", "bits behind its prefix"),
            ("cluster-dns = \"192.168.0.1\"", "not in the service range"),
            ("node-cidr-mask-size = 8", "--node-cidr-mask-size: \"8\""),
            ("node-monitor-grace-period = \"soon\"", "\"soon\" is not a duration"),
            ("event-ttl = \"0s\"", "--event-ttl: \"0s\" is less than a second"),
        ] {
            let error = merge(&RunArgs::default(), text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
