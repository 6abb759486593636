//! What a request asks for, from its method, path and query alone (`k8s.io/apiserver/pkg/endpoints/request`).
//! Must not know which resources exist.

use std::borrow::Cow;

/// The request as authorization and routing see it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestInfo {
    /// True for `/api/…` and `/apis/<group>/<version>/…`.
    pub is_resource_request: bool,
    /// The whole path.
    pub path: String,
    /// Kubernetes' verb for resources, the method in lower case otherwise.
    pub verb: String,
    /// `api` or `apis`.
    pub api_prefix: String,
    /// Group, `""` for core.
    pub api_group: String,
    /// Version.
    pub api_version: String,
    /// Namespace; also set for requests of a namespace itself.
    pub namespace: String,
    /// Plural.
    pub resource: String,
    /// Such as `status`.
    pub subresource: String,
    /// Name of the object, `""` for collections.
    pub name: String,
    /// Path segments behind the version and namespace: resource, name, subresource, and the rest.
    pub parts: Vec<String>,
    /// The query's field selector on reads of collections.
    pub field_selector: String,
    /// The query's label selector on reads of collections.
    pub label_selector: String,
}

impl RequestInfo {
    /// Parses; never fails, since an unknown path is a non-resource request.
    pub fn parse(method: &str, path: &str, query: Option<&str>) -> Self {
        let mut info =
            Self { path: path.to_owned(), verb: method.to_ascii_lowercase(), ..Self::default() };
        let mut parts: Vec<String> = segments(path);
        if parts.len() < 3 {
            return info;
        }
        match parts[0].as_str() {
            "api" => {}
            "apis" if parts.len() >= 4 => info.api_group = parts.remove(1),
            _ => return info,
        }
        info.is_resource_request = true;
        info.api_prefix = parts.remove(0);
        info.api_version = parts.remove(0);
        info.verb = verb_of(method).to_owned();
        if matches!(parts[0].as_str(), "watch" | "proxy") {
            info.verb = parts[0].clone();
            if parts.len() < 2 {
                return info;
            }
            parts.remove(0);
        }
        info.place(parts);
        info.finish(query.unwrap_or_default());
        info
    }

    /// The group with its version, as in `apiVersion`.
    pub fn group_version(&self) -> String {
        crate::gvk::api_version(&self.api_group, &self.api_version)
    }

    fn place(&mut self, mut parts: Vec<String>) {
        if parts[0] == "namespaces"
            && let Some(namespace) = parts.get(1)
        {
            self.namespace.clone_from(namespace);
            // `namespaces/x/status` is of the namespace; `namespaces/x/pods` is within it.
            if parts.get(2).is_some_and(|part| part != "status" && part != "finalize") {
                parts.drain(..2);
            }
        }
        let part = |index: usize| parts.get(index).cloned().unwrap_or_default();
        self.resource = part(0);
        self.name = part(1);
        self.subresource = if self.verb == "proxy" { String::new() } else { part(2) };
        self.parts = parts;
    }

    fn finish(&mut self, query: &str) {
        if self.name.is_empty() && self.verb == "get" {
            self.verb = "list".to_owned();
        }
        if matches!(self.verb.as_str(), "list" | "watch") {
            let watch = first(query, "watch").map(|value| is_true(&value)).unwrap_or_default();
            if watch {
                self.verb = "watch".to_owned();
            }
            if let Some(selector) = first(query, "fieldSelector") {
                if self.name.is_empty() {
                    self.name = name_in(&selector).unwrap_or_default();
                }
                self.field_selector = selector.into_owned();
            }
            self.label_selector = first(query, "labelSelector").unwrap_or_default().into_owned();
        }
        if self.name.is_empty() && self.verb == "delete" {
            self.verb = "deletecollection".to_owned();
        }
        if self.verb == "deletecollection" {
            self.field_selector = first(query, "fieldSelector").unwrap_or_default().into_owned();
            self.label_selector = first(query, "labelSelector").unwrap_or_default().into_owned();
        }
    }
}

fn verb_of(method: &str) -> &str {
    match method {
        "POST" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

fn segments(path: &str) -> Vec<String> {
    let path = path.trim_matches('/');
    if path.is_empty() {
        return Vec::new();
    }
    path.split('/').map(|part| decode(part, false).into_owned()).collect()
}

/// A name that the field selector pins down, so that RBAC's `resourceNames` apply to such lists.
fn name_in(selector: &str) -> Option<String> {
    let selector = crate::selector::FieldSelector::parse(selector).ok()?;
    let name = selector.exact("metadata.name")?;
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '%']);
    plain.then(|| name.to_owned())
}

/// Go's conversion of a boolean query parameter: present and not `false` or `0`.
fn is_true(value: &str) -> bool {
    !matches!(value, "false" | "0")
}

/// The pairs of a query string, decoded.
pub fn query_pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key, true), decode(value, true))
    })
}

/// The first value of a query parameter, decoded.
pub fn first<'a>(query: &'a str, key: &str) -> Option<Cow<'a, str>> {
    query_pairs(query).find(|(name, _)| name == key).map(|(_, value)| value)
}

/// Percent-decodes; malformed escapes and bytes that are not UTF-8 stay visible instead of failing.
pub fn decode(text: &str, plus_is_space: bool) -> Cow<'_, str> {
    let escaped = text.contains('%') || (plus_is_space && text.contains('+'));
    if !escaped {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex =
            |offset: usize| bytes.get(at + offset).and_then(|byte| char::from(*byte).to_digit(16));
        match (bytes[at], hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at += 3;
            }
            (b'+', ..) if plus_is_space => {
                out.push(b' ');
                at += 1;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(method: &str, uri: &str) -> String {
        let (path, query) = uri.split_once('?').map_or((uri, None), |(p, q)| (p, Some(q)));
        let info = RequestInfo::parse(method, path, query);
        if !info.is_resource_request {
            return format!("{} {}", info.verb, info.path);
        }
        format!(
            "{} {}/{} ns={} {}/{}/{}",
            info.verb,
            info.api_group,
            info.api_version,
            info.namespace,
            info.resource,
            info.name,
            info.subresource
        )
    }

    #[test]
    fn paths_mean_what_upstream_takes_them_for() {
        let cases = [
            ("GET", "/api/v1/namespaces", "list /v1 ns= namespaces//"),
            ("GET", "/api/v1/namespaces/other", "get /v1 ns=other namespaces/other/"),
            ("PUT", "/api/v1/namespaces/x/finalize", "update /v1 ns=x namespaces/x/finalize"),
            ("PUT", "/api/v1/namespaces/x/status", "update /v1 ns=x namespaces/x/status"),
            ("GET", "/api/v1/namespaces/other/pods", "list /v1 ns=other pods//"),
            ("GET", "/api/v1/namespaces/other/pods/foo", "get /v1 ns=other pods/foo/"),
            ("HEAD", "/api/v1/namespaces/other/pods/foo", "get /v1 ns=other pods/foo/"),
            ("GET", "/api/v1/pods", "list /v1 ns= pods//"),
            ("GET", "/api/v1/pods?watch=true", "watch /v1 ns= pods//"),
            ("GET", "/api/v1/pods?watch=1", "watch /v1 ns= pods//"),
            ("GET", "/api/v1/pods?watch=false", "list /v1 ns= pods//"),
            ("GET", "/api/v1/watch/namespaces/x/pods", "watch /v1 ns=x pods//"),
            ("GET", "/api/v1/namespaces/x/pods/p/log", "get /v1 ns=x pods/p/log"),
            ("POST", "/api/v1/namespaces/x/pods/p/exec", "create /v1 ns=x pods/p/exec"),
            ("DELETE", "/api/v1/namespaces/x/pods", "deletecollection /v1 ns=x pods//"),
            ("DELETE", "/api/v1/namespaces/x/pods/p", "delete /v1 ns=x pods/p/"),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/x/deployments/d/scale",
                "patch apps/v1 ns=x deployments/d/scale",
            ),
            (
                "GET",
                "/apis/apps/v1/deployments?fieldSelector=metadata.name%3Da",
                "list apps/v1 ns= deployments/a/",
            ),
            ("GET", "/apis/apps/v1", "get /apis/apps/v1"),
            ("GET", "/apis/apps", "get /apis/apps"),
            ("GET", "/api/v1", "get /api/v1"),
            ("GET", "/healthz", "get /healthz"),
            ("GET", "/", "get /"),
            (
                "POST",
                "/api/v1/namespaces/x/services/https%3As%3A443/proxy/a/b",
                "create /v1 ns=x services/https:s:443/proxy",
            ),
        ];
        for (method, uri, want) in cases {
            assert_eq!(line(method, uri), want, "{method} {uri}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = "labelSelector=a%3Db%2Cc+in+(d)&watch=1&empty&bad=%zz%f";
        assert_eq!(first(query, "labelSelector").unwrap(), "a=b,c in (d)");
        assert_eq!(first(query, "empty").unwrap(), "");
        assert_eq!(first(query, "bad").unwrap(), "%zz%f");
        assert_eq!(first(query, "none"), None);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(method in "\\PC{0,8}", path in "[/a%0-9.?]{0,40}|\\PC{0,40}", query in "\\PC{0,40}") {
            let info = RequestInfo::parse(&method, &path, Some(&query));
            prop_assert_eq!(info.path, path);
        }
    }
}
