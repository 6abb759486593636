//! Label and field selectors: upstream's grammar, texts and meaning (`k8s.io/apimachinery/pkg/{labels,fields}`).
//! Must not know which fields a resource selects by.

mod field;
mod label;

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use thiserror::Error;

pub use field::{FieldRequirement, FieldSelector};
pub use label::{LabelSelector, Operator, Requirement};

/// A selector that can't be read; the text is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct SelectorError(String);

/// Anything that labels can be looked up in.
pub trait Labels {
    /// The value of one label.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for Map<String, Value> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

/// Sorted by key.
impl Labels for [(Box<str>, Box<str>)] {
    fn label(&self, key: &str) -> Option<&str> {
        let at = self.binary_search_by(|(name, _)| (**name).cmp(key)).ok()?;
        Some(&self[at].1)
    }
}

impl<L: Labels + ?Sized> Labels for Option<&L> {
    fn label(&self, key: &str) -> Option<&str> {
        self.as_ref()?.label(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn selectors_match_as_upstreams() {
        let have = labels(&[("a", "b"), ("n", "7"), ("in", "x"), ("e", "")]);
        let cases = [
            ("", true),
            ("a=b", true),
            ("a==b,n=7", true),
            ("a!=b", false),
            ("zz!=b", true),
            ("a in (b, c)", true),
            ("a in (c)", false),
            ("a notin (c),n", true),
            ("zz notin (c)", true),
            ("a", true),
            ("!a", false),
            ("!zz", true),
            ("n>6,n<8", true),
            ("n>7", false),
            ("a>1", false),
            ("e=", true),
            ("e in (,x)", true),
            ("  a  =  b  ", true),
            ("a in (b),n in (7,8),!q", true),
        ];
        for (text, want) in cases {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&have), want, "{text}");
        }
        let stored = [(Box::from("a"), Box::from("b")), (Box::from("b"), Box::from("c"))];
        assert!(LabelSelector::parse("b=c").unwrap().matches(&stored[..]));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let cases = [
            ("a=b=c", "unable to parse requirement: found '=', expected: ',' or 'end of string'"),
            ("a,", "unable to parse requirement: found '', expected: identifier after ','"),
            (
                ",a",
                "unable to parse requirement: found ',', expected: !, identifier, or 'end of string'",
            ),
            ("a in b", "unable to parse requirement: found 'b', expected: '('"),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            (
                "n>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ];
        for (text, want) in cases {
            assert_eq!(LabelSelector::parse(text).unwrap_err().to_string(), want, "{text}");
        }
        assert!(LabelSelector::parse("a^=b").unwrap_err().to_string().starts_with(
            "unable to parse requirement: key: Invalid value: \"a^\": name part must consist of"
        ));
    }

    #[test]
    fn objects_are_selectors_too() {
        let have = labels(&[("a", "b")]);
        let of = |value: Value| LabelSelector::from_object(Some(&value));
        assert!(of(json!({})).unwrap().matches(&have));
        assert!(!LabelSelector::from_object(None).unwrap().matches(&have));
        assert!(of(json!({"matchLabels": {"a": "b"}})).unwrap().matches(&have));
        let expression =
            json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["c"]}]});
        assert!(of(expression).unwrap().matches(&have));
        let error =
            of(json!({"matchExpressions": [{"key": "a", "operator": "Like"}]})).unwrap_err();
        assert_eq!(error.to_string(), "\"Like\" is not a valid label selector operator");
        assert!(!LabelSelector::from_map(Some(&json!({}))).matches(&have));
        assert!(LabelSelector::from_map(Some(&json!({"a": "b"}))).matches(&have));
    }

    #[test]
    fn field_selectors_compare_text() {
        let field = |name: &str| match name {
            "metadata.name" => Some("x"),
            "odd" => Some("a,b=c\\"),
            _ => None,
        };
        let cases = [
            ("", true),
            ("metadata.name=x", true),
            ("metadata.name==x", true),
            ("metadata.name!=x", false),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
            (r"odd=a\,b\=c\\", true),
            ("metadata.name=x,spec.nodeName!=n", true),
        ];
        for (text, want) in cases {
            let selector = FieldSelector::parse(text).unwrap();
            assert_eq!(selector.matches(field), want, "{text}");
            assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector);
        }
        let error = FieldSelector::parse("a=b,what").unwrap_err();
        assert_eq!(error.to_string(), "invalid selector: 'a=b,what'; can't understand 'what'");
        let selector = FieldSelector::parse("spec.x=1").unwrap();
        assert_eq!(
            selector.check(|field| field == "metadata.name").unwrap_err().to_string(),
            "field label not supported: spec.x"
        );
    }

    proptest! {
        #[test]
        fn nothing_makes_them_panic(text in "[a-c!=<>(), in\\\\]{0,24}|\\PC{0,24}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                // What was read prints as something that reads the same.
                let again = LabelSelector::parse(&selector.to_string());
                prop_assert_eq!(again.map(|selector| selector.to_string()), Ok(selector.to_string()));
            }
            if let Ok(selector) = FieldSelector::parse(&text) {
                prop_assert_eq!(FieldSelector::parse(&selector.to_string()), Ok(selector));
            }
        }
    }
}
