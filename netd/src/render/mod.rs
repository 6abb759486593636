//! From the desired state to a ruleset: one table per family.
//!
//! Pure. The first packet of a connection passes one lookup by (address, protocol, port) that leads to a chain named after the
//! number of endpoints, and one lookup by (address, protocol, port, drawn number) that gives the endpoint: its cost doesn't grow with the
//! number of services, and a change touches only its own elements.

mod masquerade;
pub(crate) mod services;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::desired::Desired;
use crate::rules::{
    Chain, ChainName, Elements, Family, Field, Hook, Leads, Map, Rule, Ruleset, Shape,
};

/// The table of one family.
pub(crate) fn render_ruleset(desired: &Desired, family: Family, table: &str) -> Ruleset {
    let mut draft = Draft { family, chains: BTreeMap::new(), maps: BTreeMap::new() };
    services::render(desired, &mut draft);
    masquerade::render(desired, &mut draft);
    for map in draft.maps.values_mut() {
        map.elements.sort_by_key(|(key, _)| *key);
        map.elements.dedup_by_key(|(key, _)| *key);
        map.elements.shrink_to_fit();
    }
    Ruleset { family, table: Arc::from(table), chains: draft.chains, maps: draft.maps }
}

/// A ruleset while it is being written.
struct Draft {
    family: Family,
    chains: BTreeMap<ChainName, Chain>,
    maps: BTreeMap<&'static str, Map>,
}

impl Draft {
    fn chain(&mut self, name: &str, hook: Option<Hook>, rules: Vec<Rule>) {
        self.chains.insert(Arc::from(name), Chain { hook, rules });
    }

    fn map(&mut self, name: &'static str, key: &[Field], leads: Leads, elements: Elements) {
        let shape = Shape { key: key.to_vec(), leads };
        self.maps.insert(name, Map { shape, elements });
    }
}
