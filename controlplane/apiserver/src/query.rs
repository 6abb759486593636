//! Owns the query parameters of the API (`metav1.ListOptions`, `CreateOptions`, …) and what is wrong with them.
//! Must not act on them.

use apimachinery::{request_info, status::ApiError};

/// A decoded query.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        Self(
            request_info::query_pairs(query.unwrap_or_default())
                .map(|(k, v)| (k.into_owned(), v.into_owned()))
                .collect(),
        )
    }

    /// The first value, empty when absent.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.find(key).unwrap_or_default()
    }

    pub(crate) fn find(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Every value of a repeated parameter.
    pub(crate) fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Upstream's reading: present and neither `0` nor `false`.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.find(key).is_some_and(|v| !v.eq_ignore_ascii_case("false") && v != "0")
    }

    /// A number; a malformed one is the caller's fault.
    pub(crate) fn number(&self, key: &str) -> Result<Option<i64>, ApiError> {
        match self.find(key) {
            None | Some("") => Ok(None),
            Some(v) => v.parse().map(Some).map_err(|_| {
                let quoted = serde_json::Value::from(v).to_string();
                ApiError::bad_request(format!("strconv.ParseInt: parsing {quoted}: invalid syntax"))
            }),
        }
    }

    /// `dryRun=All`.
    pub(crate) fn dry_run(&self) -> Result<bool, ApiError> {
        let mut dry = false;
        for value in self.all("dryRun").filter(|v| !v.is_empty()) {
            if value != "All" {
                return Err(ApiError::bad_request(format!(
                    "Invalid value: \"{value}\": supported values: \"All\""
                )));
            }
            dry = true;
        }
        Ok(dry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_upstream_reads_them() {
        let q = Query::parse(Some("watch=1&follow=false&limit=5&bad=x&dryRun=All&container=a%20b"));
        assert!(q.flag("watch") && !q.flag("follow") && !q.flag("none"));
        assert_eq!(q.number("limit").unwrap(), Some(5));
        assert_eq!(q.number("none").unwrap(), None);
        assert_eq!(q.number("bad").unwrap_err().code, 400);
        assert!(q.dry_run().unwrap());
        assert_eq!(q.get("container"), "a b");
        assert_eq!(Query::parse(Some("dryRun=Some")).dry_run().unwrap_err().code, 400);
    }
}
