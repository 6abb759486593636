//! From one ruleset to the next with the fewest steps.
//!
//! Pure. Invariant: the diff, applied to the old ruleset, gives the new one (held by a property test). A change of what a chain
//! hooks into, or of a map's shape, is an installation from scratch.

use std::cmp::Ordering;

use crate::rules::{Data, Elements, Key, Op, Ruleset, Transaction};

/// The steps from `old` to `new`; without any when nothing changed.
pub(crate) fn plan_transaction(old: &Ruleset, new: &Ruleset) -> Transaction {
    if needs_installation(old, new) {
        return new.install();
    }
    let mut ops = Vec::new();
    for (name, map) in &new.maps {
        if !old.maps.contains_key(name) {
            ops.push(Op::AddMap(name, map.shape.clone()));
        }
    }
    for (name, chain) in &new.chains {
        if !old.chains.contains_key(name) {
            ops.push(Op::AddChain(name.clone(), chain.hook));
        }
    }
    for (name, chain) in &new.chains {
        let before = old.chains.get(name);
        if before.is_some_and(|before| before.rules == chain.rules) {
            continue;
        }
        if before.is_some() {
            ops.push(Op::FlushChain(name.clone()));
        }
        ops.extend(chain.rules.iter().map(|rule| Op::AddRule(name.clone(), rule.clone())));
    }
    for (name, map) in &new.maps {
        let before = old.maps.get(name).map_or(&[][..], |map| &map.elements);
        let (delete, add) = plan_elements(before, &map.elements);
        if !delete.is_empty() {
            ops.push(Op::DeleteElements(name, map.shape.clone(), delete));
        }
        if !add.is_empty() {
            ops.push(Op::AddElements(name, map.shape.clone(), add));
        }
    }
    let gone = || old.chains.keys().filter(|name| !new.chains.contains_key(*name));
    ops.extend(gone().map(|name| Op::FlushChain(name.clone())));
    ops.extend(gone().map(|name| Op::DeleteChain(name.clone())));
    Transaction { family: new.family, table: new.table.clone(), ops }
}

fn needs_installation(old: &Ruleset, new: &Ruleset) -> bool {
    let hook_changed = new
        .chains
        .iter()
        .any(|(name, chain)| old.chains.get(name).is_some_and(|before| before.hook != chain.hook));
    // A map that goes would need its rules gone first.
    let shape_changed = old
        .maps
        .iter()
        .any(|(name, map)| new.maps.get(name).is_none_or(|next| next.shape != map.shape));
    old.family != new.family || old.table != new.table || hook_changed || shape_changed
}

/// What to delete and what to add; an element that leads elsewhere is both.
fn plan_elements(old: &[(Key, Data)], new: &Elements) -> (Elements, Elements) {
    let (mut delete, mut add) = (Elements::new(), Elements::new());
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return (delete, add),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((before, _)), Some((after, _))) => before.cmp(after),
        };
        match order {
            Ordering::Less => delete.extend(old.next().cloned()),
            Ordering::Greater => add.extend(new.next().cloned()),
            Ordering::Equal => {
                if let (Some(before), Some(after)) = (old.next(), new.next())
                    && before.1 != after.1
                {
                    delete.push(before.clone());
                    add.push(after.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::rules::{Chain, ChainName, Family, Field, Leads, Map, Shape, Statement, Verdict};

    /// What the kernel does with a transaction, as far as it is refused or changes the table.
    fn apply(ruleset: &mut Ruleset, transaction: &Transaction) {
        for op in &transaction.ops {
            match op.clone() {
                Op::AddTable => {}
                Op::DeleteTable => {
                    ruleset.chains.clear();
                    ruleset.maps.clear();
                }
                Op::AddChain(name, hook) => {
                    let chain = Chain { hook, rules: Vec::new() };
                    assert!(ruleset.chains.insert(name, chain).is_none(), "chain exists");
                }
                Op::FlushChain(name) => ruleset.chains.get_mut(&name).unwrap().rules.clear(),
                Op::DeleteChain(name) => {
                    let used = ruleset.maps.values().flat_map(|map| &map.elements).any(
                        |(_, data)| matches!(data, Data::Verdict(Verdict::Goto(to)) if *to == name),
                    );
                    assert!(!used, "chain {name} is in use");
                    assert!(ruleset.chains.remove(&name).unwrap().rules.is_empty());
                }
                Op::AddRule(name, rule) => ruleset.chains.get_mut(&name).unwrap().rules.push(rule),
                Op::AddMap(name, shape) => {
                    ruleset.maps.insert(name, Map { shape, elements: Vec::new() });
                }
                Op::AddElements(name, _, elements) => {
                    let place = &mut ruleset.maps.get_mut(name).unwrap().elements;
                    for element in elements {
                        if let Data::Verdict(Verdict::Goto(to)) = &element.1 {
                            assert!(ruleset.chains.contains_key(to), "no chain {to}");
                        }
                        let at = place.binary_search_by_key(&element.0, |(key, _)| *key);
                        place.insert(at.expect_err("element exists"), element);
                    }
                }
                Op::DeleteElements(name, _, elements) => {
                    let place = &mut ruleset.maps.get_mut(name).unwrap().elements;
                    for (key, _) in elements {
                        let at = place.binary_search_by_key(&key, |(key, _)| *key);
                        place.remove(at.expect("no such element"));
                    }
                }
            }
        }
    }

    /// A ruleset of services (port to number of endpoints), each leading to the chain for that number.
    fn ruleset(services: &BTreeMap<u16, u32>) -> Ruleset {
        let name = |count: u32| ChainName::from(format!("n{count}"));
        let element = |(port, count): (&u16, &u32)| {
            (Key::new().port(*port), Data::Verdict(Verdict::Goto(name(*count))))
        };
        let shape = Shape { key: vec![Field::Port], leads: Leads::Verdict };
        let map = Map { shape, elements: services.iter().map(element).collect() };
        let rules = vec![vec![Statement::Masquerade]];
        let chain = |count: &u32| (name(*count), Chain { hook: None, rules: rules.clone() });
        Ruleset {
            family: Family::V4,
            table: Arc::from("t"),
            chains: services.values().map(chain).collect(),
            maps: [("services", map)].into(),
        }
    }

    proptest! {
        #[test]
        fn the_diff_leads_to_the_new_ruleset(
            old in prop::collection::btree_map(1u16..40, 1u32..5, 0..20),
            new in prop::collection::btree_map(1u16..40, 1u32..5, 0..20),
        ) {
            let (old, new) = (ruleset(&old), ruleset(&new));
            let plan = plan_transaction(&old, &new);
            prop_assert_eq!(plan.ops.is_empty(), old == new);
            let mut kernel = old.clone();
            apply(&mut kernel, &plan);
            prop_assert_eq!(&kernel, &new);
            apply(&mut kernel, &old.install());
            prop_assert_eq!(&kernel, &old);
        }
    }
}
