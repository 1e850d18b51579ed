//! What a store does with its log: every change goes there, too, and the log is cut where the slots are durable.
//!
//! A write appends its record to its shard's buffer, under the shard's lock and no other. Whoever writes the log
//! takes the buffers, one shard after another, appends them as frames, and makes them durable all at once. A buffer
//! that is full makes the next writer do that itself, outside its shard's lock: no thread is needed, and none is
//! waited for that might not be there.
//!
//! Lock order: checkpoint, log, shard. After a failed write or sync the log is dead, and so is the store: every
//! change is refused, and nothing more is called durable.
//!
//! With [`Durability::Always`] the log comes first: a change waits for a sync of its record, and lands in its slot
//! then; see [`super::pending`].
//!
//! A checkpoint: the position P; from there on first what each shard is beside its slots; a sync of the log; a
//! sync of every shard (see [`super::pace`]); then the log is cut at P. So a replay begins with what each shard was.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use super::hold::{Hold, Intent};
use super::log_buffer::Buffer;
use super::log_state::{LogState, Standing};
use super::pace::{Fill, Pace};
use super::pending::{Rounds, land};
use super::{ApplyError, Cell, Store, WriteError};
use crate::planted::{Bug, is_planted};
use crate::shard::replay::{Logged, SEQ_WINDOW};
use crate::slot::image::{RECORD_HEADER_SIZE, read_u32};
use crate::slot::{Seq, ShardIndex};
use crate::wal::{Kind, Log, LogError};

/// Bytes that all shards' buffers may hold together, and each at least and at most.
const BUFFERS_TOTAL: usize = 32 << 20;
const BUFFER_MIN: usize = 128 << 10;
const BUFFER_MAX: usize = 4 << 20;
/// Bytes of records in one frame: what a shard has is one, as a rule.
const FRAME_BYTES: usize = 1 << 20;

/// When a change is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// When the system writes it back: a kill of the process loses nothing, a power cut what is recent. No log.
    None,
    /// At most so long after it was made.
    Interval(Duration),
    /// Before its slot, its readers and followers get it, and before the call that makes it returns.
    Always,
}

impl Durability {
    /// Its name, as the options have it.
    #[must_use]
    pub fn level(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Interval(_) => "interval",
            Self::Always => "always",
        }
    }

    /// How long a change may be in danger, where that is bounded by a time.
    #[must_use]
    pub fn interval(self) -> Option<Duration> {
        match self {
            Self::Interval(interval) => Some(interval),
            Self::None | Self::Always => None,
        }
    }
}

/// Why slots were not made durable, or the log not cut.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A shard's file.
    #[error("shard {shard}: cannot sync its file: {error}")]
    Shard {
        /// The shard.
        shard: ShardIndex,
        /// What the system said.
        error: io::Error,
    },
    /// Who holds shards waits for no log.
    #[error("this would wait for the log inside a transaction")]
    Held,
    /// A slot that a durable change is for.
    #[error("shard {shard}: a change that is in the log cannot be put into its slot: {error}")]
    Land {
        /// The shard.
        shard: ShardIndex,
        /// Why.
        error: ApplyError,
    },
}

impl SyncError {
    /// Whether the log has no space, which passes, and nothing worse.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Log(LogError::Full { .. } | LogError::NoSpace { .. }))
    }
}

/// What a step of the log is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// What shards have is written.
    Written,
    /// It is durable.
    Synced,
    /// So many rounds are over, whoever does them.
    Round(u64),
}

/// How a step of the log ended that has done what it was for.
enum Stepped {
    Done,
    /// Somebody else had done it before.
    Over,
    /// Done, but there is no room for the log's next segment: nothing more may be taken.
    NoSpare(io::Error),
}

/// What a shard's buffer held, on its way into the log.
struct Taken {
    shard: ShardIndex,
    epoch: u64,
    bytes: Vec<u8>,
    /// Bytes appended already.
    done: usize,
    kinds: Vec<(usize, Kind)>,
    state: Option<Logged>,
    /// What is durable of the shard when all of this is.
    reached: Seq,
    leads: bool,
    /// Some of it lands once it is durable.
    has_pending: bool,
    /// And in one step with the rest of its round.
    is_group: bool,
}

struct Work {
    log: Log,
    queue: VecDeque<Taken>,
    /// What the queue holds is one change, of which nothing counts without the rest.
    is_group: bool,
    /// Appended, to land after the next sync.
    landing: Vec<Taken>,
    spare_bytes: Vec<Vec<u8>>,
    /// What the log last said of each shard beside its slots.
    said: Vec<Option<Logged>>,
    /// What is durable of each shard after the next sync, and whether it counts seqs itself.
    reached: Vec<(Seq, bool)>,
    /// Appended since the last checkpoint.
    is_worth_a_cut: bool,
    /// What each shard's buffer takes from now on.
    buffer_limit: usize,
    /// What each shard is has been durable in the log once: what its header has reserved counts no more.
    is_begun: bool,
}

/// Figures of a log.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub struct LogStats {
    /// What it is doing.
    pub state: LogState,
    /// Segments that hold what slots may lack.
    pub segments: u32,
    /// Segments that there may be.
    pub segments_max: u32,
    /// Bytes appended since the store was opened.
    pub bytes: u64,
    /// Syncs since the store was opened.
    pub syncs: u64,
    /// Checkpoints since the store was opened.
    pub checkpoints: u64,
    /// Times a write waited for a checkpoint.
    pub stalls: u64,
    /// Times a writer was held back for a moment because the log was filling.
    pub writes_held: u64,
    /// Writes refused because the log has no space.
    #[serde(default)]
    pub writes_refused: u64,
    /// Bytes of slots that checkpoints wrote back, but for those that their last syncs found.
    pub checkpoint_bytes: u64,
}

/// A store's log, and how far it is.
pub(super) struct Keeper {
    work: Mutex<Work>,
    /// Shared by who holds shards to change them, where the log comes first: a round takes all of that, or nothing.
    pub(super) making: RwLock<()>,
    checkpointing: Mutex<()>,
    durable: Box<[AtomicU64]>,
    pub(super) rounds: Rounds,
    standing: Standing,
    /// Segments in use, and those that there may be: whoever asks must not wait for a sync.
    segments: AtomicU32,
    segments_max: u32,
    bytes: AtomicU64,
    syncs: AtomicU64,
    checkpoints: AtomicU64,
    stalls: AtomicU64,
    pace: Pace,
    /// What a shard's buffer takes while there is no hurry.
    buffer_limit: usize,
}

impl Keeper {
    /// Begins with a log that holds nothing yet: it is told what each shard is, and that is durable. On a full disk
    /// that comes later, and nothing is taken before.
    pub(super) fn begin(log: Log, cells: &[Cell], comes_first: bool) -> Result<Self, SyncError> {
        let (_, segments_max) = log.fill();
        let buffer_limit = (BUFFERS_TOTAL / cells.len()).clamp(BUFFER_MIN, BUFFER_MAX);
        let work = Work {
            log,
            queue: VecDeque::new(),
            is_group: false,
            landing: Vec::new(),
            spare_bytes: Vec::new(),
            said: vec![None; cells.len()],
            reached: vec![(Seq::ZERO, false); cells.len()],
            is_worth_a_cut: false,
            buffer_limit,
            is_begun: false,
        };
        let keeper = Self {
            work: Mutex::new(work),
            making: RwLock::new(()),
            checkpointing: Mutex::new(()),
            durable: cells.iter().map(|_| AtomicU64::new(0)).collect(),
            rounds: Rounds::default(),
            standing: Standing::default(),
            segments: AtomicU32::new(1),
            segments_max,
            bytes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            checkpoints: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
            pace: Pace::default(),
            buffer_limit,
        };
        for cell in cells {
            let mut locked = cell.lock.write();
            locked.log = Buffer { is_on: true, comes_first, limit: buffer_limit, ..Buffer::off() };
        }
        match keeper.step(cells, Goal::Synced) {
            Ok(Stepped::Done | Stepped::Over) => {}
            Ok(Stepped::NoSpare(error)) | Err(SyncError::Log(LogError::NoSpace { error })) => {
                keeper.standing.find_no_space(error);
            }
            Err(error) => return Err(error),
        }
        Ok(keeper)
    }

    fn fill(&self) -> Fill {
        Fill { segments: self.segments.load(Ordering::Relaxed), segments_max: self.segments_max }
    }

    /// Makes what was appended durable, lands what waited for that, and says so.
    fn sync(&self, work: &mut Work, cells: &[Cell]) -> Result<(), SyncError> {
        if is_planted(Bug::LandedBeforeSync) {
            work.land(cells)?;
        }
        self.syncs.fetch_add(u64::from(!work.log.is_durable()), Ordering::Relaxed);
        work.log.sync()?;
        work.land(cells)?;
        if work.queue.is_empty() {
            if !std::mem::replace(&mut work.is_begun, true) {
                cells.iter().for_each(|cell| cell.lock.write().shard.forget_reserved());
            }
            for (durable, (reached, _)) in self.durable.iter().zip(&work.reached) {
                durable.store(reached.0, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Takes what shards have, and writes it; durable too where that is asked for or due.
    fn step(&self, cells: &[Cell], goal: Goal) -> Result<Stepped, SyncError> {
        let work = &mut *self.work.lock();
        if let Goal::Round(round) = goal
            && self.rounds.is_over(round)
        {
            return Ok(Stepped::Over);
        }
        // Before anything is taken: what was made before it began is in it.
        let round = (goal != Goal::Written).then(|| self.rounds.begin());
        work.append_queue(self)?;
        work.buffer_limit = self.pace.buffer(self.fill(), self.buffer_limit);
        work.take_all(cells, self);
        work.append_queue(self)?;
        work.log.write()?;
        self.segments.store(work.log.fill().0, Ordering::Relaxed);
        let far = |(durable, (reached, leads)): (&AtomicU64, &(Seq, bool))| {
            *leads && reached.0.saturating_sub(durable.load(Ordering::Relaxed)) > SEQ_WINDOW / 2
        };
        // No leader's head may run further ahead of what is durable than seqs are reserved.
        let is_wanted = round.is_some() && !is_planted(Bug::ReplyBeforeDurable);
        if is_wanted || self.durable.iter().zip(&work.reached).any(far) {
            self.sync(work, cells)?;
        }
        if let Some(round) = round {
            self.rounds.end(round);
        }
        // While there is room in this segment for what a checkpoint must say, should there be none for another.
        match work.log.keep_a_spare() {
            Ok(()) => Ok(Stepped::Done),
            Err(LogError::NoSpace { error }) => Ok(Stepped::NoSpare(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// A step; where the log is full, after a checkpoint.
    pub(super) fn drive(&self, store: &Store, goal: Goal) -> Result<(), SyncError> {
        if store.is_held_here() {
            // Whoever has the log now may wait for these shards.
            return Err(SyncError::Held);
        }
        let mut has_tried = false;
        loop {
            if self.standing.get() == LogState::Failed {
                return Err(LogError::Failed.into());
            }
            let (error, is_done) = match self.step(&store.cells, goal) {
                Ok(Stepped::Done) => {
                    self.standing.find_space();
                    return Ok(());
                }
                Ok(Stepped::Over) => return Ok(()),
                Err(SyncError::Log(LogError::Full { .. })) => {
                    self.stalls.fetch_add(1, Ordering::Relaxed);
                    let _need = self.pace.need();
                    self.checkpoint(store)?;
                    continue;
                }
                Ok(Stepped::NoSpare(error)) => (error, true),
                Err(SyncError::Log(LogError::NoSpace { error })) => (error, false),
                Err(error) => {
                    self.standing.fail();
                    return Err(error);
                }
            };
            // What the log gives up may be all that it needs.
            if !has_tried && self.work.lock().log.fill().0 > 1 {
                has_tried = true;
                let _need = self.pace.need();
                self.checkpoint(store)?;
                continue;
            }
            self.standing.find_no_space(&error);
            return if is_done { Ok(()) } else { Err(LogError::NoSpace { error }.into()) };
        }
    }

    /// Nothing more is taken.
    pub(super) fn fail(&self) {
        self.standing.fail();
    }

    fn checkpoint(&self, store: &Store) -> Result<(), SyncError> {
        let _one = self.checkpointing.lock();
        if self.standing.get() == LogState::Failed {
            return Err(LogError::Failed.into());
        }
        // That it has cut the log does not mean that there is space: a step finds out.
        self.checkpoint_alone(store).inspect_err(|error| match error {
            SyncError::Log(LogError::Full { .. }) => {}
            SyncError::Log(LogError::NoSpace { error }) => self.standing.find_no_space(error),
            _ => self.standing.fail(),
        })
    }

    fn checkpoint_alone(&self, store: &Store) -> Result<(), SyncError> {
        let cut = {
            let work = &mut *self.work.lock();
            // What is on its way counts before what is said of the shards now; for that the log may be too large.
            work.log.set_bounded(false);
            let cut = work.begin_cut(&store.cells, self);
            work.log.set_bounded(true);
            let cut = cut?;
            self.sync(work, &store.cells)?;
            cut
        };
        if !is_planted(Bug::LogCutBeforeSync) {
            for (shard, cell) in store.shards().zip(&*store.cells) {
                let synced = self.pace.sync(&cell.slots, || self.fill());
                synced.map_err(|error| SyncError::Shard { shard, error })?;
            }
        }
        let mut work = self.work.lock();
        work.log.cut(cut)?;
        self.segments.store(work.log.fill().0, Ordering::Relaxed);
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Work {
    /// What comes from here on is all that slots may lack once they are synced; says where that begins.
    fn begin_cut(&mut self, cells: &[Cell], keeper: &Keeper) -> Result<crate::wal::Position, LogError> {
        self.append_queue(keeper)?;
        self.said.fill(None);
        self.take_all(cells, keeper);
        let cut = self.log.end();
        self.append_queue(keeper)?;
        self.is_worth_a_cut = false;
        Ok(cut)
    }

    fn take_all(&mut self, cells: &[Cell], keeper: &Keeper) {
        let _whole = keeper.making.write();
        for (index, cell) in cells.iter().enumerate() {
            let shard = ShardIndex(u16::try_from(index).unwrap_or(u16::MAX));
            let taken = self.take(shard, cell, index);
            if taken.bytes.is_empty() && taken.state.is_none() {
                self.spare_bytes.push(taken.bytes);
            } else {
                self.queue.push_back(taken);
            }
        }
        self.is_group = self.queue.iter().any(|taken| taken.is_group) && !is_planted(Bug::GroupUnmarked);
    }

    fn take(&mut self, shard: ShardIndex, cell: &Cell, index: usize) -> Taken {
        let spare = self.spare_bytes.pop().unwrap_or_default();
        // Not `exclusive`: readers without the lock see nothing of this.
        let mut locked = cell.lock.write();
        let (progress, leads) = (locked.shard.progress(), locked.shard.leads());
        let is_said = self.said[index].as_ref().is_some_and(|said| locked.shard.is_logged(said));
        let bytes = std::mem::replace(&mut locked.log.bytes, spare);
        locked.log.limit = self.buffer_limit;
        // With records, too: what is durable of a shard is what was last said of it.
        let state = (!is_said || !bytes.is_empty()).then(|| locked.shard.logged());
        Taken {
            shard,
            epoch: locked.shard.epoch(),
            bytes,
            done: 0,
            kinds: std::mem::take(&mut locked.log.kinds),
            state,
            reached: if leads { locked.shard.tail().unwrap_or(locked.shard.made()) } else { progress.seq },
            leads,
            has_pending: locked.shard.has_pending(),
            is_group: std::mem::take(&mut locked.log.is_group),
        }
    }

    /// Appends what was taken. Where the log does not take all of it, the rest stays for the next time.
    fn append_queue(&mut self, keeper: &Keeper) -> Result<(), LogError> {
        if !self.log.is_begun() {
            self.log.begin_anew()?;
        }
        while let Some(mut taken) = self.queue.pop_front() {
            let continues = self.is_group && !self.queue.is_empty();
            if let Err(error) = self.append(&mut taken, keeper, continues) {
                self.queue.push_front(taken);
                return Err(error);
            }
            let index = usize::from(taken.shard.0);
            if let Some(state) = taken.state.take() {
                self.said[index] = Some(state);
            }
            self.reached[index] = (taken.reached, taken.leads);
            if taken.has_pending {
                self.landing.push(taken);
            } else {
                self.reuse(taken);
            }
        }
        Ok(())
    }

    fn reuse(&mut self, mut taken: Taken) {
        taken.bytes.clear();
        self.spare_bytes.push(taken.bytes);
    }

    /// Puts what has become durable, and waited for that, into its slots.
    fn land(&mut self, cells: &[Cell]) -> Result<(), SyncError> {
        let landing = std::mem::take(&mut self.landing);
        let is_group = landing.iter().any(|taken| taken.is_group) && !is_planted(Bug::GroupLandedApart);
        let mut shards: Vec<_> = landing.iter().filter(|_| is_group).map(|taken| taken.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        let cell = |shard: &ShardIndex| &cells[usize::from(shard.0)];
        let _hold = is_group.then(|| Hold::new(shards.iter().map(cell), Intent::Write));
        for taken in landing {
            let (shard, cell) = (taken.shard, &cells[usize::from(taken.shard.0)]);
            land(cell, &taken.bytes).map_err(|error| SyncError::Land { shard, error })?;
            self.reuse(taken);
        }
        Ok(())
    }

    /// `continues`: so does the last of its frames.
    fn append(&mut self, taken: &mut Taken, keeper: &Keeper, continues: bool) -> Result<(), LogError> {
        while taken.done < taken.bytes.len() {
            let at = taken.done;
            let kind = taken.kinds.iter().rfind(|(start, _)| *start <= at).map_or(Kind::Records, |run| run.1);
            let run_end = taken.kinds.iter().map(|run| run.0).find(|start| *start > at);
            let run = &taken.bytes[at..run_end.unwrap_or(taken.bytes.len())];
            let size = whole_records(run, FRAME_BYTES.min(self.log.payload_size_max()));
            let is_last = taken.done + size == taken.bytes.len() && taken.state.is_none();
            let goes_on = continues || (self.is_group && !is_last);
            self.log.append_part(taken.shard, taken.epoch, kind, &run[..size], goes_on)?;
            taken.done += size;
            self.is_worth_a_cut = true;
            keeper.bytes.fetch_add(size as u64, Ordering::Relaxed);
        }
        if let Some(state) = &taken.state {
            self.log.append_part(taken.shard, taken.epoch, Kind::State, &state.encode(), continues)?;
        }
        Ok(())
    }
}

/// Bytes of the first records that fit into so many; at least one record.
fn whole_records(bytes: &[u8], bytes_max: usize) -> usize {
    if bytes.len() <= bytes_max {
        return bytes.len();
    }
    let mut end = 0;
    while end < bytes.len() {
        let next = end + RECORD_HEADER_SIZE + read_u32(bytes, end + 4) as usize;
        if end > 0 && next > bytes_max {
            break;
        }
        end = next;
    }
    end
}

impl Store {
    /// When a change is durable.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// Whether the store has a log.
    #[must_use]
    pub fn has_log(&self) -> bool {
        self.keeper.is_some()
    }

    /// Writes what shards have for the log; a power cut may still take it. Nothing where there is no log.
    pub fn write_log(&self) -> Result<(), SyncError> {
        self.keeper.as_ref().map_or(Ok(()), |keeper| keeper.drive(self, Goal::Written))
    }

    /// Makes every change made until now durable. Nothing where there is no log.
    pub fn sync_log(&self) -> Result<(), SyncError> {
        self.keeper.as_ref().map_or(Ok(()), |keeper| keeper.drive(self, Goal::Synced))
    }

    /// Makes all slots durable and cuts the log. Writers go on meanwhile.
    pub fn checkpoint(&self) -> Result<(), SyncError> {
        self.keeper.as_ref().map_or(Ok(()), |keeper| keeper.checkpoint(self))
    }

    /// Lets checkpoints write so many bytes a second while the log is not filling, and holds writers back before it
    /// is full; 0 = neither, as at first. One that is under way hears of it, too.
    pub fn pace_checkpoints(&self, bytes_per_second: u64) {
        if let Some(keeper) = &self.keeper {
            keeper.pace.set(bytes_per_second);
        }
    }

    /// Whether a checkpoint is worth its while: the log is half full, or `is_due` and not empty.
    #[must_use]
    pub fn wants_checkpoint(&self, is_due: bool) -> bool {
        self.keeper.as_ref().is_some_and(|keeper| {
            let work = keeper.work.lock();
            let (segments, segments_max) = work.log.fill();
            work.is_worth_a_cut && (is_due || segments * 2 > segments_max)
        })
    }

    /// Everything of the shard up to here survives a power cut; zero where there is no log.
    #[must_use]
    pub fn durable(&self, shard: ShardIndex) -> Seq {
        let durable = self.keeper.as_ref().and_then(|keeper| keeper.durable.get(usize::from(shard.0)));
        durable.map_or(Seq::ZERO, |durable| Seq(durable.load(Ordering::Acquire)))
    }

    /// Figures of the log; none where there is none.
    #[must_use]
    pub fn log_stats(&self) -> Option<LogStats> {
        let keeper = self.keeper.as_ref()?;
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let (checkpoint_bytes, writes_held) = keeper.pace.figures();
        Some(LogStats {
            state: keeper.standing.get(),
            segments: keeper.segments.load(Ordering::Relaxed),
            segments_max: keeper.segments_max,
            bytes: read(&keeper.bytes),
            syncs: read(&keeper.syncs),
            checkpoints: read(&keeper.checkpoints),
            stalls: read(&keeper.stalls),
            writes_held,
            writes_refused: keeper.standing.refused(),
            checkpoint_bytes,
        })
    }

    /// Writes the log, for a writer that found its shard's buffer full, or a log that takes nothing.
    #[cold]
    pub(super) fn make_room(&self, shard: ShardIndex) -> Result<(), WriteError> {
        if self.log_state() == LogState::Failed {
            return Err(WriteError::LogFailed);
        }
        // Not every refused write is to try: the one who drives the log does.
        if let Some(keeper) = self.keeper.as_ref().filter(|_| self.log_state() == LogState::NoSpace) {
            return Err(WriteError::LogFull { shard, error: keeper.standing.refuse() });
        }
        if let Some(keeper) = &self.keeper {
            keeper.pace.hold(keeper.fill());
        }
        // What waits takes memory until it is durable.
        let made = if self.log_first { self.sync_log() } else { self.write_log() };
        made.map_err(|error| match error.is_full() {
            true => WriteError::LogFull { shard, error: error.to_string() },
            false => WriteError::LogFailed,
        })
    }

    /// What the log is doing; `Going` where there is none.
    #[must_use]
    pub fn log_state(&self) -> LogState {
        self.keeper.as_ref().map_or(LogState::Going, |keeper| keeper.standing.get())
    }

    /// Why the log takes no changes for the time being: it has no space, as the system says.
    #[must_use]
    pub fn log_lacks_space(&self) -> Option<String> {
        self.keeper.as_ref()?.standing.lacks_space()
    }

    /// Whether changes need not be refused because of the log.
    #[inline]
    pub(super) fn has_good_log(&self) -> bool {
        self.keeper.as_ref().is_none_or(|keeper| keeper.standing.is_going())
    }

    /// The end of the log of a store that is closed in order: nothing is left to be replayed.
    pub(super) fn end_log(&self) -> Result<(), SyncError> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        let mut work = keeper.work.lock();
        if !work.log.is_begun() {
            return Ok(());
        }
        let end = work.log.sync()?;
        Ok(work.log.cut(end)?)
    }
}

#[cfg(test)]
mod frame_tests;
#[cfg(test)]
mod tests;
