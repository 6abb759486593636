//! Exec and attach: a client's channels joined to a process's streams, and the exit code as the last
//! word.

use bytes::{Bytes, BytesMut};
use monitor::protocol::ExecSpec;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::connection::chain;
use crate::runtime::{AttachRequest, Runtime};
use crate::stream::{Channel, Client, Wanted, exit_status, internal_error};

const READ_BYTES: usize = 32 * 1024;

/// Runs `args` in a container for the client.
pub(crate) async fn exec(
    runtime: &Runtime,
    (id, args): (String, Vec<String>),
    wanted: Wanted,
    client: Client,
) {
    let spec = ExecSpec {
        id,
        args,
        terminal: wanted.tty,
        size: None,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr && !wanted.tty,
    };
    let Client { stdin, mut resize, out } = client;
    let mut session = match runtime.exec(spec).await {
        Ok(session) => session,
        Err(error) => {
            let message = format!("error executing command in container: {}", chain(&error));
            last_word(&out, &internal_error(&message)).await;
            return;
        }
    };
    let input = session.stdin.take().filter(|_| wanted.stdin);
    let feed = tokio::spawn(feed(stdin, input));
    let stdout = tokio::spawn(copy_out(session.stdout.take(), Channel::Stdout, out.clone()));
    let stderr = tokio::spawn(copy_out(session.stderr.take(), Channel::Stderr, out.clone()));
    let exit = loop {
        tokio::select! {
            exit = session.wait() => break exit.map_err(|error| chain(&error)),
            Some(size) = resize.recv() => {
                if let Err(error) = session.resize(size) {
                    tracing::debug!(%error, "a terminal was not resized");
                }
            }
            () = out.closed() => {
                // The client has gone, so its command goes too.
                if let Err(error) = session.signal(libc::SIGKILL).await {
                    tracing::debug!(error = %chain(&error), "a command was not killed");
                }
                break Err("the client has gone".to_owned());
            }
        }
    };
    // What the process printed last is still on its way; its copies end with it.
    for copy in [stdout, stderr] {
        copy.await.ok();
    }
    feed.abort();
    let word = match exit {
        Ok(exit) => exit_status(exit.code),
        Err(why) => internal_error(&why),
    };
    last_word(&out, &word).await;
}

/// Joins the client to a container's own process until either has ended.
pub(crate) async fn attach(runtime: &Runtime, id: String, wanted: Wanted, client: Client) {
    let Client { stdin, mut resize, out } = client;
    let request = AttachRequest { stdin: wanted.stdin };
    let mut session = match runtime.attach(&id, request).await {
        Ok(session) => session,
        Err(error) => {
            let message = format!("error attaching to container: {}", chain(&error));
            last_word(&out, &internal_error(&message)).await;
            return;
        }
    };
    let source = session.stdin.take();
    // Who brings no stdin has none to close.
    let mut finished = source.is_none();
    let mut input = tokio::spawn(feed(stdin, source));
    let stdout = session.stdout.take().filter(|_| wanted.stdout);
    let stderr = session.stderr.take().filter(|_| wanted.stderr);
    let outputs = async {
        tokio::join!(
            copy_out(stdout, Channel::Stdout, out.clone()),
            copy_out(stderr, Channel::Stderr, out.clone())
        );
    };
    tokio::pin!(outputs);
    loop {
        tokio::select! {
            () = &mut outputs => break,
            () = out.closed() => break,
            _ = &mut input, if !finished => {
                finished = true;
                if let Err(error) = session.finish_stdin().await {
                    tracing::debug!(error = %chain(&error), "a stdin was not closed");
                }
            }
            Some(size) = resize.recv() => {
                if let Err(error) = session.resize(size).await {
                    tracing::debug!(error = %chain(&error), "a terminal was not resized");
                }
            }
        }
    }
    input.abort();
    last_word(&out, &exit_status(0)).await;
}

/// Passes the client's stdin on; the process sees its end when the client closes it.
async fn feed(mut from: mpsc::Receiver<Bytes>, to: Option<impl AsyncWrite + Unpin>) {
    let Some(mut to) = to else { return };
    while let Some(bytes) = from.recv().await {
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

async fn copy_out(
    from: Option<impl AsyncRead + Unpin>,
    channel: Channel,
    to: mpsc::Sender<(Channel, Bytes)>,
) {
    let Some(mut from) = from else { return };
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        buffer.reserve(READ_BYTES);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                if to.send((channel, buffer.split().freeze())).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn last_word(out: &mpsc::Sender<(Channel, Bytes)>, word: &Value) {
    // A client that has gone needs no last word.
    out.send((Channel::Error, Bytes::from(word.to_string()))).await.ok();
}
