//! Streams of exec, attach, logs and port forwarding, whichever protocol the client speaks. A client
//! becomes a [`Client`]: what it sends, and where what it gets goes.

pub(crate) mod channels;
pub(crate) mod exec;
pub(crate) mod logs;
pub(crate) mod port_forward;
pub(crate) mod spdy;
pub(crate) mod websocket;

use bytes::Bytes;
use monitor::protocol::TerminalSize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Pieces of output that may wait for the client.
pub(crate) const OUT_PIECES_MAX: usize = 16;
pub(crate) const IN_PIECES_MAX: usize = 16;

/// Kubernetes' channel numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdout = 1,
    Stderr = 2,
    Error = 3,
}

/// Which streams a client asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

/// A connected client.
#[derive(Debug)]
pub(crate) struct Client {
    /// Ends when the client closes its stdin, or goes.
    pub(crate) stdin: mpsc::Receiver<Bytes>,
    pub(crate) resize: mpsc::Receiver<TerminalSize>,
    /// Closed when the client has gone; dropped by us at the end.
    pub(crate) out: mpsc::Sender<(Channel, Bytes)>,
}

/// `{"Width": 80, "Height": 24}`.
pub(crate) fn parse_size(bytes: &[u8]) -> Option<TerminalSize> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let field = |name: &str| value.get(name)?.as_u64().and_then(|n| u16::try_from(n).ok());
    Some(TerminalSize { width: field("Width")?, height: field("Height")? })
}

/// The last word on the error channel (`v4.channel.k8s.io` and later): a `metav1.Status`.
pub(crate) fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

pub(crate) fn internal_error(message: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {message}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_statuses() {
        assert_eq!(
            parse_size(br#"{"Width":80,"Height":24}"#),
            Some(TerminalSize { width: 80, height: 24 })
        );
        assert_eq!(parse_size(br#"{"Width":-1,"Height":24}"#), None);
        assert_eq!(exit_status(0)["status"], "Success");
        assert_eq!(exit_status(3)["details"]["causes"][0]["message"], "3");
    }
}
