//! Rules for single strings and numbers (`k8s.io/apimachinery/pkg/util/validation`): each answers the texts of what is wrong.
//! No regular expressions: the patterns are only quoted.

use std::net::IpAddr;

/// Longest DNS label.
pub const DNS1123_LABEL_LEN_MAX: usize = 63;
/// Longest DNS subdomain.
pub const DNS1123_SUBDOMAIN_LEN_MAX: usize = 253;
/// Longest label value.
pub const LABEL_VALUE_LEN_MAX: usize = 63;
/// Longest name part of a qualified name.
pub const QUALIFIED_NAME_LEN_MAX: usize = 63;
/// All annotations of one object together.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

const LABEL_PATTERN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_PATTERN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";

/// What is wrong, in upstream's texts; empty when nothing is.
pub type Wrong = Vec<String>;

fn max_len(wrong: &mut Wrong, text: &str, max: usize) {
    if text.len() > max {
        wrong.push(format!("must be no more than {max} bytes"));
    }
}

/// Upstream's `RegexError`.
pub fn pattern_error(message: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{pattern}')");
    }
    // Upstream ends each example with a comma and a blank and joins them with " or ".
    let examples: Vec<_> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

fn is_lower_alnum(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// `[first]([middle]*[last])?` over bytes.
fn bounded(text: &str, end: impl Fn(u8) -> bool, middle: impl Fn(u8) -> bool) -> bool {
    match text.as_bytes() {
        [] => false,
        [one] => end(*one),
        [first, inner @ .., last] => end(*first) && end(*last) && inner.iter().copied().all(middle),
    }
}

fn matches_label(text: &str) -> bool {
    bounded(text, is_lower_alnum, |byte| is_lower_alnum(byte) || byte == b'-')
}

fn matches_subdomain(text: &str) -> bool {
    text.split('.').all(matches_label)
}

/// A DNS label: namespaces, containers, ports.
pub fn dns1123_label(text: &str) -> Wrong {
    let mut wrong = Wrong::new();
    max_len(&mut wrong, text, DNS1123_LABEL_LEN_MAX);
    if !matches_label(text) {
        if matches_subdomain(text) {
            wrong.push("must not contain dots".to_owned());
        } else {
            wrong.push(pattern_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                LABEL_PATTERN,
                &["my-name", "123-abc"],
            ));
        }
    }
    wrong
}

/// A DNS subdomain: most object names.
pub fn dns1123_subdomain(text: &str) -> Wrong {
    let mut wrong = Wrong::new();
    max_len(&mut wrong, text, DNS1123_SUBDOMAIN_LEN_MAX);
    if !matches_subdomain(text) {
        wrong.push(pattern_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            SUBDOMAIN_PATTERN,
            &["example.com"],
        ));
    }
    wrong
}

/// A DNS subdomain whose labels may hold underscores: search domains.
pub fn dns1123_subdomain_underscored(text: &str) -> Wrong {
    let mut wrong = Wrong::new();
    max_len(&mut wrong, text, DNS1123_SUBDOMAIN_LEN_MAX);
    let label = |label: &str| {
        let label = label.strip_prefix('_').unwrap_or(label);
        bounded(label, is_lower_alnum, |byte| is_lower_alnum(byte) || matches!(byte, b'-' | b'_'))
    };
    if !text.split('.').all(label) {
        wrong.push(pattern_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character",
            "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*",
            &["example.com"],
        ));
    }
    wrong
}

/// The name of an HTTP header.
pub fn http_header_name(text: &str) -> Wrong {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Wrong::new();
    }
    vec![pattern_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// A DNS label that begins with a letter: services before relaxation, volume attributes.
pub fn dns1035_label(text: &str) -> Wrong {
    let mut wrong = Wrong::new();
    max_len(&mut wrong, text, DNS1123_LABEL_LEN_MAX);
    if !(matches_label(text) && text.as_bytes().first().is_some_and(u8::is_ascii_lowercase)) {
        wrong.push(pattern_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    wrong
}

/// A DNS subdomain whose first label may be `*`: ingress hosts.
pub fn wildcard_dns1123_subdomain(text: &str) -> Wrong {
    let mut wrong = Wrong::new();
    max_len(&mut wrong, text, DNS1123_SUBDOMAIN_LEN_MAX);
    if !text.strip_prefix("*.").is_some_and(matches_subdomain) {
        wrong.push(pattern_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            "\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            &["*.example.com"],
        ));
    }
    wrong
}

fn matches_qualified(text: &str) -> bool {
    bounded(
        text,
        |byte| byte.is_ascii_alphanumeric(),
        |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'),
    )
}

/// A label key, annotation key, finalizer or resource name: an optional prefix, a slash, a name.
pub fn qualified_name(text: &str) -> Wrong {
    const MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    const PATTERN: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
    let examples = ["MyName", "my.name", "123-abc"];
    let mut wrong = Wrong::new();
    let mut parts = text.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, None) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(
                    dns1123_subdomain(prefix).into_iter().map(|why| format!("prefix part {why}")),
                );
            }
            name
        }
        _ => {
            let text = pattern_error(MESSAGE, PATTERN, &examples);
            return vec![format!(
                "a qualified name {text} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > QUALIFIED_NAME_LEN_MAX {
        wrong.push(format!("name part must be no more than {QUALIFIED_NAME_LEN_MAX} bytes"));
    }
    if !matches_qualified(name) {
        wrong.push(format!("name part {}", pattern_error(MESSAGE, PATTERN, &examples)));
    }
    wrong
}

/// A label's value.
pub fn label_value(text: &str) -> Wrong {
    let mut wrong = Wrong::new();
    max_len(&mut wrong, text, LABEL_VALUE_LEN_MAX);
    if !text.is_empty() && !matches_qualified(text) {
        wrong.push(pattern_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    wrong
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(text: &str) -> Wrong {
    let mut wrong = Wrong::new();
    max_len(&mut wrong, text, DNS1123_SUBDOMAIN_LEN_MAX);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(fits) {
        wrong.push(pattern_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    wrong.extend(dots(text));
    wrong
}

fn dots(text: &str) -> Option<String> {
    match text {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        text if text.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// The name of an environment variable; upstream since 1.34 allows every printable ASCII character but `=`.
pub fn env_var_name(text: &str) -> Wrong {
    let mut wrong = Wrong::new();
    if text.is_empty() {
        wrong.push("environment variable name must be at least 1 character".to_owned());
    }
    if text.bytes().any(|byte| !(0x20..0x7f).contains(&byte) || byte == b'=') {
        wrong.push("a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned());
    }
    wrong
}

/// A port number.
pub fn port_number(port: i64) -> Wrong {
    in_range(port, 1, 65535)
}

/// `must be between low and high, inclusive`
pub fn in_range(value: i64, low: i64, high: i64) -> Wrong {
    if (low..=high).contains(&value) {
        return Wrong::new();
    }
    vec![format!("must be between {low} and {high}, inclusive")]
}

/// The name of a port (`IANA_SVC_NAME`).
pub fn port_name(text: &str) -> Wrong {
    let mut wrong = Wrong::new();
    if text.len() > 15 {
        wrong.push("must be no more than 15 bytes".to_owned());
    }
    if text.is_empty() || !text.bytes().all(|byte| is_lower_alnum(byte) || byte == b'-') {
        wrong.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

/// An IP address in its canonical form is not demanded; leading zeros are refused.
pub fn ip(text: &str) -> Wrong {
    if text.parse::<IpAddr>().is_ok() {
        return Wrong::new();
    }
    vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()]
}

/// An address with a prefix length.
pub fn cidr(text: &str) -> Wrong {
    if text.parse::<ipnet::IpNet>().is_ok() {
        return Wrong::new();
    }
    vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()]
}

/// A name that becomes a path segment: RBAC objects.
pub fn path_segment_name(text: &str) -> Wrong {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ['/', '%']
        .into_iter()
        .filter(|bad| text.contains(*bad))
        .map(|bad| format!("may not contain '{bad}'"))
        .collect()
}

/// A percentage such as `25%`.
pub fn percent(text: &str) -> Wrong {
    let digits = text.strip_suffix('%').unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Wrong::new();
    }
    vec![pattern_error(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_are_upstreams() {
        assert_eq!(
            dns1123_label("c!"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(
            dns1123_subdomain("Bad_Name"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(
            label_value("a b"),
            [
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
            ]
        );
    }

    #[test]
    fn the_rules_hold() {
        type Rule = fn(&str) -> Wrong;
        let long = "x".repeat(64);
        let cases: &[(Rule, &[&str], &[&str])] = &[
            (dns1123_label, &["a", "0", "a-b"], &["", "-a", "a-", "a.b", "A", &long]),
            (dns1123_subdomain, &["a.b", "0.1"], &["", "a..b", ".a", "a.", "a_b"]),
            (dns1035_label, &["a0"], &["0a", "", "a."]),
            (wildcard_dns1123_subdomain, &["*.a.b"], &["a.b", "*", "*."]),
            (
                qualified_name,
                &["a", "A_b.c-d", "x.y/z"],
                &["", "/a", "a/", "a/b/c", "X/y", "-a", &long],
            ),
            (label_value, &["", "a", "1.2_3"], &["-", "a-", "é", &long]),
            (config_map_key, &["a", ".a", "a..b"], &["", ".", "..", "..a", "a/b"]),
            (env_var_name, &["A", "a b", "1"], &["", "a=b", "é"]),
            (port_name, &["http", "a-1"], &["", "1", "a--b", "-a", "Http", "abcdefghijklmnop"]),
            (ip, &["10.0.0.1", "::1"], &["", "10.0.0", "10.0.0.01", "10.0.0.0/8"]),
            (cidr, &["10.0.0.0/8", "::/0"], &["10.0.0.1", "10.0.0.0/33", ""]),
            (path_segment_name, &["a:b", "system:x"], &[".", "..", "a/b", "a%b"]),
            (percent, &["0%", "125%"], &["", "%", "-1%", "1"]),
        ];
        for (index, (rule, good, bad)) in cases.iter().enumerate() {
            for text in *good {
                assert_eq!(rule(text), Wrong::new(), "case {index}: {text:?}");
            }
            for text in *bad {
                assert_ne!(rule(text), Wrong::new(), "case {index}: {text:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_them_panic(text in "\\PC{0,80}") {
            for rule in [dns1123_label, dns1123_subdomain, dns1035_label, qualified_name, label_value,
                config_map_key, env_var_name, port_name, ip, cidr, path_segment_name, percent] {
                drop(rule(&text));
            }
        }
    }
}
