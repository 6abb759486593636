//! Running other programs and waiting for conditions. Owns no state.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(50);

/// What a finished program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// Standard output, lossily decoded.
    pub stdout: String,
    /// Standard error, lossily decoded.
    pub stderr: String,
}

impl Output {
    /// Standard output when the program succeeded, an error with both outputs when it did not.
    pub fn success(self) -> Result<String> {
        if self.code == 0 {
            return Ok(self.stdout);
        }
        bail!("exit {}: {}{}", self.code, self.stdout, self.stderr)
    }
}

/// Runs `command` to its end, capturing its output.
pub fn capture(command: &mut Command) -> Result<Output> {
    use std::os::unix::process::ExitStatusExt;
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let code = output
        .status
        .code()
        .unwrap_or_else(|| output.status.signal().map_or(255, |signal| 128 + signal));
    Ok(Output {
        code,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a program given as words; an error names the words and what it printed.
pub fn run(words: &[&str]) -> Result<String> {
    let Some((program, arguments)) = words.split_first() else { bail!("nothing to run") };
    capture(Command::new(program).args(arguments))?
        .success()
        .with_context(|| format!("`{}` failed", words.join(" ")))
}

/// Waits until `look` gives a value; on the deadline the error carries the last reason it gave.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= deadline => {
                return Err(error.context(format!("waited {deadline:?} for {what}")));
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// Whether `program` can be found on the PATH.
#[must_use]
pub fn has_program(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| is_file(&dir.join(program))))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file())
}
