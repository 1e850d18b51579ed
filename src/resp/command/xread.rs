//! XREAD: what changed in a shard, in the shape of a stream, so that stock clients can follow a store.
//!
//! The stream `changes:<shard>` has an entry for the newest state of every slot that changed after the id asked
//! for, in the order of seqs (see [`crate::store::feed`]). An id is a change's term and seq: a client gives the
//! last one that it has, on whatever node, and misses no slot; `0` is before all changes, `$` behind them. An id
//! that a failover has dropped is answered `LOSTSEQ`.
//!
//! Who waits is woken by its worker, which looks for all (see [`super::super::feeds`]): a writer knows nothing of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::error::CommandError;
use super::super::number::Decimal;
use super::super::reply::Reply;
use super::super::worker::Worker;
use super::{Call, Flow, position, wait};
use crate::counters::feeds::Feeds;
use crate::resp::feeds::{LOOK_INTERVAL, Waiting};
use crate::resp::kept::KeptFeeds;
use crate::slot::{Seq, ShardIndex, SlotIndex, SlotView, Status};
use crate::store::{ChangeFeed, ChangeId, Fed, FeedError, Store};

const PREFIX: &[u8] = b"changes:";
/// Entries of each stream in a reply, unless the client wants fewer.
const COUNT_DEFAULT: usize = 1_000;
/// More are not given at once, whatever the client wants.
const COUNT_MAX: usize = 10_000;
/// A reply ends above this many bytes, all streams together.
const REPLY_BYTES_MAX: usize = 1 << 20;

/// A client's XREAD.
#[derive(Debug)]
pub(in crate::resp) struct Read {
    feeds: Vec<ChangeFeed>,
    /// Where the feeds are kept for the connection's next XREAD.
    kept: Arc<KeptFeeds>,
    count_max: usize,
    block: Block,
}

/// What happens where nothing has changed.
#[derive(Debug, Clone, Copy)]
enum Block {
    No,
    For(Duration),
    Ever,
}

/// Entries of one stream, as they go into the reply.
#[derive(Default)]
struct Entries {
    count: usize,
    reply: Reply,
}

/// `XREAD [COUNT count] [BLOCK ms] STREAMS changes:<shard> ... id ...`
pub(in crate::resp) fn xread(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    let mut read = parse(call)?;
    if !call.in_exec {
        return Ok(Flow::Wait(wait::Request::Changes(read)));
    }
    // Inside a transaction nothing waits, and nobody else is served meanwhile.
    let mut streams = Vec::new();
    for at in 0..read.feeds.len() {
        let mut entries = Entries::default();
        while read.step(at, call.store(), &mut entries)? {}
        streams.push(entries);
    }
    let reply = read.reply(&streams, call.session.resp3);
    call.reply.raw(&reply);
    Ok(Flow::Done)
}

/// `XINFO STREAM changes:<shard>`: how many changes it holds, and the id behind them all.
pub(in crate::resp) fn xinfo(call: &mut Call<'_>) -> Result<Flow, CommandError> {
    if !call.args.is(1, "stream") {
        return Err(call.unknown_subcommand());
    }
    if call.args.len() != 3 {
        return Err(call.subcommand_arity_error("stream"));
    }
    let shard = shard(call, call.args.at(2))?;
    let stats = call.store().stats(shard);
    let last = call.store().last_change(shard);
    call.reply.map(4);
    call.reply.bulk(b"length");
    call.reply.count(stats.slots_used + stats.slots_deleted);
    call.reply.bulk(b"last-generated-id");
    call.reply.bulk(last.to_string().as_bytes());
    // Clients look for them; to find the first would be a search.
    for name in [b"first-entry".as_slice(), b"last-entry"] {
        call.reply.bulk(name);
        call.reply.null();
    }
    Ok(Flow::Done)
}

fn parse(call: &mut Call<'_>) -> Result<Read, CommandError> {
    let args = call.args;
    let (mut count_max, mut block, mut at) = (COUNT_DEFAULT, Block::No, 1);
    while !args.is(at, "streams") {
        let is_count = args.is(at, "count");
        if !(is_count || args.is(at, "block")) || at + 2 >= args.len() {
            return Err(CommandError::Syntax);
        }
        if is_count {
            // As in Redis, what is no number of entries is no bound.
            let count = usize::try_from(args.integer(at + 1)?).ok().filter(|count| *count > 0);
            count_max = count.unwrap_or(COUNT_DEFAULT).min(COUNT_MAX);
        } else {
            block = wait::timeout(args.at(at + 1))?.map_or(Block::Ever, Block::For);
        }
        at += 2;
    }
    let names = at + 1;
    let count = (args.len() - names) / 2;
    if count == 0 || !(args.len() - names).is_multiple_of(2) {
        return Err(CommandError::text(
            "ERR Unbalanced 'xread' list of streams: for each stream key an ID or '$' must be specified.",
        ));
    }
    let worker = call.worker;
    let new = || worker.kept_feeds.join(worker.all_counters.feeds.join());
    let kept = Arc::clone(call.session.feeds.get_or_insert_with(new));
    let plan_slots_max = worker.kept_feeds.slots_per_reader() / count;
    let mut known = kept.take();
    let mut feeds: Vec<ChangeFeed> = Vec::with_capacity(count);
    for (name, id) in (names..names + count).map(|at| (args.at(at), args.at(at + count))) {
        let shard = shard(call, name)?;
        if feeds.iter().any(|feed| feed.shard() == shard) {
            return Err(CommandError::Text(format!("ERR stream changes:{shard} is named twice").into()));
        }
        let last = last(call, shard, id)?;
        let place = known.iter().position(|feed| feed.shard() == shard && feed.last() == last);
        let feed = place.map(|place| known.swap_remove(place));
        kept.reader.note(shard.0, last.seq.0);
        feeds.push(feed.unwrap_or_else(|| ChangeFeed::new(shard, last, plan_slots_max)));
    }
    Ok(Read { feeds, kept, count_max, block })
}

fn shard(call: &Call<'_>, name: &[u8]) -> Result<ShardIndex, CommandError> {
    let number = name.strip_prefix(PREFIX).and_then(|number| std::str::from_utf8(number).ok());
    match number.and_then(|number| number.parse::<u16>().ok()) {
        Some(shard) => position::shard(call, shard.into()),
        None => {
            let after = format!("', wanted changes:0 to changes:{}", call.store().geometry().shard_count - 1);
            Err(CommandError::repeating("ERR no stream '", &name[..name.len().min(128)], &after))
        }
    }
}

fn last(call: &Call<'_>, shard: ShardIndex, id: &[u8]) -> Result<ChangeId, CommandError> {
    if id == b"$" {
        return Ok(call.store().last_change(shard));
    }
    let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
    id.ok_or(CommandError::text(
        "ERR Invalid stream ID specified as stream command argument: wanted TERM-SEQ of an entry, 0 or $",
    ))
}

impl From<FeedError> for CommandError {
    fn from(error: FeedError) -> Self {
        let code = if matches!(error, FeedError::Lost { .. }) { "LOSTSEQ" } else { "ERR" };
        Self::Text(format!("{code} {error}").into())
    }
}

impl Read {
    /// The reply, when there is one.
    pub(super) async fn answer(mut self, worker: &Worker, resp3: bool) -> Vec<u8> {
        let deadline = match self.block {
            Block::For(time) => Instant::now().checked_add(time),
            Block::No | Block::Ever => None,
        };
        let before: Vec<Seq> = self.feeds.iter().map(|feed| feed.last().seq).collect();
        let mut waiting = None;
        loop {
            let streams = match self.round(&worker.context.store).await {
                Ok(streams) => streams,
                Err(error) => {
                    worker.counters.errors.add(1);
                    if matches!(error, FeedError::Lost { .. }) {
                        worker.all_counters.feeds.reset();
                    }
                    let mut reply = Reply::default();
                    reply.error(&CommandError::from(error).message());
                    return reply.as_bytes().to_vec();
                }
            };
            let left = match (self.block, deadline) {
                (Block::No, _) => Duration::ZERO,
                (_, Some(deadline)) => deadline.saturating_duration_since(Instant::now()),
                (_, None) => LOOK_INTERVAL,
            };
            if left.is_zero() || streams.iter().any(|entries| entries.count > 0) {
                let reply = self.reply(&streams, resp3);
                self.count(&streams, &before, &worker.all_counters.feeds);
                self.kept.keep(self.feeds, worker.now_ms());
                return reply;
            }
            match &waiting {
                Some(waiting) => Waiting::changed(waiting, left).await,
                // What has changed since the look is seen by another one.
                None => {
                    let shards = self.feeds.iter().map(ChangeFeed::shard).collect();
                    waiting = Some(worker.lookout.wait_for(&worker.context.store, shards));
                }
            }
        }
    }

    /// Notes where the reader is with this reply, and what it got of what has changed.
    fn count(&self, streams: &[Entries], before: &[Seq], feeds: &Feeds) {
        for ((feed, entries), before) in self.feeds.iter().zip(streams).zip(before) {
            let seq = feed.last().seq.0;
            self.kept.reader.note(feed.shard().0, seq);
            feeds.gave(before.0, seq, entries.count as u64);
        }
    }

    /// What there is now; others are served between its steps.
    async fn round(&mut self, store: &Store) -> Result<Vec<Entries>, FeedError> {
        let mut streams = Vec::new();
        for at in 0..self.feeds.len() {
            let mut entries = Entries::default();
            while self.step(at, store, &mut entries)? {
                tokio::task::yield_now().await;
            }
            streams.push(entries);
        }
        Ok(streams)
    }

    /// Takes one step of a stream; false: it has nothing more for this reply.
    fn step(&mut self, at: usize, store: &Store, entries: &mut Entries) -> Result<bool, FeedError> {
        let bytes_max = REPLY_BYTES_MAX / self.feeds.len();
        let record_max = store.geometry().image_size_max();
        // At least one entry, also where a single one is larger than its share.
        let bytes_left = bytes_max.saturating_sub(entries.reply.len()) / record_max;
        let left = (self.count_max - entries.count).min(bytes_left.max(usize::from(entries.count == 0)));
        if left == 0 {
            return Ok(false);
        }
        let Entries { count, reply } = entries;
        let take = |id: ChangeId, slot, view: &SlotView<'_>| {
            *count += 1;
            push_entry(reply, id, slot, view);
        };
        Ok(self.feeds[at].step(store, left, take)? == Fed::More)
    }

    fn reply(&self, streams: &[Entries], resp3: bool) -> Vec<u8> {
        let mut reply = Reply::default();
        reply.begin(resp3);
        let filled = || self.feeds.iter().zip(streams).filter(|(_, entries)| entries.count > 0);
        match filled().count() {
            0 if resp3 => reply.null(),
            0 => reply.raw(b"*-1\r\n"),
            count if resp3 => reply.map(count),
            count => reply.array(count),
        }
        for (feed, entries) in filled() {
            if !resp3 {
                reply.array(2);
            }
            let number = Decimal::unsigned(feed.shard().0.into());
            reply.bulk(&[PREFIX, number.as_bytes()].concat());
            reply.array(entries.count);
            reply.raw(entries.reply.as_bytes());
        }
        reply.as_bytes().to_vec()
    }
}

/// Appends an entry: its id, then names and values of its fields.
fn push_entry(reply: &mut Reply, id: ChangeId, slot: SlotIndex, view: &SlotView<'_>) {
    let is_set = view.status() == Status::Occupied;
    let expires = is_set && view.expire_at() != 0;
    reply.array(2);
    reply.bulk(id.to_string().as_bytes());
    reply.array(6 + 2 * (usize::from(is_set) + usize::from(expires)));
    reply.bulk(b"op");
    reply.bulk(if is_set { b"set" } else { b"delete" });
    reply.bulk(b"slot");
    reply.bulk_number(slot.0.into());
    reply.bulk(b"key");
    reply.bulk(view.key());
    if is_set {
        reply.bulk(b"value");
        reply.bulk(view.value());
    }
    if expires {
        reply.bulk(b"expire_at");
        reply.bulk_number(view.expire_at());
    }
}
