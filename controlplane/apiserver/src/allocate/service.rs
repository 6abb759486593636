//! What a Service gets, keeps and gives back over its life (Kubernetes 1.36, service REST storage).
//! Must not write by itself: it returns what has to be compared and changed with the Service.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use apimachinery::{
    field::{FieldError, FieldErrors, Path},
    gvk::GroupKind,
    object,
    status::ApiError,
};
use ipnet::IpNet;
use serde_json::{Value, json};
use store::{Compare, Op};

use super::{addresses, ports, strings};
use crate::{ApiServer, Resource, key, registry::Alongside, stored};

/// Gives out and takes back for one Service.
pub(super) struct Allocator<'a> {
    server: &'a ApiServer,
    service: String,
    addresses_row: Option<Arc<Resource>>,
}

type Picked<T> = Result<T, ApiError>;

impl<'a> Allocator<'a> {
    pub(super) fn new(server: &'a ApiServer, service: &Value) -> Self {
        let addresses_row = server.table().find("networking.k8s.io", "ipaddresses").cloned();
        let service = format!("{}/{}", object::namespace(service), object::name(service));
        Self { server, service, addresses_row }
    }

    pub(super) fn create(&self, object: &mut Value) -> Picked<Alongside> {
        let mut alongside = Alongside::default();
        if needs_address(object) {
            self.take_addresses(object, &BTreeSet::new(), &mut alongside)?;
        } else {
            set_without_address(object, &self.ranges());
        }
        self.take_ports(object, &BTreeSet::new(), &mut alongside)?;
        Ok(alongside)
    }

    pub(super) fn update(&self, object: &mut Value, old: &Value) -> Picked<Alongside> {
        carry_allocated(object, old);
        drop_unneeded(object, old);
        let mut alongside = Alongside::default();
        let (had, had_ports) = (addresses_of(old), ports_of(old));
        if needs_address(object) {
            self.take_addresses(object, &had, &mut alongside)?;
        } else {
            set_without_address(object, &self.ranges());
        }
        self.take_ports(object, &had_ports, &mut alongside)?;
        let has = addresses_of(object);
        for address in had.difference(&has) {
            self.give_back(*address, &mut alongside);
        }
        let has = ports_of(object);
        for port in had_ports.difference(&has) {
            alongside.ops.push(Op::delete(ports::key(*port)));
        }
        Ok(alongside)
    }

    pub(super) fn release(&self, old: &Value) -> Alongside {
        let mut alongside = Alongside::default();
        for address in addresses_of(old) {
            self.give_back(address, &mut alongside);
        }
        alongside.ops.extend(ports_of(old).into_iter().map(|p| Op::delete(ports::key(p))));
        alongside
    }

    /// Frees an address, unless it became another Service's: anybody with the right can delete an `IPAddress`.
    fn give_back(&self, address: IpAddr, alongside: &mut Alongside) {
        let Some(key) = self.address_key(address) else { return };
        let Some(entry) = self.server.registry().store().get(&key) else { return };
        let owner = stored::decode(&entry).map(|object| object["spec"]["parentRef"].clone());
        let owner = owner.unwrap_or_default();
        let of =
            format!("{}/{}", object::text(&owner, &["namespace"]), object::text(&owner, &["name"]));
        if of == self.service {
            alongside.compare.push(Compare::unchanged(key.clone(), entry.mod_revision));
            alongside.ops.push(Op::delete(key));
        }
    }

    fn ranges(&self) -> Vec<IpNet> {
        self.server.config().service_cidrs.clone()
    }

    fn address_key(&self, address: IpAddr) -> Option<Vec<u8>> {
        let row = self.addresses_row.as_ref()?;
        Some(key::object(row, "", &address.to_string()))
    }

    fn is_taken(&self, address: IpAddr) -> bool {
        let store = self.server.registry().store();
        self.address_key(address).is_none_or(|key| store.get(&key).is_some())
    }

    /// Settles families and addresses, and takes those that the Service doesn't have yet.
    fn take_addresses(
        &self,
        object: &mut Value,
        had: &BTreeSet<IpAddr>,
        alongside: &mut Alongside,
    ) -> Picked<()> {
        let ranges = self.ranges();
        let wanted = wanted_addresses(object)?;
        let families = families(object, &wanted, &ranges)?;
        let mut got = Vec::new();
        for (i, range) in families.iter().enumerate() {
            let address = match wanted.get(i) {
                Some(address) if had.contains(address) => *address,
                Some(address) => {
                    self.check_wanted(object, *range, *address)?;
                    *address
                }
                None => addresses::pick(*range, |a| self.is_taken(a)).ok_or_else(|| {
                    ApiError::internal(format!(
                        "failed to allocate a serviceIP: range is full ({range})"
                    ))
                })?,
            };
            if !had.contains(&address) {
                let Some(key) = self.address_key(address) else { continue };
                alongside.compare.push(Compare::absent(key.clone()));
                let value = stored::encode(&addresses::object(address, object));
                alongside.ops.push(Op::put(key, value));
            }
            got.push(address);
        }
        let texts: Vec<String> = got.iter().map(IpAddr::to_string).collect();
        let names: Vec<&str> = families.iter().map(|r| addresses::family_of(*r)).collect();
        let policy = object::text(object, &["spec", "ipFamilyPolicy"]).to_owned();
        let spec = object::map_mut(object::at_mut(object, &["spec"]));
        spec.insert("clusterIP".to_owned(), json!(texts.first()));
        spec.insert("clusterIPs".to_owned(), json!(texts));
        spec.insert("ipFamilies".to_owned(), json!(names));
        if policy.is_empty() {
            let policy = if texts.len() > 1 { "PreferDualStack" } else { "SingleStack" };
            spec.insert("ipFamilyPolicy".to_owned(), policy.into());
        }
        Ok(())
    }

    fn check_wanted(&self, object: &Value, range: IpNet, address: IpAddr) -> Picked<()> {
        let why = if !addresses::is_usable(range, address) {
            "the provided network does not match the current range"
        } else if self.is_taken(address) {
            "provided IP is already allocated"
        } else {
            return Ok(());
        };
        let spec = Path::new("spec");
        let given = strings(object, &["spec", "clusterIPs"]);
        let given = if given.is_empty() { vec![address.to_string()] } else { given };
        let detail = format!("failed to allocate IP {address}: {why}");
        Err(invalid(object, FieldError::invalid(&spec.child("clusterIPs"), json!(given), detail)))
    }

    fn take_ports(
        &self,
        object: &mut Value,
        had: &BTreeSet<u16>,
        alongside: &mut Alongside,
    ) -> Picked<()> {
        if !needs_ports(object) {
            return Ok(());
        }
        let count = object::list(object, &["spec", "ports"]).count();
        let mut mine: BTreeSet<u16> = BTreeSet::new();
        for i in 0..count {
            let given = port_at(object, i);
            let port = match given {
                0 => self.pick_port(object, i, &mine)?,
                given => self.check_port(object, i, (given, had, &mine))?,
            };
            set_port(object, i, port);
            if mine.insert(port) && !had.contains(&port) {
                self.take_port(port, alongside);
            }
        }
        self.take_health_port(object, (had, &mine), alongside)
    }

    fn take_port(&self, port: u16, alongside: &mut Alongside) {
        let key = ports::key(port);
        alongside.compare.push(Compare::absent(key.clone()));
        alongside.ops.push(Op::put(key, self.service.clone()));
    }

    fn is_port_taken(&self, port: u16) -> bool {
        self.server.registry().store().get(&ports::key(port)).is_some()
    }

    /// A free port; TCP and UDP of one port share theirs, so that DNS and the like have one.
    fn pick_port(&self, object: &Value, i: usize, mine: &BTreeSet<u16>) -> Picked<u16> {
        let at = |i: usize, key: &str| object["spec"]["ports"][i][key].clone();
        let twin = (0..i)
            .find(|j| at(*j, "port") == at(i, "port") && at(*j, "protocol") != at(i, "protocol"));
        if let Some(port) = twin.map(|j| port_at(object, j)).filter(|p| *p != 0) {
            return Ok(port);
        }
        let taken = |p: u16| mine.contains(&p) || self.is_port_taken(p);
        ports::pick(self.server.config().node_ports, taken)
            .ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))
    }

    fn check_port(
        &self,
        object: &Value,
        i: usize,
        (port, had, mine): (u16, &BTreeSet<u16>, &BTreeSet<u16>),
    ) -> Picked<u16> {
        let (first, last) = self.server.config().node_ports;
        if had.contains(&port) || mine.contains(&port) {
            return Ok(port);
        }
        let detail = if !(first..=last).contains(&port) {
            format!(
                "provided port is not in the valid range. The range of valid ports is {first}-{last}"
            )
        } else if self.is_port_taken(port) {
            "provided port is already allocated".to_owned()
        } else {
            return Ok(port);
        };
        let spec = Path::new("spec");
        let list = spec.child("ports");
        let item = list.index(i);
        Err(invalid(object, FieldError::invalid(&item.child("nodePort"), port, detail)))
    }

    fn take_health_port(
        &self,
        object: &mut Value,
        (had, mine): (&BTreeSet<u16>, &BTreeSet<u16>),
        alongside: &mut Alongside,
    ) -> Picked<()> {
        if !needs_health_port(object) {
            return Ok(());
        }
        let given = health_port(object);
        if given != 0 && had.contains(&given) {
            return Ok(());
        }
        let taken = |p: u16| mine.contains(&p) || self.is_port_taken(p);
        let port = match given {
            0 => ports::pick(self.server.config().node_ports, taken).ok_or_else(|| {
                ApiError::internal("failed to allocate a nodePort: range is full")
            })?,
            given if taken(given) => {
                let detail = "provided port is already allocated";
                let spec = Path::new("spec");
                let path = spec.child("healthCheckNodePort");
                return Err(invalid(object, FieldError::invalid(&path, given, detail)));
            }
            given => given,
        };
        *object::at_mut(object, &["spec", "healthCheckNodePort"]) = port.into();
        self.take_port(port, alongside);
        Ok(())
    }
}

fn invalid(object: &Value, error: FieldError) -> ApiError {
    let kind = GroupKind::new("", "Service");
    ApiError::invalid(kind, object::name(object), &FieldErrors::from(error))
}

fn kind_of(object: &Value) -> &str {
    match object::text(object, &["spec", "type"]) {
        "" => "ClusterIP",
        kind => kind,
    }
}

fn needs_address(object: &Value) -> bool {
    kind_of(object) != "ExternalName" && object::text(object, &["spec", "clusterIP"]) != "None"
}

fn needs_ports(object: &Value) -> bool {
    match kind_of(object) {
        "NodePort" => true,
        "LoadBalancer" => object["spec"]["allocateLoadBalancerNodePorts"].as_bool() != Some(false),
        _ => false,
    }
}

fn needs_health_port(object: &Value) -> bool {
    kind_of(object) == "LoadBalancer"
        && object::text(object, &["spec", "externalTrafficPolicy"]) == "Local"
}

fn port_at(object: &Value, i: usize) -> u16 {
    let port = object["spec"]["ports"][i]["nodePort"].as_u64().unwrap_or_default();
    u16::try_from(port).unwrap_or_default()
}

fn set_port(object: &mut Value, i: usize, port: u16) {
    let list = object::at_mut(object, &["spec", "ports"]).as_array_mut();
    if let Some(item) = list.and_then(|l| l.get_mut(i)) {
        object::map_mut(item).insert("nodePort".to_owned(), port.into());
    }
}

fn health_port(object: &Value) -> u16 {
    let port = object["spec"]["healthCheckNodePort"].as_u64().unwrap_or_default();
    u16::try_from(port).unwrap_or_default()
}

/// The addresses that a stored Service holds.
fn addresses_of(object: &Value) -> BTreeSet<IpAddr> {
    if !needs_address(object) {
        return BTreeSet::new();
    }
    strings(object, &["spec", "clusterIPs"]).iter().filter_map(|a| a.parse().ok()).collect()
}

/// The node ports that a Service holds.
fn ports_of(object: &Value) -> BTreeSet<u16> {
    let count = object::list(object, &["spec", "ports"]).count();
    (0..count)
        .map(|i| port_at(object, i))
        .chain([health_port(object)])
        .filter(|port| *port != 0)
        .collect()
}

/// The addresses that the client chose.
fn wanted_addresses(object: &Value) -> Picked<Vec<IpAddr>> {
    let mut texts = strings(object, &["spec", "clusterIPs"]);
    let first = object::text(object, &["spec", "clusterIP"]);
    if texts.is_empty() && !first.is_empty() {
        texts.push(first.to_owned());
    }
    let spec = Path::new("spec");
    let list = spec.child("clusterIPs");
    texts
        .iter()
        .enumerate()
        .map(|(i, text)| {
            text.parse().map_err(|_| {
                let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                invalid(object, FieldError::invalid_text(&list.index(i), text, detail))
            })
        })
        .collect()
}

/// One range per family that the Service gets, in its order.
fn families(object: &Value, wanted: &[IpAddr], ranges: &[IpNet]) -> Picked<Vec<IpNet>> {
    let policy = object::text(object, &["spec", "ipFamilyPolicy"]);
    let mut names = strings(object, &["spec", "ipFamilies"]);
    if names.is_empty() {
        names = wanted.iter().map(|a| addresses::family(*a).to_owned()).collect();
    }
    if names.is_empty() {
        names.extend(ranges.first().map(|r| addresses::family_of(*r).to_owned()));
    }
    let spec = Path::new("spec");
    if matches!(policy, "PreferDualStack" | "RequireDualStack") {
        let other =
            ranges.iter().map(|r| addresses::family_of(*r)).find(|f| !names.iter().any(|n| n == f));
        names.extend(other.map(str::to_owned));
        if policy == "RequireDualStack" && names.len() < 2 {
            let detail = "this cluster is not configured for dual-stack services";
            let path = spec.child("ipFamilyPolicy");
            return Err(invalid(object, FieldError::invalid_text(&path, policy, detail)));
        }
    } else if names.len() > 1 && policy == "SingleStack" {
        names.truncate(1);
    }
    let list = spec.child("ipFamilies");
    names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            ranges.iter().copied().find(|r| addresses::family_of(*r) == name).ok_or_else(|| {
                let detail = "not configured on this cluster";
                invalid(object, FieldError::invalid_text(&list.index(i), name, detail))
            })
        })
        .collect()
}

/// A headless Service says `None`; an ExternalName says nothing.
fn set_without_address(object: &mut Value, ranges: &[IpNet]) {
    let headless = kind_of(object) != "ExternalName";
    let families = strings(object, &["spec", "ipFamilies"]);
    let policy = object::text(object, &["spec", "ipFamilyPolicy"]).to_owned();
    let spec = object::map_mut(object::at_mut(object, &["spec"]));
    if !headless {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(key);
        }
        return;
    }
    spec.insert("clusterIPs".to_owned(), json!(["None"]));
    if families.is_empty() {
        let first: Vec<&str> =
            ranges.first().map(|r| addresses::family_of(*r)).into_iter().collect();
        spec.insert("ipFamilies".to_owned(), json!(first));
    }
    if policy.is_empty() {
        spec.insert("ipFamilyPolicy".to_owned(), "SingleStack".into());
    }
}

/// Kubernetes 1.36, `patchAllocatedValues`: what a client leaves out stays as it was allocated.
fn carry_allocated(object: &mut Value, old: &Value) {
    if needs_address(object) && needs_address(old) {
        if object::text(object, &["spec", "clusterIP"]).is_empty() {
            for key in ["clusterIP", "clusterIPs"] {
                if let Some(value) = object::at(old, &["spec", key]) {
                    *object::at_mut(object, &["spec", key]) = value.clone();
                }
            }
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if object::at(object, &["spec", key]).is_none()
                && let Some(value) = object::at(old, &["spec", key])
            {
                *object::at_mut(object, &["spec", key]) = value.clone();
            }
        }
    }
    if needs_ports(object) && needs_ports(old) {
        carry_ports(object, old);
    }
    if needs_health_port(object) && needs_health_port(old) && health_port(object) == 0 {
        let port = health_port(old);
        *object::at_mut(object, &["spec", "healthCheckNodePort"]) = port.into();
    }
}

fn carry_ports(object: &mut Value, old: &Value) {
    let count = object::list(object, &["spec", "ports"]).count();
    let given: BTreeSet<u16> = (0..count).map(|i| port_at(object, i)).collect();
    let same = |a: &Value, b: &Value| a["port"] == b["port"] && a["protocol"] == b["protocol"];
    for i in 0..count {
        if port_at(object, i) != 0 {
            continue;
        }
        let item = &object["spec"]["ports"][i];
        let before = object::list(old, &["spec", "ports"])
            .enumerate()
            .find(|(_, p)| same(p, item))
            .map(|(j, _)| port_at(old, j));
        if let Some(port) = before.filter(|p| *p != 0 && !given.contains(p)) {
            set_port(object, i, port);
        }
    }
}

/// Reachable from outside, so that a policy for outside traffic makes sense.
fn is_external(object: &Value) -> bool {
    matches!(kind_of(object), "NodePort" | "LoadBalancer")
        || object::list(object, &["spec", "externalIPs"]).next().is_some()
}

/// Lets go of a field that nobody has changed.
fn drop_same(object: &mut Value, old: &Value, key: &str) {
    if object["spec"].get(key) == old["spec"].get(key) {
        object::map_mut(object::at_mut(object, &["spec"])).remove(key);
    }
}

/// Kubernetes 1.36, `dropTypeDependentFields`: a change of type lets go of what only the old type has.
fn drop_unneeded(object: &mut Value, old: &Value) {
    if !needs_ports(object) && needs_ports(old) && ports_of(object).is_subset(&ports_of(old)) {
        let list = object::at_mut(object, &["spec", "ports"]);
        for port in list.as_array_mut().into_iter().flatten() {
            object::map_mut(port).remove("nodePort");
        }
    }
    if !needs_health_port(object) && needs_health_port(old) {
        drop_same(object, old, "healthCheckNodePort");
    }
    if !is_external(object) && is_external(old) {
        drop_same(object, old, "externalTrafficPolicy");
    }
    if kind_of(object) != "LoadBalancer" && kind_of(old) == "LoadBalancer" {
        drop_same(object, old, "allocateLoadBalancerNodePorts");
        drop_same(object, old, "loadBalancerClass");
    }
    if object::text(object, &["spec", "sessionAffinity"]) != "ClientIP" {
        drop_same(object, old, "sessionAffinityConfig");
    }
    if !needs_address(object) && kind_of(object) == "ExternalName" && needs_address(old) {
        let spec = object::map_mut(object::at_mut(object, &["spec"]));
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(key);
        }
    }
}
