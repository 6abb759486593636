//! What is measured: memory, latencies, and how they stand beside a peer in the same run. Each part
//! adds rows to a table; nothing here asserts.

pub mod containers;
pub mod idle;
pub mod memory;
pub mod pods;
pub mod store;

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

/// Rows of figures: what, value with its unit, and the budget it is held against.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<[String; 3]>,
}

impl Table {
    /// Adds a figure.
    pub fn row(&mut self, what: &str, figure: String, budget: &str) {
        self.rows.push([what.to_owned(), figure, budget.to_owned()]);
    }

    /// The rows as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(
            |[what, figure, budget]| json!({ "what": what, "figure": figure, "budget": budget }),
        );
        rows.collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let (first, second) = (width(0), width(1));
        for [what, figure, budget] in &self.rows {
            writeln!(f, "{what:<first$}  {figure:>second$}  {budget}")?;
        }
        Ok(())
    }
}

/// Quantiles of a set of durations.
#[derive(Debug, Clone)]
pub struct Spread(Vec<Duration>);

impl Spread {
    /// Of these durations, in any order; there must be at least one.
    #[must_use]
    pub fn of(mut durations: Vec<Duration>) -> Spread {
        durations.sort_unstable();
        Spread(durations)
    }

    /// The duration below which `percent` of them lie.
    #[must_use]
    pub fn quantile(&self, percent: usize) -> Duration {
        let index = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(index).copied().unwrap_or_default()
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |percent| self.quantile(percent).as_secs_f64() * 1000.0;
        write!(f, "p50 {:.1} ms, p99 {:.1} ms (n={})", millis(50), millis(99), self.0.len())
    }
}
