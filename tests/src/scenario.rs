//! The runner of end-to-end scenarios: a test binary without libtest's harness brings something up
//! once, runs named scenarios on it in order, and closes with a line that counts them.
//!
//! `cargo test --test NAME -- [FILTER…]` runs only scenarios whose name contains a filter.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

/// How a scenario that did not fail ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All of its assertions held.
    Passed,
    /// It could not run here, and why.
    Skipped(String),
}

/// A scenario: its name and what it does to the fixture.
pub type Scenario<F> = (&'static str, fn(&F) -> Result<Verdict>);

/// Counts of a finished run.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    /// Runs those of `scenarios` that the command line asks for, printing a line for each.
    pub fn run<F>(&mut self, fixture: &F, scenarios: &[Scenario<F>]) {
        let filters: Vec<String> =
            std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
        for (name, scenario) in scenarios {
            if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
                continue;
            }
            let start = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| scenario(fixture)));
            let seconds = start.elapsed().as_secs_f32();
            match outcome {
                Ok(Ok(Verdict::Passed)) => {
                    self.passed += 1;
                    println!("ok       {name} ({seconds:.1} s)");
                }
                Ok(Ok(Verdict::Skipped(reason))) => {
                    self.skipped += 1;
                    println!("SKIPPED  {name}: {reason}");
                }
                Ok(Err(error)) => {
                    self.failed += 1;
                    println!("FAILED   {name} ({seconds:.1} s): {error:#}");
                }
                Err(_) => {
                    self.failed += 1;
                    println!("FAILED   {name} ({seconds:.1} s): panicked (above)");
                }
            }
        }
    }

    /// Records that nothing could run here, and why.
    pub fn skip_all(&mut self, name: &str, reason: &str) {
        self.skipped += 1;
        println!("SKIPPED  {name}: {reason}");
    }

    /// Records a failure outside any scenario, of the set-up for instance.
    pub fn fail(&mut self, name: &str, error: &anyhow::Error) {
        self.failed += 1;
        println!("FAILED   {name}: {error:#}");
    }

    /// Whether anything failed so far.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.failed > 0
    }

    /// Prints the closing line and gives the process's exit code.
    #[must_use]
    pub fn close(self) -> ExitCode {
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
