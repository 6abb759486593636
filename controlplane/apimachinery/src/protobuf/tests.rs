//! Bodies as kubectl 1.32 sends them, and bodies that nobody should.

use super::*;
use crate::schema::Schemas;
use proptest::prelude::*;

/// `kubectl create deployment web --image=nginx --replicas=0 --port=80`
const DEPLOYMENT: &str = "6b3873000a150a07617070732f7631120a4465706c6f796d656e7412b8010a1f0a0377656212001a0022002a003200380042005a0a0a03\
        61707012037765621286010800120c0a0a0a0361707012037765621a6c0a1c0a0012001a0022002a003200380042005a0a0a0361707012\
        03776562124c122e0a056e67696e7812056e67696e782a00320a0a001000185022002a0042006a007200800100880100900100a201001a\
        00320042004a0052005800600068008201008a01009a0100c2010022020a00280038001a0c0800100018002000280038001a002200";

/// `kubectl create secret generic s --from-literal=a=b`
const SECRET: &str = "6b3873000a0c0a0276311206536563726574121d0a110a017312001a0022002a0032003800420012060a01611201621a001a002200";

/// `kubectl auth can-i get pods`
const REVIEW: &str = "6b3873000a320a17617574686f72697a6174696f6e2e6b38732e696f2f7631121753656c665375626a6563744163636573735265766965\
        77123c0a100a0012001a0022002a00320038004200121e0a1c0a0764656661756c7412036765741a0022002a04706f647332003a001a08\
        080012001a0020001a002200";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.chars().filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] * 16 + pair[1]).collect()
}

#[test]
fn what_kubectl_sends_is_read() {
    assert_eq!(
        decode(&bytes(DEPLOYMENT)).unwrap(),
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "strategy": {},
                "template": {"metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "nginx", "image": "nginx",
                        "ports": [{"containerPort": 80}], "resources": {}}]}}},
            "status": {}})
    );
    assert_eq!(
        decode(&bytes(SECRET)).unwrap(),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "Yg=="}})
    );
    let review = decode(&bytes(REVIEW)).unwrap();
    assert_eq!(review["spec"]["resourceAttributes"]["resource"], "pods");
}

#[test]
fn every_kind_of_the_table_has_a_schema_that_knows_its_fields() {
    let schemas = Schemas::builtin();
    let mut checked = 0;
    for kind in schemas.kinds() {
        let name = root(&kind.gvk.api_version(), kind.gvk.kind);
        let Some(fields) = messages().get(name.as_str()) else { continue };
        let schema = schemas.of(kind.gvk).unwrap();
        for field in fields.split(' ').filter_map(Field::parse).filter(|f| f.name != "~") {
            assert!(schema.field(field.name).is_some(), "{name}.{}", field.name);
            let whole = full(field.kind, &name);
            let message = field.kind.len() > 1 && !whole.contains("meta.v1.");
            let special = special(&whole, &[]).unwrap().is_some();
            assert!(!message || special || messages().contains_key(whole.as_str()), "{whole}");
        }
        checked += 1;
    }
    assert!(checked > 50, "{checked}");
}

#[test]
fn what_is_no_body_is_refused() {
    assert_eq!(decode(b"{}"), Err(ProtobufError::Magic));
    let mut cut = bytes(DEPLOYMENT);
    cut.truncate(100);
    assert!(matches!(decode(&cut), Err(ProtobufError::Malformed { .. })));
    let unknown = b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Foo";
    assert!(matches!(decode(unknown), Err(ProtobufError::UnknownKind { .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(at in 0usize..200, byte: u8, tail in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut body = bytes(DEPLOYMENT);
        if let Some(place) = body.get_mut(at) {
            *place = byte;
        }
        body.extend(tail);
        // Only the absence of a panic counts.
        drop(decode(&body));
    }
}
