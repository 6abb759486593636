//! Owns the layout of keys: `/registry/<prefix>/[<namespace>/]<name>`. Must not read the store.

use crate::resource::{Resource, ResourceTable};

/// Where every key begins.
pub const ROOT: &str = "/registry/";

/// The key of one object.
pub fn object(resource: &Resource, namespace: &str, name: &str) -> Vec<u8> {
    let mut key = collection(resource, namespace);
    key.extend_from_slice(name.as_bytes());
    key
}

/// What the keys of a collection begin with: all namespaces when `namespace` is empty.
pub fn collection(resource: &Resource, namespace: &str) -> Vec<u8> {
    let mut key = format!("{ROOT}{}/", resource.prefix);
    if resource.is_namespaced() && !namespace.is_empty() {
        key.push_str(namespace);
        key.push('/');
    }
    key.into_bytes()
}

/// What a key says.
#[derive(Debug, Clone, Copy)]
pub struct Parsed<'a> {
    /// The row behind the prefix.
    pub resource: &'a Resource,
    /// Empty for resources of the cluster.
    pub namespace: &'a str,
    /// The object's name.
    pub name: &'a str,
}

/// Reads a key; `None` for what no resource stores.
pub fn parse<'a>(table: &'a ResourceTable, key: &'a [u8]) -> Option<Parsed<'a>> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(ROOT)?;
    let one = rest.find('/')?;
    let two = rest.get(one + 1..)?.find('/').map(|at| one + 1 + at);
    let (resource, rest) = [two, Some(one)].into_iter().flatten().find_map(|at| {
        let resource = table.by_prefix(rest.get(..at)?)?;
        Some((resource, rest.get(at + 1..)?))
    })?;
    let (namespace, name) = match resource.is_namespaced() {
        true => rest.split_once('/')?,
        false => ("", rest),
    };
    Some(Parsed { resource, namespace, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_there_and_back() {
        let table = ResourceTable::builtin();
        for row in table.iter().filter(|r| r.is_stored() && r.convert.is_none()) {
            let namespace = if row.is_namespaced() { "ns" } else { "" };
            let key = object(row, namespace, "a:b.c");
            let parsed = parse(&table, &key).unwrap();
            assert_eq!((parsed.namespace, parsed.name), (namespace, "a:b.c"), "{}", row.prefix);
            assert_eq!(parsed.resource.kind, row.kind);
        }
        assert!(parse(&table, b"/registry/ranges/servicenodeports/30000").is_none());
        assert!(parse(&table, b"/registry/\xff").is_none());
    }
}
