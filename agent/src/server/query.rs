//! Query strings of the agent's server. Pure.

use jiff::{SignedDuration, Timestamp};

use crate::stream::Wanted;
use crate::stream::logs::{Options, Source};

#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

/// `%41` and `+` undone; what is no escape stays.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                at += 3;
            }
            (byte, ..) => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Query {
    pub(crate) fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
        });
        Query { pairs: pairs.collect() }
    }

    pub(crate) fn one(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        let pairs = self.pairs.iter().filter(|(have, _)| have == name);
        pairs.map(|(_, value)| value.clone()).collect()
    }

    fn flag(&self, names: &[&str]) -> bool {
        names.iter().any(|name| matches!(self.one(name), Some("1" | "true" | "True" | "t")))
    }

    /// kubelet's names, and the API's, which some clients use.
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted {
            stdin: self.flag(&["input", "stdin"]),
            stdout: self.flag(&["output", "stdout"]),
            stderr: self.flag(&["error", "stderr"]),
            tty: self.flag(&["tty"]),
        }
    }

    /// What kind of log is asked for, and whether it is the previous container's.
    pub(crate) fn logs(&self, now: Timestamp) -> Result<(Options, bool), String> {
        let number = |name: &str, least: i64| -> Result<Option<i64>, String> {
            let Some(text) = self.one(name).filter(|text| !text.is_empty()) else {
                return Ok(None);
            };
            match text.parse() {
                Ok(number) if number >= least => Ok(Some(number)),
                _ => Err(format!("invalid {name}: {text:?}")),
            }
        };
        let size = |value: Option<i64>| value.and_then(|value| usize::try_from(value).ok());
        // Before the first instant there is comes everything.
        let since_seconds = number("sinceSeconds", 1)?.map(|seconds| {
            now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN)
        });
        let since_time = self
            .one("sinceTime")
            .filter(|value| !value.is_empty())
            .map(|value| value.parse().map_err(|_| format!("invalid sinceTime: {value:?}")))
            .transpose()?;
        let options = Options {
            follow: self.flag(&["follow"]),
            tail_lines: size(number("tailLines", 0)?),
            since: since_seconds.or(since_time),
            timestamps: self.flag(&["timestamps"]),
            limit_bytes: size(number("limitBytes", 1)?),
            source: match self.one("stream") {
                Some("Stdout") => Source::Stdout,
                Some("Stderr") => Source::Stderr,
                _ => Source::All,
            },
        };
        Ok((options, self.flag(&["previous"])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let query =
            Query::parse("command=sh&command=-c&command=echo+%22a%26b%22&input=1&tty=true&x");
        assert_eq!(query.all("command"), ["sh", "-c", "echo \"a&b\""]);
        let wanted = query.wanted();
        assert!(wanted.stdin && wanted.tty && !wanted.stdout);
        assert_eq!(decode("a%2Fb%zz%"), "a/b%zz%");
    }

    #[test]
    fn log_options() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let run = |text: &str| Query::parse(text).logs(now);
        let (options, previous) =
            run("follow=true&tailLines=5&sinceSeconds=30&previous=true&limitBytes=9").unwrap();
        assert!(options.follow && previous);
        assert_eq!((options.tail_lines, options.limit_bytes), (Some(5), Some(9)));
        assert_eq!(options.since, Some("2026-01-01T00:00:30Z".parse().unwrap()));
        for seconds in ["400000000000", "9223372036854775807"] {
            let (options, _) = run(&format!("sinceSeconds={seconds}")).unwrap();
            assert_eq!(options.since, Some(Timestamp::MIN));
        }
        assert_eq!(run("tailLines=0").unwrap().0.tail_lines, Some(0));
        for bad in [
            "tailLines=x",
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=-9223372036854775808",
            "sinceTime=nope",
        ] {
            assert!(run(bad).is_err(), "{bad}");
        }
        assert_eq!(run("").unwrap(), (Options::default(), false));
    }
}
