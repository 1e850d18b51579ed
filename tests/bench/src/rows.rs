//! How long a million rows take out of a leader into a file, and from a file into an empty leader.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::replication::process::Process;
use crate::report::{Report, Side, Target, Unit};
use crate::resp_client::RespClient;

const VALUE: &str = "a value of sixty-four bytes, as long as the others are in here..";
const FORMATS: [(&str, [&str; 2]); 3] = [
    ("jsonl", ["export, JSON lines", "import, JSON lines"]),
    ("csv", ["export, CSV", "import, CSV"]),
    ("rdb", ["export, dump of Redis", "import, dump of Redis"]),
];

/// Runs these rows into `report`.
pub fn run(report: &mut Report, rounds: usize, row_count: u64, binary: &Path, folder: &Path) -> Result<()> {
    for row in FORMATS.iter().flat_map(|(_, rows)| rows) {
        report.row(row, "-", Unit::Seconds, &[Target::AtMost(5.0)]);
    }
    report.note(format!("Import and export: {row_count} rows of 16 and 64 bytes, 4 shards."));
    std::fs::create_dir_all(folder)?;
    let [full, empty] = ["full", "empty"].map(|name| folder.join(name));
    let leader = Process::leader(binary, Side::Ours, &full, &[])?;
    RespClient::connect(leader.resp)?.fill(row_count, VALUE)?;
    for round in 0..rounds {
        report.begin_round("rows", round, rounds);
        for (extension, [export, import]) in FORMATS {
            let file = folder.join("rows").with_extension(extension);
            let timed = |tool: &str, node: &Process| -> Result<f64> {
                let start = Instant::now();
                let mut command = Command::new(binary);
                let output = command.arg(tool).arg(node.resp.to_string()).arg(&file).output()?;
                ensure!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
                Ok(start.elapsed().as_secs_f64())
            };
            report.sample(export, Side::Ours, timed("export", &leader)?);
            let target = Process::leader(binary, Side::Ours, &empty, &[])?;
            report.sample(import, Side::Ours, timed("import", &target)?);
            let held = RespClient::connect(target.resp)?.integer(&["DBSIZE"])?;
            ensure!(u64::try_from(held) == Ok(row_count), "{held} of {row_count} rows are in");
            drop(target);
            std::fs::remove_dir_all(&empty)?;
            std::fs::remove_file(&file)?;
        }
    }
    drop(leader);
    Ok(std::fs::remove_dir_all(folder)?)
}
