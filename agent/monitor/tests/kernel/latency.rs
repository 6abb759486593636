//! How long create and start take, side by side with `runc run` on the same root.
//!
//! Run with `MONITOR_PROGRAM=target/release/examples/monitor cargo nextest run -p monitor --run-ignored
//! all latency --no-capture`; without it the unoptimised monitor is measured and nothing demanded.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::lab;

const ROUNDS: usize = 30;

#[test]
#[ignore = "a benchmark, for a quiet machine"]
fn create_and_start_against_runc() {
    let mut lab = lab!();
    let has_runc = Command::new("runc").arg("--version").output().is_ok();
    if !has_runc {
        println!("SKIPPED: no runc; the monitor alone is measured");
    }
    let bundle = lab.dir.path().join("bundle");
    fs::create_dir(&bundle).unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let id = format!("l{round}");
        let begin = Instant::now();
        lab.client.create(lab.spec(&id, "sleep 1000")).unwrap();
        lab.client.start(&id).unwrap();
        ours.push(begin.elapsed());
        if has_runc {
            let config = lab.config.run_dir.join("containers").join(&id).join("config.json");
            let text = fs::read_to_string(config).unwrap();
            fs::write(bundle.join("config.json"), text.replace(&id, &format!("{id}-runc")))
                .unwrap();
            let id = format!("{}-{id}", lab.name);
            let begin = Instant::now();
            let status = Command::new("runc")
                .args(["run", "-d", "--bundle", &bundle.to_string_lossy(), &id])
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::inherit())
                .status()
                .unwrap();
            theirs.push(begin.elapsed());
            assert!(status.success());
            assert!(Command::new("runc").args(["delete", "-f", &id]).status().unwrap().success());
        }
        lab.client.delete(&id).unwrap();
    }
    println!("monitor create+start: {}", summary(&mut ours));
    if has_runc {
        println!("runc run -d:          {}", summary(&mut theirs));
        let is_release = std::env::var_os(crate::harness::PROGRAM).is_some();
        assert!(!is_release || ours[ROUNDS / 2] < theirs[ROUNDS / 2], "slower than runc");
    }
}

fn summary(times: &mut [Duration]) -> String {
    times.sort();
    format!("p50 {:?}, p90 {:?}", times[times.len() / 2], times[times.len() * 9 / 10])
}
