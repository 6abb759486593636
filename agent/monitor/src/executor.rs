//! The last step in a container's process before its program runs: libcontainer calls it.
//!
//! Owns finding the program, telling why it can't run, and the filter of an exec'd process (which
//! libcontainer leaves out). Runs inside the container; must not allocate what outlives it.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Spec};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use libcontainer::{capabilities, seccomp};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, execv};

use crate::protocol::TerminalSize;

/// Begins every message that says that the program itself can't run.
pub(crate) const PROGRAM: &str = "unable to start container process: exec: ";

/// Filter and rights of an exec'd process.
#[derive(Clone, Debug)]
pub(crate) struct ExecRights {
    /// Loaded just before the program runs.
    pub(crate) filter: LinuxSeccomp,
    /// What remains afterwards, when loading needed more.
    pub(crate) keep: Option<LinuxCapabilities>,
}

/// Runs a container's program.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) rights: Option<Rc<ExecRights>>,
    /// Told why the program could not be run; closed by running it.
    pub(crate) status: Option<Rc<OwnedFd>>,
    /// First size of its terminal, which is on its standard streams by now.
    pub(crate) size: Option<TerminalSize>,
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        find(spec).map(|_| ()).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        set_environment(&envs);
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let message = match self.run(spec) {
            Ok(never) => match never {},
            Err(message) => message,
        };
        if let Some(status) = &self.status {
            report(status.as_fd(), &message);
        }
        Err(ExecutorError::Other(message))
    }
}

impl Program {
    fn run(&self, spec: &Spec) -> Result<std::convert::Infallible, String> {
        let path = find(spec)?;
        let args = spec.process().as_ref().and_then(|process| process.args().as_ref());
        let args: Vec<CString> = args
            .into_iter()
            .flatten()
            .map(|arg| CString::new(arg.as_str()).map_err(|error| format!("argument: {error}")))
            .collect::<Result<_, _>>()?;
        let program = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|error| format!("program: {error}"))?;
        if let Some(size) = self.size {
            crate::stdio::resize(std::io::stdin().as_fd(), size)
                .map_err(|error| format!("terminal size: {error}"))?;
        }
        if let Some(rights) = &self.rights {
            rights.apply()?;
        }
        execv(&program, &args).map_err(|error| describe(&path.to_string_lossy(), error))
    }
}

impl ExecRights {
    fn apply(&self) -> Result<(), String> {
        seccomp::initialize_seccomp(&self.filter)
            .map_err(|error| format!("seccomp filter: {error}"))?;
        if let Some(keep) = &self.keep {
            capabilities::drop_privileges(keep, create_syscall().as_ref())
                .map_err(|error| format!("capabilities: {error}"))?;
        }
        Ok(())
    }
}

fn report(status: BorrowedFd<'_>, message: &str) {
    if let Err(error) = rustix::io::write(status, message.as_bytes()) {
        tracing::error!(%error, message, "nobody hears why the program does not run");
    }
}

fn describe(program: &str, error: Errno) -> String {
    let reason = match error {
        Errno::ENOENT => "no such file or directory",
        Errno::EACCES => "permission denied",
        Errno::ENOEXEC => "exec format error",
        Errno::EISDIR => "is a directory",
        other => other.desc(),
    };
    format!("{PROGRAM}{program:?}: {reason}")
}

/// Looks the program up as a shell would; the message is the one people know from other runtimes.
fn find(spec: &Spec) -> Result<PathBuf, String> {
    let process = spec.process().as_ref().ok_or("spec has no process")?;
    let name = process.args().iter().flatten().next().ok_or("no command specified")?;
    if name.contains('/') {
        let path = Path::new(name);
        return runnable(path).map(|()| path.to_owned()).map_err(|error| describe(name, error));
    }
    let env = process.env().iter().flatten();
    let search = env.filter_map(|entry| entry.strip_prefix("PATH=")).next_back().unwrap_or("");
    let mut refused = None;
    for folder in search.split(':').filter(|folder| !folder.is_empty()) {
        let path = Path::new(folder).join(name);
        match runnable(&path) {
            Ok(()) => return Ok(path),
            Err(Errno::EACCES) => refused = Some(path),
            Err(_) => {}
        }
    }
    Err(match refused {
        Some(path) => describe(&path.to_string_lossy(), Errno::EACCES),
        None => format!("{PROGRAM}{name:?}: executable file not found in $PATH"),
    })
}

fn runnable(path: &Path) -> Result<(), Errno> {
    let metadata = nix::sys::stat::stat(path)?;
    if metadata.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(Errno::EISDIR);
    }
    nix::unistd::eaccess(path, AccessFlags::X_OK)
}

#[allow(unsafe_code, reason = "the environment of a process about to become another program")]
fn set_environment(envs: &HashMap<String, String>) {
    for (name, _) in std::env::vars_os() {
        // SAFETY: this process has one thread.
        unsafe { std::env::remove_var(name) };
    }
    for (name, value) in envs {
        // SAFETY: as above; names and values were checked for NUL and `=` before.
        unsafe { std::env::set_var(name, value) };
    }
}
