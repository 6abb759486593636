//! One pass over the JSON of a stored object: labels, chosen fields, owner UIDs and the place of `metadata`, without a tree.
//! Runs for every committed value, so it allocates only what it returns. Must not validate: the writer made this JSON.

use std::borrow::Cow;

use thiserror::Error;

/// What [`scan`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// `metadata.labels`, sorted by key.
    pub labels: Vec<(Box<str>, Box<str>)>,
    /// `(path, value)` of those wanted fields that are present and scalar, in the order of the wanted list.
    pub fields: Vec<(Box<str>, Box<str>)>,
    /// `metadata.ownerReferences[*].uid`
    pub owners: Vec<Box<str>>,
    /// Offset just behind the `{` of `metadata`; `None` without `metadata`.
    pub splice_at: Option<u32>,
    /// True when `metadata` is `{}`: a splice there must not end with a comma.
    pub metadata_is_empty: bool,
}

/// Not the JSON of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("malformed JSON at byte {at}")]
pub struct ScanError {
    /// Where.
    pub at: usize,
}

/// Deeper values than this are refused, as serde_json does.
const DEPTH_MAX: u32 = 128;

/// Scans the JSON of one object. `wanted` are dotted paths through objects, such as `spec.nodeName`.
pub fn scan(json: &[u8], wanted: &[&str]) -> Result<Scan, ScanError> {
    let mut scanner = Scanner { json, at: 0, depth: 0 };
    let mut found = Scan::default();
    let mut values: Vec<Option<Box<str>>> = vec![None; wanted.len()];
    let live: Vec<(usize, &str)> = wanted.iter().copied().enumerate().collect();
    scanner.object(|scanner, key| match key {
        "metadata" => scanner.metadata(&mut found, &under(&live, key), &mut values),
        key => scanner.wanted(&under(&live, key), &mut values),
    })?;
    scanner.space();
    if scanner.at != json.len() {
        return Err(scanner.error());
    }
    found.labels.sort_unstable();
    found.fields = wanted
        .iter()
        .zip(values)
        .filter_map(|(path, value)| Some(((*path).into(), value?)))
        .collect();
    Ok(found)
}

/// The wanted paths below `key`: what is left of them, `""` for `key` itself.
fn under<'a>(live: &[(usize, &'a str)], key: &str) -> Vec<(usize, &'a str)> {
    live.iter()
        .filter_map(|(index, path)| {
            let rest = path.strip_prefix(key).filter(|_| !path.is_empty())?;
            if rest.is_empty() {
                return Some((*index, rest));
            }
            Some((*index, rest.strip_prefix('.')?))
        })
        .collect()
}

struct Scanner<'a> {
    json: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Scanner<'a> {
    fn error(&self) -> ScanError {
        ScanError { at: self.at }
    }

    fn peek(&self) -> Result<u8, ScanError> {
        self.json.get(self.at).copied().ok_or(self.error())
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.json.get(self.at) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), ScanError> {
        self.space();
        if self.peek()? != byte {
            return Err(self.error());
        }
        self.at += 1;
        Ok(())
    }

    /// Enters an object and calls `member` for each key; `member` must consume the value.
    fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, &str) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        self.enter(b'{')?;
        self.space();
        if self.peek()? == b'}' {
            return self.leave();
        }
        loop {
            self.space();
            let key = self.string()?;
            self.expect(b':')?;
            self.space();
            member(self, &key)?;
            if self.more(b'}')? {
                continue;
            }
            return self.leave();
        }
    }

    fn array(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        self.enter(b'[')?;
        self.space();
        if self.peek()? == b']' {
            return self.leave();
        }
        loop {
            self.space();
            item(self)?;
            if self.more(b']')? {
                continue;
            }
            return self.leave();
        }
    }

    fn enter(&mut self, open: u8) -> Result<(), ScanError> {
        self.expect(open)?;
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err(self.error()) } else { Ok(()) }
    }

    /// Consumes the closing bracket.
    fn leave(&mut self) -> Result<(), ScanError> {
        self.depth -= 1;
        self.at += 1;
        Ok(())
    }

    /// True after a comma, false before `close`.
    fn more(&mut self, close: u8) -> Result<bool, ScanError> {
        self.space();
        match self.peek()? {
            b',' => {
                self.at += 1;
                Ok(true)
            }
            byte if byte == close => Ok(false),
            _ => Err(self.error()),
        }
    }

    fn string(&mut self) -> Result<Cow<'a, str>, ScanError> {
        let start = self.at;
        self.skip_string()?;
        let raw = &self.json[start + 1..self.at - 1];
        let failed = ScanError { at: start };
        if raw.contains(&b'\\') {
            let text: String =
                serde_json::from_slice(&self.json[start..self.at]).map_err(|_| failed)?;
            return Ok(Cow::Owned(text));
        }
        std::str::from_utf8(raw).map(Cow::Borrowed).map_err(|_| failed)
    }

    fn skip_string(&mut self) -> Result<(), ScanError> {
        if self.peek()? != b'"' {
            return Err(self.error());
        }
        self.at += 1;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }

    /// Consumes a number, `true`, `false` or `null` and returns its text.
    fn word(&mut self) -> Result<&'a str, ScanError> {
        let start = self.at;
        while let Some(b'+' | b'-' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'E') =
            self.json.get(self.at)
        {
            self.at += 1;
        }
        let word = &self.json[start..self.at];
        let known = matches!(word, b"true" | b"false" | b"null")
            || word.first().is_some_and(|byte| byte.is_ascii_digit() || *byte == b'-');
        match std::str::from_utf8(word) {
            Ok(word) if known => Ok(word),
            _ => Err(ScanError { at: start }),
        }
    }

    fn skip(&mut self) -> Result<(), ScanError> {
        match self.peek()? {
            b'{' => self.object(|scanner, _| scanner.skip()),
            b'[' => self.array(Self::skip),
            b'"' => self.skip_string(),
            _ => self.word().map(|_| ()),
        }
    }

    /// A scalar as text; `None` for null, objects and arrays.
    fn scalar(&mut self) -> Result<Option<Box<str>>, ScanError> {
        match self.peek()? {
            b'"' => Ok(Some(self.string()?.into())),
            b'{' | b'[' => self.skip().map(|()| None),
            _ => Ok(Some(self.word()?).filter(|word| *word != "null").map(Into::into)),
        }
    }

    /// Consumes a value, taking the wanted scalars out of it.
    fn wanted(
        &mut self,
        live: &[(usize, &str)],
        values: &mut [Option<Box<str>>],
    ) -> Result<(), ScanError> {
        if live.is_empty() {
            return self.skip();
        }
        if self.peek()? == b'{' {
            return self.object(|scanner, key| scanner.wanted(&under(live, key), values));
        }
        let scalar = self.scalar()?;
        for (index, _) in live.iter().filter(|(_, rest)| rest.is_empty()) {
            values[*index].clone_from(&scalar);
        }
        Ok(())
    }

    fn metadata(
        &mut self,
        found: &mut Scan,
        live: &[(usize, &str)],
        values: &mut [Option<Box<str>>],
    ) -> Result<(), ScanError> {
        if self.peek()? != b'{' {
            return self.skip();
        }
        found.splice_at = Some(u32::try_from(self.at + 1).map_err(|_| self.error())?);
        found.metadata_is_empty = true;
        self.object(|scanner, key| {
            found.metadata_is_empty = false;
            match (key, scanner.peek()?) {
                ("labels", b'{') => scanner.object(|scanner, key| {
                    if let Some(value) = scanner.scalar()? {
                        found.labels.push((key.into(), value));
                    }
                    Ok(())
                }),
                ("ownerReferences", b'[') => scanner.array(|scanner| scanner.owner(found)),
                _ => scanner.wanted(&under(live, key), values),
            }
        })
    }

    fn owner(&mut self, found: &mut Scan) -> Result<(), ScanError> {
        if self.peek()? != b'{' {
            return self.skip();
        }
        self.object(|scanner, key| {
            if key != "uid" {
                return scanner.skip();
            }
            found.owners.extend(scanner.scalar()?);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn everything_is_found_in_one_pass() {
        let json = br#" {"kind":"Pod","metadata" : { "name":"a\"b","labels":{"z":"1","a":"\u00e9"},
            "ownerReferences":[{"name":"x","uid":"u1"},{"uid":"u2"}]},
            "spec":{"nodeName":"n1","hostNetwork":true,"list":[1,{"nodeName":"no"}]},"status":{"phase":null}} "#;
        let wanted =
            ["spec.nodeName", "metadata.name", "spec.hostNetwork", "status.phase", "spec", "x.y"];
        let scan = scan(json, &wanted).unwrap();
        let field = |key: &str, value: &str| (Box::from(key), Box::from(value));
        assert_eq!(scan.labels, [field("a", "é"), field("z", "1")]);
        assert_eq!(
            scan.fields,
            [
                field("spec.nodeName", "n1"),
                field("metadata.name", "a\"b"),
                field("spec.hostNetwork", "true")
            ]
        );
        assert_eq!(scan.owners, ["u1".into(), "u2".into()]);
        let at = scan.splice_at.unwrap() as usize;
        assert!(json[..at].ends_with(b"\"metadata\" : {"));
        assert!(!scan.metadata_is_empty);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for json in
            ["", "[]", "{", "{\"a\"", "{\"a\":}", "{} x", "{\"a\":nul1}", "{\"a\":1,}", "{\"a\\"]
        {
            assert!(scan(json.as_bytes(), &["a"]).is_err(), "{json}");
        }
        let deep = "[".repeat(1_000_000);
        assert!(scan(format!("{{\"a\":{deep}").as_bytes(), &[]).is_err());
        assert_eq!(scan(b"{}", &["a"]).unwrap(), Scan::default());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]|\\PC{0,3}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(json in prop::collection::vec(any::<u8>(), 0..64)) {
            // Only the absence of a panic counts.
            drop(scan(&json, &["a.b"]));
        }

        #[test]
        fn it_agrees_with_a_tree(a in any_json(), labels in prop::collection::btree_map("\\PC{0,4}", "\\PC{0,4}", 0..4)) {
            let object = json!({"metadata": {"labels": labels}, "a": a});
            let bytes = serde_json::to_vec_pretty(&object).unwrap();
            let scan = scan(&bytes, &["a", "a.b"]).unwrap();
            let want: Vec<_> = labels.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect();
            prop_assert_eq!(scan.labels, want);
            let scalar = |value: Option<&Value>| value.and_then(|value| match value {
                Value::String(text) => Some(text.clone()),
                Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
                _ => None,
            });
            let mut fields = Vec::new();
            for (path, value) in [("a", object.get("a")), ("a.b", object.pointer("/a/b"))] {
                fields.extend(scalar(value).map(|value| (Box::from(path), value.into())));
            }
            prop_assert_eq!(scan.fields, fields);
        }
    }
}
