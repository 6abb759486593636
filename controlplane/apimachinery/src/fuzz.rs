//! Objects of every kind made at random from its schema go through the whole write path: nothing may panic, defaulting is
//! idempotent, a conformed object conforms, a diff applied gives the target. Tests only.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::default::apply_defaults;
use crate::patch::strategic;
use crate::scan::scan;
use crate::schema::{Node, Schemas, Type};
use crate::strict::conform;
use crate::validate::{validate_create, validate_status_update, validate_update};

const TEXTS: [&str; 40] = [
    "",
    "a",
    "-",
    "..",
    "é",
    "a/b",
    "a.b/c",
    "10.0.0.1",
    "::1",
    "10.0.0.0/8",
    "None",
    "ClusterIP",
    "ExternalName",
    "LoadBalancer",
    "NodePort",
    "ClientIP",
    "Local",
    "Always",
    "Never",
    "OnFailure",
    "RollingUpdate",
    "Recreate",
    "OnDelete",
    "Indexed",
    "25%",
    "200%",
    "1Gi",
    "-1",
    "1.5",
    "TCP",
    "IPv4",
    "In",
    "Exists",
    "Localhost",
    "Pod",
    "* * * * *",
    "*/0 1-2-3 * * *",
    "@every",
    "kubernetes.io/tls",
    "hugepages-2Mi",
];
const NUMBERS: [i64; 10] = [-1, 0, 1, 2, 80, 443, 65_536, 99_999, i32::MAX as i64, i32::MIN as i64];

/// A small generator of its own, since a strategy over a cyclic schema would never end.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or_default() % sides
    }

    fn text(&mut self) -> &'static str {
        TEXTS[self.roll(TEXTS.len())]
    }

    fn value(&mut self, node: &Node, depth: usize) -> Value {
        match node {
            Node::Bool => (self.roll(2) == 0).into(),
            Node::Int32 | Node::Int64 => NUMBERS[self.roll(NUMBERS.len())].into(),
            Node::Number => json!(1.5),
            Node::String => self.text().into(),
            Node::Bytes => ["", "YQ==", "e30="][self.roll(3)].into(),
            Node::Time => "2026-11-20T15:54:17Z".into(),
            Node::MicroTime => "2026-11-20T15:54:17.000000Z".into(),
            Node::Quantity => ["0", "1", "500m", "-1", "1Gi", "0.1m"][self.roll(6)].into(),
            Node::IntOrString if self.roll(2) == 0 => self.text().into(),
            Node::IntOrString => NUMBERS[self.roll(NUMBERS.len())].into(),
            Node::Any => json!({"x": [1, null]}),
            Node::List(items) => {
                let count = if depth == 0 { 0 } else { self.roll(3) };
                (0..count).map(|_| self.value(items, depth - 1)).collect()
            }
            Node::Map(values) => {
                let count = if depth == 0 { 0 } else { self.roll(3) };
                let entry =
                    |_| (self.text().to_owned(), self.value(values, depth.saturating_sub(1)));
                Value::Object((0..count).map(entry).collect())
            }
            Node::Object(inner) => self.object(inner, depth.saturating_sub(1)),
        }
    }

    fn object(&mut self, schema: &Type, depth: usize) -> Value {
        let mut map = Map::new();
        for field in schema.fields() {
            let wanted = field.required || self.roll(5) < 2;
            if wanted && (depth > 0 || field.node.object().is_none()) {
                map.insert(field.name.to_string(), self.value(&field.node, depth));
            }
        }
        Value::Object(map)
    }
}

const DEPTH: usize = 9;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_kind_survives_the_write_path(seed in 1_u64..) {
        let mut dice = Dice(seed);
        for kind in Schemas::builtin().kinds() {
            let schema = Schemas::builtin().of(kind.gvk).unwrap();
            let mut objects = [dice.object(&schema, DEPTH), dice.object(&schema, DEPTH)];
            for object in &mut objects {
                prop_assert_eq!(conform(object, &schema), Ok(Vec::new()), "{}", kind.gvk);
                let conformed = object.clone();
                prop_assert_eq!(conform(object, &schema), Ok(Vec::new()));
                prop_assert_eq!(&conformed, &*object, "{}", kind.gvk);
                apply_defaults(kind.gvk, object);
                let defaulted = object.clone();
                apply_defaults(kind.gvk, object);
                prop_assert_eq!(&defaulted, &*object, "{}", kind.gvk);
                scan(&serde_json::to_vec(object).unwrap(), &["spec.nodeName", "status.phase"]).unwrap();
                drop(validate_create(kind.gvk, object));
            }
            let [one, other] = &mut objects;
            drop(validate_update(kind.gvk, one, other));
            drop(validate_status_update(kind.gvk, one, other));
            let patch = strategic::diff(one, other, &schema);
            // Random lists have doubled keys, so only that nothing panics counts here.
            drop(strategic::apply(one, &patch, &schema));
        }
    }

    #[test]
    fn any_json_is_refused_or_conforms(body in "\\PC{0,30}", seed in 1_u64..) {
        let mut dice = Dice(seed);
        let kinds = Schemas::builtin().kinds();
        let one = Schemas::builtin().of(kinds[dice.roll(kinds.len())].gvk).unwrap();
        let other = Schemas::builtin().of(kinds[dice.roll(kinds.len())].gvk).unwrap();
        // An object of one kind read as another: wrong types and unknown fields abound.
        let mut value = dice.object(&one, 5);
        if conform(&mut value, &other).is_ok() {
            prop_assert_eq!(conform(&mut value, &other), Ok(Vec::new()));
        }
        drop(conform(&mut Value::from(body), &other));
    }
}
