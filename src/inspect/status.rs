//! `slotstream status`: what running nodes say of themselves, as a table.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};

use super::Verdict;
use super::fetch::{FetchError, fetch};
use crate::status::{LinkStatus, Role, ShardStatus, Status};
use crate::units;

/// Asks one node.
pub fn ask(address: &str) -> Result<Status, FetchError> {
    let path = "/status";
    let body = fetch(address, path)?;
    serde_json::from_str(&body).map_err(|error| FetchError::Content {
        address: address.to_owned(),
        path: path.to_owned(),
        error: error.to_string(),
    })
}

/// Asks every node and prints what they say; bad if one could not be asked.
pub fn print(nodes: &[String], json: bool, out: &mut impl Write) -> io::Result<Verdict> {
    let answers: Vec<_> = nodes.iter().map(|address| (address, ask(address))).collect();
    let unreachable = answers.iter().filter(|(_, answer)| answer.is_err()).count();
    if json {
        let entries: Vec<_> = answers
            .iter()
            .map(|(address, answer)| match answer {
                Ok(status) => serde_json::json!({ "address": address, "status": status }),
                Err(error) => serde_json::json!({ "address": address, "error": error.to_string() }),
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&entries)?)?;
    } else {
        let statuses = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
        writeln!(out, "{}", table(statuses))?;
    }
    for error in answers.iter().filter_map(|(_, answer)| answer.as_ref().err()) {
        eprintln!("slotstream: {error}");
    }
    Ok(if unreachable == 0 { Verdict::Good } else { Verdict::Bad })
}

const HEADER: [&str; 11] = [
    "node",
    "role",
    "epoch",
    "shard",
    "phase",
    "seq",
    "lag records",
    "lag bytes",
    "lag seconds",
    "ring use",
    "records",
];

/// The table: a row per shard, and under a leader's shard a row per link.
pub fn table<'s>(statuses: impl Iterator<Item = &'s Status>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(HEADER);
    for status in statuses {
        for shard in &status.shards {
            table.add_row(shard_row(status, shard));
            for link in status.links.iter().filter(|link| link.shard == shard.shard) {
                table.add_row(link_row(link));
            }
        }
        if status.shards.is_empty() {
            let state = "no store yet".to_owned();
            table.add_row([status.node.clone(), role(status), String::new(), String::new(), state]);
        }
    }
    for column in [2, 3, 5, 6, 7, 8, 9, 10] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn role(status: &Status) -> String {
    match status.superseded_by_epoch {
        None => status.role.as_str().to_owned(),
        Some(epoch) => format!("{}, replaced by epoch {epoch}", status.role.as_str()),
    }
}

fn shard_row(status: &Status, shard: &ShardStatus) -> [String; 11] {
    let follows = status.role == Role::Follower;
    let only = |text: String| if follows { text } else { "-".to_owned() };
    [
        status.node.clone(),
        role(status),
        shard.epoch.to_string(),
        shard.shard.to_string(),
        phase(&shard.phase, shard.scan.as_ref()) + if shard.inconsistent { ", inconsistent" } else { "" },
        shard.applied_seq.to_string(),
        only(shard.lag_records.to_string()),
        only(units::bytes(shard.lag_bytes)),
        only(format!("{:.3}", shard.lag_seconds)),
        "-".to_owned(),
        shard.slots_used.to_string(),
    ]
}

fn link_row(link: &LinkStatus) -> [String; 11] {
    let used = units::bytes(link.ring_used);
    // The name under which the follower's own rows stand, where it has one.
    let mut node = link.peer;
    if link.resp_port != 0 {
        node.set_port(link.resp_port);
    }
    [
        format!("  to {node}"),
        "link".to_owned(),
        "-".to_owned(),
        link.shard.to_string(),
        phase(&link.phase, link.scan.as_ref()),
        link.applied_seq.to_string(),
        link.lag_records.to_string(),
        units::bytes(link.lag_bytes),
        format!("{:.3}", link.lag_seconds),
        format!("{used} of {}", units::bytes(link.ring_capacity)),
        "-".to_owned(),
    ]
}

fn phase(word: &str, scan: Option<&crate::status::ScanStatus>) -> String {
    scan.map_or_else(|| word.to_owned(), |scan| format!("{word} {} of {}", scan.slots, scan.slots_total))
}
