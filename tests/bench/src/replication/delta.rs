//! A follower is stopped, one record in a hundred changes, the follower comes back: bytes and time, beside
//! those of a first sync.

use anyhow::Result;

use super::process::Process;
use super::{IMAGE_SIZE, REDIS, Stage, VALUE_SIZE};
use crate::report::{Report, Target, Unit};
use crate::resp_client::RespClient;
use crate::workload::Indexes;

const FIRST: &str = "first sync, nobody writes";
const OPENING: &str = "follower's restart, until it serves";
const DELTA: &str = "1 % changed meanwhile: from then until it has all";
const SHARE: &str = "the same, as a part of the first sync";
const BYTES: &str = "the same, bytes sent / bytes of changed images";
const FULL_SYNCS: &str = "the same, syncs of everything";

/// One of so many records changes.
const CHANGED_PART: u64 = 100;

pub(super) fn declare(report: &mut Report) {
    report.row(FIRST, REDIS, Unit::Seconds, &[]);
    report.row(OPENING, REDIS, Unit::Seconds, &[]);
    report.row(DELTA, REDIS, Unit::Seconds, &[]);
    report.row(SHARE, REDIS, Unit::Core, &[Target::AtMost(0.05)]);
    report.row(BYTES, REDIS, Unit::Factor, &[Target::AtMost(1.2)]);
    report.row(FULL_SYNCS, REDIS, Unit::Count, &[Target::AtMost(0.0)]);
}

pub(super) fn measure(report: &mut Report, stage: &Stage<'_>, leader: &Process) -> Result<()> {
    const NAME: &str = "away";
    let mut random = Indexes::new(7, CHANGED_PART);
    for round in 0..stage.size.rounds {
        report.begin_round("delta", round, stage.size.rounds);
        let follower = stage.follower(leader, NAME)?;
        leader.wait_for_follower()?;
        let first = follower.started.elapsed().as_secs_f64();
        report.sample(FIRST, stage.side, first);
        follower.stop()?;

        // One of every hundred neighbours: no two the same, and none of the store's blocks left out.
        let changed = stage.size.record_count / CHANGED_PART;
        let indexes: Vec<u64> = (0..changed).map(|group| group * CHANGED_PART + random.draw()).collect();
        let mut client = RespClient::connect(leader.resp)?;
        for batch in indexes.chunks(500) {
            client.set_all(batch.iter().copied(), &format!("{round:<VALUE_SIZE$}"))?;
        }

        let (bytes, full_syncs) = (leader.replication_bytes()?, leader.full_syncs()?);
        let follower = stage.follower(leader, NAME)?;
        leader.wait_for_follower()?;
        let all = follower.started.elapsed();
        let delta = all.saturating_sub(follower.opening).as_secs_f64();
        report.sample(OPENING, stage.side, follower.opening.as_secs_f64());
        report.sample(DELTA, stage.side, delta);
        report.sample(SHARE, stage.side, delta / first);
        let bytes = leader.replication_bytes()? - bytes;
        report.sample(BYTES, stage.side, bytes / (changed * IMAGE_SIZE) as f64);
        // Ours counts one a shard.
        report.sample(FULL_SYNCS, stage.side, (leader.full_syncs()? - full_syncs) as f64);
        drop(follower);
        stage.remove(NAME)?;
    }
    Ok(())
}
