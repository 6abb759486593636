//! Reads JSON and YAML into a tree while noticing keys that come up twice; the last one counts, as in Go.
//! Must not know schemas.

use std::collections::HashMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use thiserror::Error as ThisError;

use super::PROBLEMS_MAX;
use crate::negotiate::Format;

/// Longer paths are not looked at: each key's would be compared anew, and what a real object has is shorter.
const PATH_BYTES_MAX: usize = 1024;

/// A body that is no JSON or YAML.
#[derive(Debug, ThisError)]
pub enum ReadError {
    /// Nothing there.
    #[error("unexpected end of JSON input")]
    Empty,
    /// Malformed JSON.
    #[error("{0}")]
    Json(#[source] serde_json::Error),
    /// Malformed YAML.
    #[error("error converting YAML to JSON: {0}")]
    Yaml(String),
}

/// What was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The tree.
    pub value: Value,
    /// Paths of the keys that came up again.
    pub duplicates: Vec<String>,
}

/// Reads one document.
pub fn read(body: &[u8], format: Format) -> Result<Read, ReadError> {
    let mut tracker = Tracker::default();
    let value = run(body, format, &mut tracker)?;
    Ok(Read { value, duplicates: tracker.duplicates })
}

/// Where keys of these paths come up, the first two times each: the how-manieth key of the body it is. For ordering problems.
pub(super) fn positions<'a>(
    body: &[u8],
    format: Format,
    paths: impl Iterator<Item = &'a str>,
) -> HashMap<String, Vec<usize>> {
    let positions = paths.map(|path| (path.to_owned(), Vec::new())).collect();
    let mut tracker = Tracker { positions, ..Tracker::default() };
    // What could not be read was refused before.
    match run(body, format, &mut tracker) {
        Ok(_) => tracker.positions,
        Err(_) => HashMap::new(),
    }
}

fn run(body: &[u8], format: Format, tracker: &mut Tracker) -> Result<Value, ReadError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(ReadError::Empty);
    }
    match format {
        Format::Json => {
            let mut json = serde_json::Deserializer::from_slice(body);
            let value = Seed(tracker).deserialize(&mut json).map_err(ReadError::Json)?;
            json.end().map_err(ReadError::Json)?;
            Ok(value)
        }
        Format::Yaml => {
            let options = serde_saphyr::options! {
                duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
                with_snippet: false,
            };
            let failed = |error: serde_saphyr::Error| ReadError::Yaml(error.to_string());
            let text =
                std::str::from_utf8(body).map_err(|error| ReadError::Yaml(error.to_string()))?;
            serde_saphyr::with_deserializer_from_str_with_options(text, options, |yaml| {
                Seed(tracker).deserialize(yaml)
            })
            .map_err(failed)
        }
    }
}

#[derive(Debug, Default)]
struct Tracker {
    path: String,
    duplicates: Vec<String>,
    keys: usize,
    positions: HashMap<String, Vec<usize>>,
}

impl Tracker {
    /// Runs `inner` with `key` at the end of the path.
    fn below<T>(&mut self, key: &str, inner: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.path.len();
        if before > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        let result = inner(self);
        self.path.truncate(before);
        result
    }

    /// Runs `inner` with `[index]` at the end of the path.
    fn item<T>(&mut self, index: usize, inner: impl FnOnce(&mut Self) -> T) -> T {
        use fmt::Write as _;
        let before = self.path.len();
        // Writing to a String does not fail.
        write!(self.path, "[{index}]").unwrap_or_default();
        let result = inner(self);
        self.path.truncate(before);
        result
    }

    /// Notes a key, whose path this is now.
    fn note(&mut self, again: bool) {
        self.keys += 1;
        if self.path.len() > PATH_BYTES_MAX {
            return;
        }
        if !self.positions.is_empty()
            && let Some(found) = self.positions.get_mut(&self.path)
            && found.len() < 2
        {
            found.push(self.keys);
        }
        let news = again && self.duplicates.len() < PROBLEMS_MAX;
        if news && !self.duplicates.contains(&self.path) {
            self.duplicates.push(self.path.clone());
        }
    }
}

struct Seed<'t>(&'t mut Tracker);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let index = list.len();
            let item = self.0.item(index, |tracker| items.next_element_seed(Seed(tracker)))?;
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let again = map.contains_key(&key);
            let value = self.0.below(&key, |tracker| {
                tracker.note(again);
                entries.next_value_seed(Seed(tracker))
            })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn trees_are_serde_jsons() {
        let body = r#" {"a":[1,-1,1.5,18446744073709551615,null,true,"\u00e9"],"b":{"c":{}}} "#;
        let read = read(body.as_bytes(), Format::Json).unwrap();
        assert_eq!(read.value, serde_json::from_str::<Value>(body).unwrap());
        assert!(read.duplicates.is_empty());
    }

    #[test]
    fn malformed_bodies_are_errors() {
        for body in ["", " ", "{", "{} {}", "nul"] {
            assert!(read(body.as_bytes(), Format::Json).is_err(), "{body}");
        }
        assert!(read("[".repeat(100_000).as_bytes(), Format::Json).is_err());
        assert!(read("[".repeat(100_000).as_bytes(), Format::Yaml).is_err());
        assert!(read(b"a: 1\n---\nb: 2\n", Format::Yaml).is_err());
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        assert!(read(bomb.as_bytes(), Format::Yaml).is_err());
    }

    #[test]
    fn yaml_scalars_have_their_types() {
        let read =
            read(b"a: 1\nb: '1'\nc: true\nd: ~\ne: 1.5\nf: x\n1: z\n", Format::Yaml).unwrap();
        let want = serde_json::json!({"a": 1, "b": "1", "c": true, "d": null, "e": 1.5, "f": "x", "1": "z"});
        assert_eq!(read.value, want);
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in "[{}\\[\\]\",:a1 \n&*-]{0,40}|\\PC{0,40}") {
            drop(read(body.as_bytes(), Format::Json));
            drop(read(body.as_bytes(), Format::Yaml));
        }
    }
}
