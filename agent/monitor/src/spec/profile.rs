//! The system call filter: the built-in profile as a table, and profiles of the node.
//!
//! Owns the decision which calls a container may make: everything an ordinary program uses, nothing
//! that reaches past its namespaces unless a capability it has stands for that. The semantics are
//! those of the default profile of Docker and containerd. Must not load filters.

use serde_json::{Map, Value, json};

use super::SpecError;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const AF_VSOCK: u64 = 40;
/// `CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET`.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
/// `PER_LINUX`, `PER_LINUX32`, `UNAME26` with each, and the query.
const PERSONALITIES: &[u64] = &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Calls that every container may make.
const ALWAYS: &[&str] = &[
    // files
    "access",
    "chdir",
    "chmod",
    "chown",
    "chown32",
    "close",
    "close_range",
    "copy_file_range",
    "creat",
    "dup",
    "dup2",
    "dup3",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fadvise64_64",
    "fallocate",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchown32",
    "fchownat",
    "fcntl",
    "fcntl64",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstat64",
    "fstatat64",
    "fstatfs",
    "fstatfs64",
    "fsync",
    "ftruncate",
    "ftruncate64",
    "futimesat",
    "getcwd",
    "getdents",
    "getdents64",
    "getxattr",
    "getxattrat",
    "lchown",
    "lchown32",
    "lgetxattr",
    "link",
    "linkat",
    "listxattr",
    "listxattrat",
    "llistxattr",
    "_llseek",
    "lremovexattr",
    "lseek",
    "lsetxattr",
    "lstat",
    "lstat64",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readlink",
    "readlinkat",
    "readv",
    "removexattr",
    "removexattrat",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "sendfile",
    "sendfile64",
    "setxattr",
    "setxattrat",
    "splice",
    "stat",
    "stat64",
    "statfs",
    "statfs64",
    "statx",
    "symlink",
    "symlinkat",
    "sync",
    "sync_file_range",
    "syncfs",
    "tee",
    "truncate",
    "truncate64",
    "umask",
    "unlink",
    "unlinkat",
    "utime",
    "utimensat",
    "utimensat_time64",
    "utimes",
    "vmsplice",
    "write",
    "writev",
    "name_to_handle_at",
    "fanotify_mark",
    "cachestat",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "listmount",
    "statmount",
    // memory
    "brk",
    "madvise",
    "map_shadow_stack",
    "membarrier",
    "memfd_create",
    "memfd_secret",
    "mincore",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "mmap2",
    "mprotect",
    "mremap",
    "mseal",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "process_mrelease",
    "remap_file_pages",
    // waiting and signalling
    "alarm",
    "clock_getres",
    "clock_getres_time64",
    "clock_gettime",
    "clock_gettime64",
    "clock_nanosleep",
    "clock_nanosleep_time64",
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_ctl_old",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "epoll_wait_old",
    "eventfd",
    "eventfd2",
    "futex",
    "futex_requeue",
    "futex_time64",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "get_robust_list",
    "getitimer",
    "gettimeofday",
    "inotify_add_watch",
    "inotify_init",
    "inotify_init1",
    "inotify_rm_watch",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_pgetevents",
    "io_pgetevents_time64",
    "io_setup",
    "io_submit",
    "kill",
    "nanosleep",
    "_newselect",
    "pause",
    "pidfd_open",
    "pidfd_send_signal",
    "pipe",
    "pipe2",
    "poll",
    "ppoll",
    "ppoll_time64",
    "pselect6",
    "pselect6_time64",
    "restart_syscall",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigqueueinfo",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_sigtimedwait_time64",
    "rt_tgsigqueueinfo",
    "select",
    "set_robust_list",
    "setitimer",
    "sigaltstack",
    "signal",
    "signalfd",
    "signalfd4",
    "sigprocmask",
    "sigreturn",
    "tgkill",
    "time",
    "timer_create",
    "timer_delete",
    "timer_getoverrun",
    "timer_gettime",
    "timer_gettime64",
    "timer_settime",
    "timer_settime64",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_gettime64",
    "timerfd_settime",
    "timerfd_settime64",
    "times",
    "tkill",
    // System V and POSIX IPC
    "ipc",
    "mq_getsetattr",
    "mq_notify",
    "mq_open",
    "mq_timedreceive",
    "mq_timedreceive_time64",
    "mq_timedsend",
    "mq_timedsend_time64",
    "mq_unlink",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "semtimedop_time64",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
    // processes and identity
    "capget",
    "capset",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "fork",
    "get_thread_area",
    "getcpu",
    "getegid",
    "getegid32",
    "geteuid",
    "geteuid32",
    "getgid",
    "getgid32",
    "getgroups",
    "getgroups32",
    "getpgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getpriority",
    "getrandom",
    "getresgid",
    "getresgid32",
    "getresuid",
    "getresuid32",
    "getrlimit",
    "getrusage",
    "getsid",
    "gettid",
    "getuid",
    "getuid32",
    "ioctl",
    "ioprio_get",
    "ioprio_set",
    "prctl",
    "prlimit64",
    "rseq",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "sched_getaffinity",
    "sched_getattr",
    "sched_getparam",
    "sched_getscheduler",
    "sched_rr_get_interval",
    "sched_rr_get_interval_time64",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "sched_yield",
    "seccomp",
    "set_thread_area",
    "set_tid_address",
    "setfsgid",
    "setfsgid32",
    "setfsuid",
    "setfsuid32",
    "setgid",
    "setgid32",
    "setgroups",
    "setgroups32",
    "setpgid",
    "setpriority",
    "setregid",
    "setregid32",
    "setresgid",
    "setresgid32",
    "setresuid",
    "setresuid32",
    "setreuid",
    "setreuid32",
    "setrlimit",
    "setsid",
    "setuid",
    "setuid32",
    "sysinfo",
    "ugetrlimit",
    "uname",
    "uretprobe",
    "vfork",
    "wait4",
    "waitid",
    "waitpid",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "adjtimex",
    "clock_adjtime",
    "clock_adjtime64",
    // sockets
    "accept",
    "accept4",
    "bind",
    "connect",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "recv",
    "recvfrom",
    "recvmmsg",
    "recvmmsg_time64",
    "recvmsg",
    "send",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "socketcall",
    "socketpair",
    // of some architectures only
    "arch_prctl",
    "arm_fadvise64_64",
    "arm_sync_file_range",
    "breakpoint",
    "cacheflush",
    "modify_ldt",
    "riscv_flush_icache",
    "set_tls",
    "sync_file_range2",
];

/// Calls that stand behind a capability.
const WITH_CAPABILITY: &[(&str, &[&str])] = &[
    ("CAP_DAC_READ_SEARCH", &["open_by_handle_at"]),
    (
        "CAP_SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("CAP_SYS_BOOT", &["reboot"]),
    ("CAP_SYS_CHROOT", &["chroot"]),
    ("CAP_SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("CAP_SYS_PACCT", &["acct"]),
    ("CAP_SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise"]),
    ("CAP_SYS_RAWIO", &["ioperm", "iopl"]),
    ("CAP_SYS_TIME", &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    ("CAP_SYS_TTY_CONFIG", &["vhangup"]),
    ("CAP_SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("CAP_SYSLOG", &["syslog"]),
    ("CAP_BPF", &["bpf"]),
    ("CAP_PERFMON", &["perf_event_open"]),
];

/// The built-in profile for a container with these capabilities.
pub(super) fn runtime_default(capabilities: &[&'static str]) -> Value {
    let has = |name: &str| capabilities.contains(&name);
    let mut rules = vec![allow(json!(ALWAYS), json!([]))];
    for value in PERSONALITIES {
        rules.push(allow(json!(["personality"]), json!([compare(0, *value, "SCMP_CMP_EQ")])));
    }
    rules.push(allow(json!(["socket"]), json!([compare(0, AF_VSOCK, "SCMP_CMP_NE")])));
    for (capability, calls) in WITH_CAPABILITY {
        if has(capability) {
            rules.push(allow(json!(calls), json!([])));
        }
    }
    if !has("CAP_SYS_ADMIN") {
        let no_namespaces = json!([{
            "index": clone_flags_index(), "value": CLONE_NAMESPACES, "valueTwo": 0,
            "op": "SCMP_CMP_MASKED_EQ",
        }]);
        rules.push(allow(json!(["clone"]), no_namespaces));
        // Its flags are behind a pointer; with ENOSYS the C library falls back to clone.
        rules.push(json!({
            "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS,
        }));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": EPERM,
        "architectures": architectures(), "syscalls": rules,
    })
}

fn allow(names: Value, args: Value) -> Value {
    let mut rule = json!({ "names": names, "action": "SCMP_ACT_ALLOW" });
    if args.as_array().is_some_and(|args| !args.is_empty()) {
        rule["args"] = args;
    }
    rule
}

fn compare(index: u32, value: u64, operator: &str) -> Value {
    json!({ "index": index, "value": value, "op": operator })
}

fn clone_flags_index() -> u32 {
    u32::from(cfg!(target_arch = "s390x"))
}

fn architectures() -> Value {
    if cfg!(target_arch = "x86_64") {
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])
    } else if cfg!(target_arch = "aarch64") {
        json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])
    } else {
        json!(["SCMP_ARCH_NATIVE"])
    }
}

/// A profile of the node: the runtime specification's fields, or Docker's (which has `archMap`, and
/// `includes`/`excludes` of capabilities on its rules).
pub(super) fn local(text: &str, capabilities: &[&'static str]) -> Result<Value, SpecError> {
    let invalid = |reason: &str| SpecError::Seccomp(reason.to_owned());
    let mut profile: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| SpecError::Seccomp(error.to_string()))?;
    if !profile.contains_key("defaultAction") {
        return Err(invalid("defaultAction is missing"));
    }
    if profile.remove("archMap").is_some() {
        profile.insert("architectures".to_owned(), architectures());
    }
    if let Some(rules) = profile.get_mut("syscalls") {
        let rules = rules.as_array_mut().ok_or_else(|| invalid("syscalls is no list"))?;
        rules.retain(|rule| applies(rule, capabilities));
        for rule in rules.iter_mut().filter_map(Value::as_object_mut) {
            if let Some(name) = rule.remove("name") {
                rule.entry("names").or_insert(json!([name]));
            }
            for extra in ["includes", "excludes", "comment", "minKernel"] {
                rule.remove(extra);
            }
            rule.retain(|_, value| !value.is_null());
        }
    }
    let profile = Value::Object(profile);
    serde_json::from_value::<oci_spec::runtime::LinuxSeccomp>(profile.clone())
        .map_err(|error| SpecError::Seccomp(error.to_string()))?;
    Ok(profile)
}

fn applies(rule: &Value, capabilities: &[&'static str]) -> bool {
    let named = |key: &str, list: &str| -> Option<Vec<String>> {
        let list = rule.get(key)?.get(list)?.as_array()?;
        Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    };
    let has = |name: &String| capabilities.contains(&name.as_str());
    let here = |name: &String| name == goarch();
    let included = named("includes", "caps").is_none_or(|caps| caps.iter().all(has))
        && named("includes", "arches").is_none_or(|arches| arches.iter().any(here));
    let excluded = named("excludes", "caps").is_some_and(|caps| caps.iter().any(has))
        || named("excludes", "arches").is_some_and(|arches| arches.iter().any(here));
    included && !excluded
}

fn goarch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_need_sys_admin() {
        let names = |profile: &Value, call: &str| {
            let rules = profile["syscalls"].as_array().unwrap().clone();
            rules
                .into_iter()
                .filter(|rule| rule["names"].as_array().unwrap().contains(&json!(call)))
                .collect::<Vec<_>>()
        };
        let plain = runtime_default(&["CAP_CHOWN"]);
        assert_eq!(names(&plain, "unshare").len(), 0);
        assert_eq!(names(&plain, "clone3")[0]["errnoRet"], json!(ENOSYS));
        assert_eq!(names(&plain, "clone")[0]["args"][0]["value"], json!(CLONE_NAMESPACES));
        let admin = runtime_default(&["CAP_SYS_ADMIN"]);
        assert_eq!(names(&admin, "unshare").len(), 1);
        assert_eq!(names(&admin, "clone3")[0]["action"], json!("SCMP_ACT_ALLOW"));
    }

    #[test]
    fn local_profiles_may_be_dockers() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_X86_64"}],
          "syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":null,"comment":"","includes":{},"excludes":{}},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
        assert_eq!(local(text, &[]).unwrap()["syscalls"].as_array().unwrap().len(), 1);
        assert_eq!(
            local(text, &["CAP_SYS_ADMIN"]).unwrap()["syscalls"].as_array().unwrap().len(),
            2
        );
        assert!(local("{", &[]).is_err());
        assert!(local(r#"{"syscalls":[]}"#, &[]).is_err());
    }
}
