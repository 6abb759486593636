//! This terminal joined to a command in a container: raw mode, size, and the exit code.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::bail;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use rustix::termios::{OptionalActions, Termios};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

const READ_BYTES: usize = 16 * 1024;
/// Pieces of input that wait for the agent.
const PIECES_MAX: usize = 4;
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Raw mode until dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Raw> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let saved = rustix::termios::tcgetattr(&stdin).ok()?;
        let mut raw = saved.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Raw(saved))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing better is left to do with a terminal that refuses.
        rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0).ok();
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

fn size() -> Option<Message> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    let text = json!({"Width": size.ws_col, "Height": size.ws_row}).to_string();
    Some(message(RESIZE, text.as_bytes()))
}

/// Until the command ends; its exit code becomes ours.
pub(crate) async fn converse<S>(
    socket: WebSocketStream<S>,
    stdin: bool,
    tty: bool,
) -> anyhow::Result<ExitCode>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    use tokio::signal::unix::{SignalKind, signal};
    let raw = if tty { Raw::enter() } else { None };
    let (mut sink, mut source) = socket.split();
    let mut resized = signal(SignalKind::window_change())?;
    if let Some(size) = size().filter(|_| tty) {
        sink.send(size).await?;
    }
    let mut input = read_stdin(stdin)?;
    let mut open = stdin;
    let code = loop {
        tokio::select! {
            incoming = source.next() => match incoming {
                Some(Ok(Message::Binary(bytes))) => {
                    if let Some(code) = show(bytes)? {
                        break code;
                    }
                }
                Some(Ok(Message::Close(_))) | None => bail!("the agent closed the connection"),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
            },
            piece = input.recv(), if open => match piece {
                None => {
                    open = false;
                    sink.send(message(CLOSE, &[STDIN])).await?;
                }
                Some(piece) => sink.send(message(STDIN, &piece)).await?,
            },
            _ = resized.recv(), if tty => {
                if let Some(size) = size() {
                    sink.send(size).await?;
                }
            }
        }
    };
    drop(raw);
    // Reading standard input goes on in a thread that nothing wakes, so the process ends here.
    std::process::exit(i32::from(code))
}

/// Standard input can only be waited for by blocking, so a thread does.
fn read_stdin(wanted: bool) -> std::io::Result<mpsc::Receiver<Vec<u8>>> {
    let (tell, pieces) = mpsc::channel(PIECES_MAX);
    if wanted {
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            let mut buffer = vec![0u8; READ_BYTES];
            while let Ok(count) = std::io::stdin().read(&mut buffer) {
                if count == 0 || tell.blocking_send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        })?;
    }
    Ok(pieces)
}

fn show(mut bytes: Bytes) -> anyhow::Result<Option<u8>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    match bytes.split_to(1)[0] {
        STDOUT => {
            let mut out = std::io::stdout().lock();
            out.write_all(&bytes)?;
            out.flush()?;
            Ok(None)
        }
        STDERR => {
            std::io::stderr().lock().write_all(&bytes)?;
            Ok(None)
        }
        ERROR => exit_code(&serde_json::from_slice(&bytes)?).map(Some),
        _ => Ok(None),
    }
}

fn exit_code(status: &Value) -> anyhow::Result<u8> {
    if status["status"] == "Success" {
        return Ok(0);
    }
    let cause = &status["details"]["causes"][0];
    match (cause["reason"].as_str(), cause["message"].as_str()) {
        (Some("ExitCode"), Some(code)) => Ok(code.parse().unwrap_or(1)),
        _ => bail!("{}", status["message"].as_str().unwrap_or("the command failed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        assert_eq!(exit_code(&crate::stream::exit_status(0)).unwrap(), 0);
        assert_eq!(exit_code(&crate::stream::exit_status(42)).unwrap(), 42);
        assert!(exit_code(&crate::stream::internal_error("no")).is_err());
    }
}
