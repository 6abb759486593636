//! How the agent is linked: relocations packed, so that starting reads 30 kB of them instead of 1.7 MB, in each of its two processes.
#![allow(clippy::print_stdout, reason = "this is how a build script talks to cargo")]

use std::process::Command;

/// The first glibc that reads packed relocations; a program that has them does not start on an older one.
const GLIBC_MIN: (u32, u32) = (2, 36);

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let glibc =
        variable("CARGO_CFG_TARGET_ENV") == "gnu" && variable("CARGO_CFG_TARGET_OS") == "linux";
    // What another machine runs is not known, so a cross build stays with what every glibc reads.
    if glibc && variable("HOST") == variable("TARGET") && own_glibc() >= Some(GLIBC_MIN) {
        // A linker that doesn't know it says so and goes on.
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this machine's glibc, where it has one that tells.
fn own_glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}
