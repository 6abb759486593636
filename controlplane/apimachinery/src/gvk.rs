//! Names of kinds and resources: group with version, kind or plural. Borrowed and `Copy`, so that tables can be `const`.
//! Must not know which kinds exist.

use std::fmt;

/// A kind in a group at a version; the core group is `""`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind<'a> {
    /// API group, `""` for core.
    pub group: &'a str,
    /// Version, such as `v1`.
    pub version: &'a str,
    /// Kind, such as `Pod`.
    pub kind: &'a str,
}

impl<'a> GroupVersionKind<'a> {
    /// Makes one from its parts.
    pub const fn new(group: &'a str, version: &'a str, kind: &'a str) -> Self {
        Self { group, version, kind }
    }

    /// Splits an `apiVersion` (`v1`, `apps/v1`).
    pub fn from_api_version(api_version: &'a str, kind: &'a str) -> Self {
        let (group, version) = split_api_version(api_version);
        Self { group, version, kind }
    }

    /// The `apiVersion` of objects of this kind.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// Without the version.
    pub const fn group_kind(&self) -> GroupKind<'a> {
        GroupKind { group: self.group, kind: self.kind }
    }
}

/// Upstream's text: `apps/v1, Kind=Deployment`.
impl fmt::Display for GroupVersionKind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            write!(f, "/{}, Kind={}", self.version, self.kind)
        } else {
            write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind)
        }
    }
}

/// A kind without its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKind<'a> {
    /// API group, `""` for core.
    pub group: &'a str,
    /// Kind, such as `Pod`.
    pub kind: &'a str,
}

impl<'a> GroupKind<'a> {
    /// Makes one from its parts.
    pub const fn new(group: &'a str, kind: &'a str) -> Self {
        Self { group, kind }
    }
}

/// Upstream's text: `Pod`, `Deployment.apps`.
impl fmt::Display for GroupKind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        Ok(())
    }
}

/// A resource (plural) without its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupResource<'a> {
    /// API group, `""` for core.
    pub group: &'a str,
    /// Plural, such as `pods`.
    pub resource: &'a str,
}

impl<'a> GroupResource<'a> {
    /// Makes one from its parts.
    pub const fn new(group: &'a str, resource: &'a str) -> Self {
        Self { group, resource }
    }
}

/// Upstream's text: `pods`, `deployments.apps`.
impl fmt::Display for GroupResource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        Ok(())
    }
}

/// `v1` → `("", "v1")`, `apps/v1` → `("apps", "v1")`.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// The reverse of [`split_api_version`].
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_upstreams() {
        let gvk = GroupVersionKind::from_api_version("apps/v1", "Deployment");
        assert_eq!(gvk.to_string(), "apps/v1, Kind=Deployment");
        assert_eq!(gvk.group_kind().to_string(), "Deployment.apps");
        assert_eq!(gvk.api_version(), "apps/v1");
        let pod = GroupVersionKind::from_api_version("v1", "Pod");
        assert_eq!(pod.to_string(), "/v1, Kind=Pod");
        assert_eq!(GroupResource::new("", "pods").to_string(), "pods");
    }
}
