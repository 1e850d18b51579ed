//! The table: rows with samples of both sides, their medians, the ratio, the target, and whether it is met.
//!
//! A ratio is always ours divided by the peer's, so below 1 is better for times and above 1 for rates.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::clocks::load_average;

/// Whose sample it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// slotstream's.
    Ours,
    /// The peer's.
    Peer,
}

/// What a row's figures are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Operations per second.
    PerSecond,
    /// Nanoseconds.
    Nanoseconds,
    /// CPU seconds per million operations, which is microseconds for one.
    CpuPerMillion,
    /// Parts of one core.
    Core,
    /// A plain factor.
    Factor,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// How many.
    Count,
}

impl Unit {
    fn show(self, figure: f64) -> String {
        match self {
            Self::PerSecond if figure >= 1e6 => format!("{:.2} M/s", figure / 1e6),
            Self::PerSecond => format!("{:.1} k/s", figure / 1e3),
            Self::Nanoseconds if figure >= 1e6 => format!("{:.1} ms", figure / 1e6),
            Self::Nanoseconds if figure >= 1e4 => format!("{:.0} us", figure / 1e3),
            Self::Nanoseconds => format!("{figure:.0} ns"),
            Self::CpuPerMillion => format!("{figure:.2} s/M"),
            Self::Core => format!("{:.2} %", figure * 100.0),
            Self::Factor => format!("{figure:.2}x"),
            Self::Seconds if figure.is_infinite() => "no end".to_owned(),
            Self::Seconds if figure < 1.0 => format!("{:.0} ms", figure * 1e3),
            Self::Seconds => format!("{figure:.2} s"),
            Self::Count => format!("{figure:.0}"),
            Self::Bytes => format!("{:.1} MB", figure / 1e6),
        }
    }
}

/// What a row is held to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Our figure divided by the peer's is no less.
    RatioAtLeast(f64),
    /// Our figure divided by the peer's is no more.
    RatioAtMost(f64),
    /// Our figure is no less.
    AtLeast(f64),
    /// Our figure is no more.
    AtMost(f64),
}

impl Target {
    fn is_met(self, ours: f64, ratio: Option<f64>) -> Option<bool> {
        Some(match self {
            Self::RatioAtLeast(bound) => ratio? >= bound,
            Self::RatioAtMost(bound) => ratio? <= bound,
            Self::AtLeast(bound) => ours >= bound,
            Self::AtMost(bound) => ours <= bound,
        })
    }

    fn show(self, unit: Unit) -> String {
        match self {
            Self::RatioAtLeast(bound) => format!(">= {bound}x"),
            Self::RatioAtMost(bound) => format!("<= {bound}x"),
            Self::AtLeast(bound) => format!(">= {}", unit.show(bound)),
            Self::AtMost(bound) => format!("<= {}", unit.show(bound)),
        }
    }
}

#[derive(Debug)]
struct Row {
    name: String,
    peer_name: &'static str,
    unit: Unit,
    targets: Vec<Target>,
    ours: Vec<f64>,
    peer: Vec<f64>,
}

impl Row {
    fn figures(&self) -> (Option<f64>, Option<f64>, Option<f64>) {
        let (ours, peer) = (median(&self.ours), median(&self.peer));
        let ratio = ours.zip(peer).map(|(ours, peer)| ours / peer).filter(|ratio| ratio.is_finite());
        (ours, peer, ratio)
    }

    fn is_met(&self) -> Option<bool> {
        let (ours, _, ratio) = self.figures();
        let ours = ours?;
        let mut met = None;
        for target in &self.targets {
            met = Some(met.unwrap_or(true) & target.is_met(ours, ratio)?);
        }
        met
    }
}

/// The middle of the samples; `None` without any.
pub fn median(samples: &[f64]) -> Option<f64> {
    percentile(samples, 50)
}

/// The sample that `percent` of all samples do not exceed; `None` without any.
pub fn percentile(samples: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last * percent).div_ceil(100)).copied()
}

/// All rows of a run, in the order in which they were declared.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    loads: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    /// Declares a row; samples come later, under its name.
    pub fn row(&mut self, name: &str, peer_name: &'static str, unit: Unit, targets: &[Target]) {
        assert!(self.rows.iter().all(|row| row.name != name), "row {name} is declared twice");
        let (name, targets) = (name.to_owned(), targets.to_vec());
        self.rows.push(Row { name, peer_name, unit, targets, ours: Vec::new(), peer: Vec::new() });
    }

    /// Adds a sample to a declared row.
    pub fn sample(&mut self, name: &str, side: Side, figure: f64) {
        let row = self.rows.iter_mut().find(|row| row.name == name);
        let row = row.unwrap_or_else(|| panic!("row {name} was never declared"));
        eprintln!(
            "    {:<5} {:<52} {}",
            if side == Side::Ours { "ours" } else { "peer" },
            name,
            row.unit.show(figure)
        );
        match side {
            Side::Ours => row.ours.push(figure),
            Side::Peer => row.peer.push(figure),
        }
    }

    /// Says in the table what a reader of its figures has to know; the same note once only.
    pub fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Begins a round: keeps the load average, so that a noisy run can be told from a quiet one.
    pub fn begin_round(&mut self, suite: &str, round: usize, rounds: usize) {
        let load = load_average();
        eprintln!("{suite}: round {} of {rounds}, load average {load}", round + 1);
        self.loads.push(load);
    }

    /// The table in Markdown, aligned so that it reads well as plain text too.
    pub fn markdown(&self) -> String {
        let header = ["work", "peer", "ours", "peer's", "ratio", "target", "met"].map(str::to_owned);
        let mut lines = vec![header];
        for row in &self.rows {
            let (ours, peer, ratio) = row.figures();
            let show =
                |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| row.unit.show(figure));
            let ratio = ratio.map_or_else(|| "-".to_owned(), show_ratio);
            let targets: Vec<_> = row.targets.iter().map(|target| target.show(row.unit)).collect();
            let met = row.is_met().map_or("-", |met| if met { "yes" } else { "NO" });
            lines.push([
                row.name.clone(),
                row.peer_name.to_owned(),
                show(ours),
                show(peer),
                ratio,
                if targets.is_empty() { "-".to_owned() } else { targets.join(", ") },
                met.to_owned(),
            ]);
        }
        let mut text = align(&lines);
        text.push_str("\nMedians; ratio = ours / peer's.");
        text.push_str(&format!(" Load average at each round: {}.\n", self.loads.join("; ")));
        for note in &self.notes {
            // Writing to a String cannot fail.
            writeln!(text, "- {note}").ok();
        }
        text
    }

    /// Everything, all samples included, for programs.
    pub fn write_json(&self, path: &Path, environment: &serde_json::Value) -> Result<()> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let (ours, peer, ratio) = row.figures();
                json!({
                    "name": row.name, "peer_name": row.peer_name, "unit": format!("{:?}", row.unit),
                    "ours": ours, "peer": peer, "ratio": ratio, "met": row.is_met(),
                    "targets": row.targets.iter().map(|target| target.show(row.unit)).collect::<Vec<_>>(),
                    "ours_samples": row.ours, "peer_samples": row.peer,
                })
            })
            .collect();
        let all = json!({ "environment": environment, "load_averages": self.loads, "notes": self.notes, "rows": rows });
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, format!("{all:#}\n")).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn show_ratio(ratio: f64) -> String {
    if ratio < 0.1 { format!("{ratio:.4}x") } else { format!("{ratio:.2}x") }
}

fn align<const COLUMNS: usize>(lines: &[[String; COLUMNS]]) -> String {
    let widths: [usize; COLUMNS] =
        std::array::from_fn(|column| lines.iter().map(|line| line[column].len()).max().unwrap_or(0));
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(widths) {
            write!(text, "| {cell:<width$} ").ok();
        }
        text.push_str("|\n");
        if number == 0 {
            widths.iter().for_each(|width| {
                write!(text, "|{:-<1$}", "", width + 2).ok();
            });
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_and_none_without_any() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(percentile(&[4.0, 3.0, 2.0, 1.0], 99), Some(4.0));
    }

    #[test]
    fn a_row_is_met_only_if_all_its_targets_are() {
        let mut report = Report::default();
        report.row("work", "peer", Unit::PerSecond, &[Target::RatioAtLeast(2.0), Target::AtLeast(1e6)]);
        report.sample("work", Side::Ours, 2e6);
        assert_eq!(report.rows[0].is_met(), None, "a ratio needs both sides");
        report.sample("work", Side::Peer, 0.9e6);
        assert_eq!(report.rows[0].is_met(), Some(true));
        report.rows[0].targets.push(Target::AtMost(1.0));
        assert_eq!(report.rows[0].is_met(), Some(false));
        assert!(report.markdown().contains("| 2.22x | >= 2x, >= 1.00 M/s"));
    }
}
