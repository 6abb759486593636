//! Reads Kubernetes' protobuf bodies into the same trees that JSON gives, so that clients which send protobuf (kubectl since 1.32,
//! client-go) are served. Answers are never protobuf: every such client takes JSON as well. Must not know more of a kind than
//! the numbers of its fields.
//!
//! `fields.txt` has a line per message (`core/v1.Volume`), and under it a line per field: number, name in JSON (`-`: the message's
//! fields stand in its parent), type, and ` 0` where the zero value is left out of JSON. Types: `s` string, `b` bool, `i` integer,
//! `f` double, `y` bytes, `t` Time, `u` MicroTime, `q` Quantity, `o` IntOrString, `r` raw JSON, `e` a message with one list of strings;
//! `[X` a list, `{X` a map from strings; anything else is a message. Facts of Kubernetes 1.33; a field that is newer is skipped, as
//! protobuf wants it of an older reader.

use std::collections::HashMap;
use std::sync::OnceLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// No kind nests so deep but by intent.
const DEPTH_MAX: u32 = 64;
const FIELDS: &str = include_str!("protobuf/fields.txt");

/// Why a body is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// Not Kubernetes' envelope.
    #[error("provided data does not appear to be a protobuf message, expected prefix {MAGIC:?}")]
    Magic,
    /// The bytes end, or are of another type than the field.
    #[error("proto: illegal wireType or unexpected end of {message}")]
    Wire {
        /// The message.
        message: String,
    },
    /// A string that is not UTF-8, a raw value that is not JSON, a time that is none.
    #[error("proto: invalid value of {message}.{field}")]
    Value {
        /// The message.
        message: String,
        /// The field.
        field: String,
    },
    /// Nothing is known of this kind.
    #[error("no kind {kind:?} is registered for version {version:?} in protobuf")]
    Kind {
        /// The kind.
        kind: String,
        /// Its group and version.
        version: String,
    },
    /// Messages in messages in messages.
    #[error("proto: nested too deeply")]
    Depth,
}

/// Reads a body.
///
/// # Errors
/// It is not protobuf, or of a kind that is not known.
pub fn read(body: &[u8]) -> Result<Value, ProtobufError> {
    let body = body.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Wires(body, "Unknown") {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Wires(meta, "TypeMeta") {
                    match field? {
                        (1, Wire::Bytes(own)) => version = text("TypeMeta", "apiVersion", own)?,
                        (2, Wire::Bytes(own)) => kind = text("TypeMeta", "kind", own)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(own)) => raw = own,
            _ => {}
        }
    }
    let Some(name) = message_name(&version, &kind) else {
        return Err(ProtobufError::Kind { kind, version });
    };
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), version.into());
    object.insert("kind".to_owned(), kind.into());
    message(name, raw, &mut object, 0)?;
    Ok(Value::Object(object))
}

/// Each message's lines.
fn messages() -> &'static HashMap<&'static str, &'static str> {
    static MESSAGES: OnceLock<HashMap<&str, &str>> = OnceLock::new();
    MESSAGES.get_or_init(|| {
        let mut messages = HashMap::new();
        let mut rest = FIELDS;
        while let Some((name, behind)) = rest.split_once('\n') {
            // A message's lines begin with a space, the next message's name does not.
            let ends = behind.split_inclusive('\n').take_while(|line| line.starts_with(' '));
            let (fields, next) = behind.split_at(ends.map(str::len).sum());
            messages.insert(name, fields);
            rest = next;
        }
        messages
    })
}

/// The message of a kind; options are sent in any group's version.
fn message_name(version: &str, kind: &str) -> Option<&'static str> {
    let (group, version) = version.split_once('/').unwrap_or(("core", version));
    let group = group.split('.').next().unwrap_or(group);
    let own = format!("{group}/{version}.{kind}");
    let options = format!("meta/v1.{kind}");
    let found = messages().get_key_value(own.as_str());
    found.or_else(|| messages().get_key_value(options.as_str())).map(|(name, _)| *name)
}

struct Field {
    name: &'static str,
    kind: &'static str,
    omits_zero: bool,
}

fn field(fields: &'static str, number: u64) -> Option<Field> {
    fields.lines().find_map(|line| {
        let mut parts = line.split_ascii_whitespace();
        if parts.next()?.parse() != Ok(number) {
            return None;
        }
        Some(Field { name: parts.next()?, kind: parts.next()?, omits_zero: parts.next().is_some() })
    })
}

fn message(
    name: &str,
    bytes: &[u8],
    into: &mut Map<String, Value>,
    depth: u32,
) -> Result<(), ProtobufError> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError::Depth);
    }
    let fields = messages().get(name).copied().unwrap_or_default();
    for found in Wires(bytes, name) {
        let (number, wire) = found?;
        let Some(Field { name: key, kind, omits_zero }) = field(fields, number) else { continue };
        let context = Context { message: name, field: key, depth };
        if let Some(item) = kind.strip_prefix('[') {
            let item = context.value(item, wire)?;
            let list = into.entry(key).or_insert_with(|| Value::Array(Vec::new()));
            list.as_array_mut().into_iter().for_each(|list| list.push(item.clone()));
        } else if let Some(item) = kind.strip_prefix('{') {
            let (at, item) = context.map_entry(item, wire)?;
            let map = into.entry(key).or_insert_with(|| Value::Object(Map::new()));
            map.as_object_mut()
                .into_iter()
                .for_each(|map| drop(map.insert(at.clone(), item.clone())));
        } else if key == "-" {
            message(kind, context.bytes(wire)?, into, depth + 1)?;
        } else {
            let value = context.value(kind, wire)?;
            if !(value.is_null() || omits_zero && is_zero(&value)) {
                into.insert(key.to_owned(), value);
            }
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(own) => !own,
        Value::Number(own) => own.as_f64() == Some(0.0),
        Value::String(own) => own.is_empty(),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

struct Context<'a> {
    message: &'a str,
    field: &'a str,
    depth: u32,
}

impl Context<'_> {
    fn wire_error(&self) -> ProtobufError {
        ProtobufError::Wire { message: self.message.to_owned() }
    }

    fn value_error(&self) -> ProtobufError {
        ProtobufError::Value { message: self.message.to_owned(), field: self.field.to_owned() }
    }

    fn bytes<'b>(&self, wire: Wire<'b>) -> Result<&'b [u8], ProtobufError> {
        match wire {
            Wire::Bytes(bytes) => Ok(bytes),
            Wire::Varint(_) | Wire::Fixed(_) => Err(self.wire_error()),
        }
    }

    fn value(&self, kind: &str, wire: Wire<'_>) -> Result<Value, ProtobufError> {
        match (kind, wire) {
            ("b", Wire::Varint(own)) => return Ok(Value::Bool(own != 0)),
            ("i", Wire::Varint(own)) => return Ok(own.cast_signed().into()),
            ("f", Wire::Fixed(own)) => {
                let number = Number::from_f64(f64::from_bits(own));
                return number.map(Value::Number).ok_or_else(|| self.value_error());
            }
            _ => {}
        }
        let bytes = self.bytes(wire)?;
        match kind {
            "b" | "i" | "f" => Err(self.wire_error()),
            "s" => Ok(Value::String(text(self.message, self.field, bytes)?)),
            "y" => Ok(Value::String(STANDARD.encode(bytes))),
            "q" => Ok(Value::String(self.strings(bytes, 1)?.pop().unwrap_or_else(|| "0".into()))),
            "e" => Ok(self.strings(bytes, 1)?.into()),
            "t" => self.time(bytes, 0),
            "u" => self.time(bytes, 6),
            "o" => self.int_or_string(bytes),
            "r" => self.raw(bytes),
            _ => {
                let mut object = Map::new();
                message(kind, bytes, &mut object, self.depth + 1)?;
                Ok(Value::Object(object))
            }
        }
    }

    fn map_entry(&self, kind: &str, wire: Wire<'_>) -> Result<(String, Value), ProtobufError> {
        let (mut key, mut value) = (String::new(), None);
        for found in Wires(self.bytes(wire)?, self.message) {
            match found? {
                (1, Wire::Bytes(own)) => key = text(self.message, self.field, own)?,
                (2, wire) => value = Some(self.value(kind, wire)?),
                _ => {}
            }
        }
        let value = value.map_or_else(|| self.value(kind, Wire::Bytes(&[])), Ok)?;
        Ok((key, value))
    }

    /// The strings of one field of a message.
    fn strings(&self, bytes: &[u8], wanted: u64) -> Result<Vec<String>, ProtobufError> {
        let mut strings = Vec::new();
        for found in Wires(bytes, self.message) {
            if let (number, Wire::Bytes(own)) = found?
                && number == wanted
            {
                strings.push(text(self.message, self.field, own)?);
            }
        }
        Ok(strings)
    }

    /// Nothing at all is the zero time, which JSON has as null.
    fn time(&self, bytes: &[u8], digits: usize) -> Result<Value, ProtobufError> {
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        let (mut seconds, mut nanos) = (0_i64, 0_i32);
        for found in Wires(bytes, self.message) {
            match found? {
                (1, Wire::Varint(own)) => seconds = own.cast_signed(),
                (2, Wire::Varint(own)) => {
                    nanos = i32::try_from(own.cast_signed()).map_err(|_| self.value_error())?;
                }
                _ => {}
            }
        }
        let time = Timestamp::new(seconds, nanos).map_err(|_| self.value_error())?;
        Ok(Value::String(match digits {
            0 => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            _ => time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        }))
    }

    fn int_or_string(&self, bytes: &[u8]) -> Result<Value, ProtobufError> {
        let (mut is_string, mut number, mut string) = (false, 0_i64, String::new());
        for found in Wires(bytes, self.message) {
            match found? {
                (1, Wire::Varint(own)) => is_string = own == 1,
                (2, Wire::Varint(own)) => number = own.cast_signed(),
                (3, Wire::Bytes(own)) => string = text(self.message, self.field, own)?,
                _ => {}
            }
        }
        Ok(if is_string { string.into() } else { number.into() })
    }

    fn raw(&self, bytes: &[u8]) -> Result<Value, ProtobufError> {
        let json = self.strings(bytes, 1)?.pop().unwrap_or_default();
        if json.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&json).map_err(|_| self.value_error())
    }
}

fn text(message: &str, field: &str, bytes: &[u8]) -> Result<String, ProtobufError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| ProtobufError::Value { message: message.to_owned(), field: field.to_owned() })
}

/// A field's bytes.
#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    /// Of 4 or 8 bytes.
    Fixed(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, as they stand in it.
struct Wires<'a, 'm>(&'a [u8], &'m str);

impl<'a> Wires<'a, '_> {
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let (own, rest) = self.0.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.0 = rest;
        Some(own)
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let bytes = self.varint()?;
                Wire::Bytes(self.take(bytes)?)
            }
            5 => Wire::Fixed(u32::from_le_bytes(self.take(4)?.try_into().ok()?).into()),
            _ => return None,
        };
        Some((tag >> 3, wire))
    }
}

impl<'a> Iterator for Wires<'a, '_> {
    type Item = Result<(u64, Wire<'a>), ProtobufError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| ProtobufError::Wire { message: self.1.to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
        digits.chunks(2).map(|pair| byte(pair).unwrap()).collect()
    }

    /// What kubectl 1.33 sends for `create deployment web --image=busybox:1.35 --replicas=0 --port=80`.
    fn deployment() -> Vec<u8> {
        hex("6b 38 73 00 0a 15 0a 07  61 70 70 73 2f 76 31 12 0a 44 65 70 6c 6f 79 6d  65 6e 74 12 c1 01 0a 1f
             0a 03 77 65 62 12 00 1a  00 22 00 2a 00 32 00 38 00 42 00 5a 0a 0a 03 61  70 70 12 03 77 65 62 12
             8f 01 08 00 12 0c 0a 0a  0a 03 61 70 70 12 03 77 65 62 1a 75 0a 1c 0a 00  12 00 1a 00 22 00 2a 00
             32 00 38 00 42 00 5a 0a  0a 03 61 70 70 12 03 77 65 62 12 55 12 37 0a 07  62 75 73 79 62 6f 78 12
             0c 62 75 73 79 62 6f 78  3a 31 2e 33 35 2a 00 32 0a 0a 00 10 00 18 50 22  00 2a 00 42 00 6a 00 72
             00 80 01 00 88 01 00 90  01 00 a2 01 00 1a 00 32 00 42 00 4a 00 52 00 58  00 60 00 68 00 82 01 00
             8a 01 00 9a 01 00 c2 01  00 22 02 0a 00 28 00 38 00 1a 0c 08 00 10 00 18  00 20 00 28 00 38 00 1a
             00 22 00")
    }

    #[test]
    fn what_kubectl_sends_is_what_its_json_would_be() {
        assert_eq!(
            read(&deployment()).unwrap(),
            json!({
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "web", "labels": {"app": "web"}},
                "spec": {
                    "replicas": 0,
                    "selector": {"matchLabels": {"app": "web"}},
                    "strategy": {},
                    "template": {
                        "metadata": {"labels": {"app": "web"}},
                        "spec": {"containers": [{
                            "name": "busybox",
                            "image": "busybox:1.35",
                            "ports": [{"containerPort": 80}],
                            "resources": {},
                        }]},
                    },
                },
                "status": {},
            })
        );
    }

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn envelope(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn the_special_types_are_read() {
        let secret = [field(2, &[field(1, b"k"), field(2, &[0xff])].concat()), field(3, b"Opaque")];
        assert_eq!(
            read(&envelope("v1", "Secret", &secret.concat())).unwrap(),
            json!({"apiVersion": "v1", "kind": "Secret", "data": {"k": "/w=="}, "type": "Opaque"})
        );
        let quantity = [field(1, b"cpu"), field(2, &field(1, b"100m"))].concat();
        let quota = field(2, &field(1, &quantity));
        let read_quota = read(&envelope("v1", "ResourceQuota", &quota)).unwrap();
        assert_eq!(read_quota["spec"]["hard"]["cpu"], "100m");
        let time = field(8, &[0x08, 0x80, 0x94, 0xeb, 0xdc, 0x03]);
        let read_time = read(&envelope("v1", "Namespace", &field(1, &time))).unwrap();
        assert_eq!(read_time["metadata"]["creationTimestamp"], "2001-09-09T01:46:40Z");
        let options = read(&envelope("apps/v1", "DeleteOptions", &[0x08, 0x00])).unwrap();
        assert_eq!(options["gracePeriodSeconds"], 0);
        // A volume's source stands in the volume itself; a port by its name.
        let claim = field(10, &field(1, b"c"));
        let volume = [field(1, b"v"), field(2, &claim)].concat();
        let pod = read(&envelope("v1", "Pod", &field(2, &field(1, &volume)))).unwrap();
        let expected = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
        assert_eq!(pod["spec"]["volumes"], expected);
    }

    #[test]
    fn what_is_not_protobuf_is_refused() {
        assert_eq!(read(b"{}"), Err(ProtobufError::Magic));
        let error = read(&envelope("v1", "Unheard", b"")).unwrap_err();
        assert!(error.to_string().contains("no kind \"Unheard\""), "{error}");
        let whole = deployment();
        assert!((5..whole.len()).any(|cut| read(&whole[..cut]).is_err()));
    }

    #[test]
    fn every_message_that_is_named_is_there() {
        for (name, fields) in messages() {
            for line in fields.lines() {
                let kind = line.split_ascii_whitespace().nth(2).unwrap();
                let own = kind.trim_start_matches(['[', '{']);
                let known = "sbifytuqore".contains(own) || messages().contains_key(own);
                assert!(known, "{name}: {line}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            at in any::<prop::sample::Index>(),
        ) {
            drop(read(&envelope("v1", "Pod", &bytes)));
            let mut damaged = deployment();
            let at = at.index(damaged.len());
            damaged[at] = damaged[at].wrapping_add(*bytes.first().unwrap_or(&1));
            drop(read(&damaged));
        }
    }
}
