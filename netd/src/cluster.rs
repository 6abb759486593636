//! What netd knows of the cluster: services, endpoints, nodes, as compact values.
//!
//! One copy, shared by rules, routes and DNS. Must not hold API objects: only the fields that rules or names are made of.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Protocol;
use crate::topology::NodeView;

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }
}

/// The fields of a `Service`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    pub(crate) cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub(crate) headless: bool,
    pub(crate) external_name: Option<Box<str>>,
    pub(crate) external_ips: Vec<IpAddr>,
    /// The load balancer's addresses (ipMode VIP).
    pub(crate) load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`; empty: from anywhere.
    pub(crate) source_ranges: Vec<IpNet>,
    pub(crate) ports: Vec<ServicePort>,
    /// Seconds of `sessionAffinity: ClientIP`.
    pub(crate) affinity_seconds: Option<u32>,
    /// `externalTrafficPolicy: Local`.
    pub(crate) external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub(crate) internal_local: bool,
    /// Another proxy's (`service.kubernetes.io/service-proxy-name`): names, but no rules.
    pub(crate) foreign: bool,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServicePort {
    pub(crate) name: Box<str>,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
}

/// The fields of an `EndpointSlice`; those without a service aren't kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Slice {
    /// Name of the service, in the slice's namespace.
    pub(crate) service: Box<str>,
    pub(crate) ports: Vec<SlicePort>,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// One port of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlicePort {
    pub(crate) name: Box<str>,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) address: IpAddr,
    pub(crate) ready: bool,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
    pub(crate) node: Option<Box<str>>,
    pub(crate) hostname: Option<Box<str>>,
    pub(crate) for_zones: Vec<Box<str>>,
    pub(crate) for_nodes: Vec<Box<str>>,
}

/// One object of the three kinds, as it came.
#[derive(Debug, Clone)]
pub(crate) enum Object {
    Service(Key, Service),
    Slice(Key, Slice),
    Node(Box<str>, NodeView),
}

/// Which kind a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Service,
    Slice,
    Node,
}

/// All that is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cluster {
    pub(crate) services: BTreeMap<Key, Service>,
    /// By service, then by slice name.
    pub(crate) slices: BTreeMap<Key, BTreeMap<Box<str>, Slice>>,
    /// Each slice's service: a slice can change it.
    slice_services: BTreeMap<Key, Box<str>>,
    pub(crate) nodes: BTreeMap<Box<str>, NodeView>,
}

impl Cluster {
    /// Takes an object in; says whether that changed anything.
    pub(crate) fn insert(&mut self, object: Object) -> bool {
        match object {
            Object::Service(key, service) => {
                self.services.insert(key, service.clone()).as_ref() != Some(&service)
            }
            Object::Slice(key, slice) => {
                let moved =
                    self.slice_services.get(&key).is_some_and(|service| *service != slice.service);
                if moved {
                    self.remove_slice(&key);
                }
                self.slice_services.insert(key.clone(), slice.service.clone());
                let service = Key { namespace: key.namespace, name: slice.service.clone() };
                let slices = self.slices.entry(service).or_default();
                slices.insert(key.name, slice.clone()).as_ref() != Some(&slice)
            }
            Object::Node(name, node) => {
                self.nodes.insert(name, node.clone()).as_ref() != Some(&node)
            }
        }
    }

    /// Forgets an object; says whether it was known.
    pub(crate) fn remove(&mut self, kind: Kind, key: &Key) -> bool {
        match kind {
            Kind::Service => self.services.remove(key).is_some(),
            Kind::Slice => self.remove_slice(key),
            Kind::Node => self.nodes.remove(&key.name).is_some(),
        }
    }

    /// Makes the objects of a kind exactly these: the end of a list.
    pub(crate) fn replace(&mut self, kind: Kind, objects: Vec<Object>) -> bool {
        let mut next = Cluster::default();
        for object in objects {
            next.insert(object);
        }
        match kind {
            Kind::Service => swap(&mut self.services, next.services),
            Kind::Slice => {
                self.slice_services = next.slice_services;
                swap(&mut self.slices, next.slices)
            }
            Kind::Node => swap(&mut self.nodes, next.nodes),
        }
    }

    fn remove_slice(&mut self, key: &Key) -> bool {
        let Some(name) = self.slice_services.remove(key) else { return false };
        let service = Key { namespace: key.namespace.clone(), name };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(&key.name);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        true
    }
}

fn swap<T: PartialEq>(place: &mut T, next: T) -> bool {
    let changed = *place != next;
    *place = next;
    changed
}
