//! RBAC's policy rules: what one rule allows, and whether rules cover other rules.
//!
//! Pure. Where rules come from is `rbac`'s.

use super::attributes::{Attributes, ResourceTarget, Target};
use serde::{Deserialize, Serialize};

/// `rbac.authorization.k8s.io/v1` `PolicyRule`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Verbs, or `*`.
    pub verbs: Vec<String>,
    /// API groups, or `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// Resources, `resource/subresource`, `*/subresource` or `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Names; empty means all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths, with an optional `*` at the end.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    /// Every verb on every resource.
    pub fn everything() -> Self {
        let all = || vec!["*".to_owned()];
        Self { verbs: all(), api_groups: all(), resources: all(), ..Self::default() }
    }

    /// Every verb on every path.
    pub fn every_path() -> Self {
        let all = || vec!["*".to_owned()];
        Self { verbs: all(), non_resource_urls: all(), ..Self::default() }
    }

    /// Whether the rule allows what is asked. The subject has been matched already.
    pub fn allows(&self, attributes: &Attributes<'_>) -> bool {
        has(&self.verbs, attributes.verb)
            && match attributes.target {
                Target::Path(path) => self.allows_path(path),
                Target::Resource(target) => self.allows_resource(&target),
            }
    }

    fn allows_resource(&self, target: &ResourceTarget<'_>) -> bool {
        has(&self.api_groups, target.group)
            && self.resources.iter().any(|resource| covers_resource(resource, target))
            && (self.resource_names.is_empty()
                || self.resource_names.iter().any(|name| name == target.name))
    }

    fn allows_path(&self, path: &str) -> bool {
        self.non_resource_urls.iter().any(|url| covers_path(url, path))
    }

    /// This rule taken apart into rules of one verb on one thing.
    fn atoms(&self) -> Vec<Rule> {
        let one = |text: &String| vec![text.clone()];
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                let rule =
                    Rule { verbs: one(verb), non_resource_urls: one(url), ..Rule::default() };
                atoms.push(rule);
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let rule = Rule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..Rule::default()
                    };
                    if self.resource_names.is_empty() {
                        atoms.push(rule);
                    } else {
                        let named = |name| Rule { resource_names: one(name), ..rule.clone() };
                        atoms.extend(self.resource_names.iter().map(named));
                    }
                }
            }
        }
        atoms
    }

    fn covers_atom(&self, atom: &Rule) -> bool {
        let all = |mine: &[String], theirs: &[String]| theirs.iter().all(|item| has(mine, item));
        if !all(&self.verbs, &atom.verbs) {
            return false;
        }
        if let Some(url) = atom.non_resource_urls.first() {
            return self.non_resource_urls.iter().any(|mine| {
                mine == url
                    || mine.strip_suffix('*').is_some_and(|prefix| {
                        url.strip_suffix('*').unwrap_or(url).starts_with(prefix)
                    })
            });
        }
        let names = self.resource_names.is_empty()
            || (!atom.resource_names.is_empty()
                && atom.resource_names.iter().all(|name| self.resource_names.contains(name)));
        all(&self.api_groups, &atom.api_groups)
            && names
            && atom.resources.iter().all(|resource| covers_resource_text(&self.resources, resource))
    }

    /// Upstream's short text of a rule in an escalation error.
    pub fn describe(&self) -> String {
        let mut parts = Vec::new();
        let mut part = |name: &str, list: &[String]| {
            if !list.is_empty() {
                let quoted: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
                parts.push(format!("{name}:[{}]", quoted.join(" ")));
            }
        };
        part("APIGroups", &self.api_groups);
        part("Resources", &self.resources);
        part("ResourceNames", &self.resource_names);
        part("NonResourceURLs", &self.non_resource_urls);
        part("Verbs", &self.verbs);
        format!("{{{}}}", parts.join(", "))
    }
}

/// What `wanted` allows and no rule of `owned` does, one verb on one thing each; empty when all is covered.
pub fn uncovered(owned: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing: Vec<Rule> = Vec::new();
    for atom in wanted.iter().flat_map(Rule::atoms) {
        let covered = owned.iter().any(|rule| rule.covers_atom(&atom));
        if !covered && !missing.contains(&atom) {
            missing.push(atom);
        }
    }
    missing
}

fn covers_resource(resource: &str, target: &ResourceTarget<'_>) -> bool {
    if resource == "*" {
        return true;
    }
    match resource.split_once('/') {
        None => target.subresource.is_empty() && resource == target.resource,
        Some((of, subresource)) => {
            subresource == target.subresource
                && !subresource.is_empty()
                && (of == "*" || of == target.resource)
        }
    }
}

fn covers_resource_text(owned: &[String], wanted: &str) -> bool {
    owned.iter().any(|mine| {
        mine == "*"
            || mine == wanted
            || mine.strip_prefix("*/").is_some_and(|mine| {
                wanted.split_once('/').is_some_and(|(_, wanted)| wanted == mine)
            })
    })
}

fn covers_path(url: &str, path: &str) -> bool {
    match url.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => url == path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::User;

    fn rule(verbs: &str, groups: &str, resources: &str) -> Rule {
        let of = |text: &str| text.split(',').map(str::to_owned).collect();
        Rule {
            verbs: of(verbs),
            api_groups: of(groups),
            resources: of(resources),
            ..Rule::default()
        }
    }

    #[test]
    fn a_rule_allows_what_it_names() {
        let user = User::default();
        let ask = |rule: &Rule, verb, group, resource, subresource| {
            let target = ResourceTarget { group, resource, subresource, ..Default::default() };
            rule.allows(&Attributes { user: &user, verb, target: Target::Resource(target) })
        };
        let pods = rule("get,list", "", "pods,pods/log");
        assert!(ask(&pods, "get", "", "pods", ""));
        assert!(ask(&pods, "get", "", "pods", "log"));
        assert!(!ask(&pods, "get", "", "pods", "exec"));
        assert!(!ask(&pods, "delete", "", "pods", ""));
        assert!(!ask(&pods, "get", "apps", "pods", ""));
        let scale = rule("*", "*", "*/scale");
        assert!(ask(&scale, "update", "apps", "deployments", "scale"));
        assert!(!ask(&scale, "update", "apps", "deployments", ""));
        let named = Rule { resource_names: vec!["a".into()], ..rule("get", "", "secrets") };
        assert!(!ask(&named, "get", "", "secrets", ""));
    }

    #[test]
    fn paths_match_by_prefix() {
        let user = User::default();
        let urls = vec!["/healthz".to_owned(), "/apis/*".to_owned()];
        let rule = Rule { verbs: vec!["get".into()], non_resource_urls: urls, ..Rule::default() };
        let ask = |path| {
            rule.allows(&Attributes { user: &user, verb: "get", target: Target::Path(path) })
        };
        assert!(ask("/healthz") && ask("/apis/apps") && ask("/apis/"));
        assert!(!ask("/healthz/ping") && !ask("/api") && !ask("/apis"));
    }

    #[test]
    fn covering_is_per_verb_and_thing() {
        let owned = [rule("get,list", "", "pods"), rule("*", "apps", "*")];
        assert!(uncovered(&owned, &[rule("get", "", "pods"), rule("x", "apps", "a/b")]).is_empty());
        let missing = uncovered(&owned, &[rule("get,delete", "", "pods,secrets")]);
        assert_eq!(missing.len(), 3);
        assert!(missing.contains(&rule("delete", "", "pods")));
        let named = Rule { resource_names: vec!["a".into()], ..rule("get", "", "pods") };
        assert!(uncovered(&owned, std::slice::from_ref(&named)).is_empty());
        assert_eq!(uncovered(&[named], &[rule("get", "", "pods")]).len(), 1);
    }
}
