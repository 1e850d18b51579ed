//! Floor 2: the write-ahead log, one per store: what shards' slots are healed from after a power cut.
//!
//! The log is a run of frames in segments. Whoever owns it appends frames, writes them out, makes them durable,
//! and cuts the log where the slots themselves have become durable. It is read once, when a store is opened.
//!
//! Always true:
//! - a position only rises; a frame is good at its own position only, so nothing old is taken for new;
//! - a segment's header is durable before its first frame is written, and its file's blocks are allocated before
//!   that, so that there is room; see [`disk::FirstUse`] for what its first syncs write beside bytes;
//! - nothing is used again before the checkpoint that gives it up is durable;
//! - after the first failed write or sync the log takes nothing more, and does not try again.
//!
//! [`codec`] has the formats, [`read`] what is found at opening, [`disk`] what lies below; [`simulated`] is a disk
//! that loses what a power cut may lose.

pub mod codec;
pub mod disk;
mod files;
pub mod read;
pub mod simulated;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use uuid::Uuid;

use crate::planted::{Bug, is_planted};
use crate::slot::ShardIndex;

use codec::{
    CHECKPOINT_FILE_SIZE, CHECKPOINT_OFFSETS, Checkpoint, FRAME_HEADER_SIZE, FRAMES_OFFSET, segment_header,
};
pub use codec::{Frame, Kind, Position};
use disk::{CHECKPOINT_FILE, Disk, is_full};
use files::{Files, SIZE_FIRST};
use read::{Survey, walk};

/// Smallest segment: the largest record must fit.
pub const SEGMENT_SIZE_MIN: u32 = 128 << 10;

/// A payload from so many bytes on is not copied into the log's buffer.
const DIRECT_SIZE_MIN: usize = 32 << 10;

/// Why the log does not go on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The system refused. Nothing is known of what was written: the log takes nothing more.
    #[error("log file {file}: cannot {action}: {error}")]
    Io {
        /// Number of the file; 0 is the checkpoint.
        file: u32,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// An earlier write or sync failed.
    #[error("the log has failed before and takes nothing more")]
    Failed,
    /// The disk has no room for the next segment. Nothing was lost: it can be tried again.
    #[error("no space for the log's next segment: {error}")]
    NoSpace {
        /// What the system said.
        error: io::Error,
    },
    /// The log is as large as it may be: it has to be cut first.
    #[error("the log has its {segments_max} segments and must be cut first")]
    Full {
        /// Segments that it may have.
        segments_max: u32,
    },
    /// Written by another release.
    #[error("log file {file}: format version is {found}, this build reads {}", codec::FORMAT_VERSION)]
    Version {
        /// Number of the file.
        file: u32,
        /// Version stated.
        found: u32,
    },
    /// Belongs to another store.
    #[error("log file {file}: belongs to store {found}, wanted {wanted}")]
    Store {
        /// Number of the file.
        file: u32,
        /// Store stated.
        found: Uuid,
        /// This store.
        wanted: Uuid,
    },
    /// There are segments, but no checkpoint says where they begin.
    #[error("the log's checkpoint is damaged or missing")]
    Checkpoint,
    /// A segment that is needed is not there.
    #[error("log segment {segment} is missing")]
    Missing {
        /// Its number.
        segment: u32,
    },
    /// What was durable is no frame any more.
    #[error("log segment {segment} is damaged at offset {offset}, before what was made durable")]
    Damaged {
        /// Its number.
        segment: u32,
        /// Where the damage begins.
        offset: u32,
    },
}

/// How a log is kept.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// The store it belongs to.
    pub store_id: Uuid,
    /// Bytes of a segment at most, at least [`SEGMENT_SIZE_MIN`]: a log begins with smaller ones.
    pub segment_size: u32,
    /// Segments that the log may have.
    pub segments_max: u32,
}

/// A file in use as a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    number: u32,
    file: u32,
    size: u64,
}

/// The log's writing end.
pub struct Log {
    disk: Arc<dyn Disk>,
    options: LogOptions,
    checkpoint: Checkpoint,
    has_checkpoint: bool,
    /// From the one with the cut to the one being written, oldest first.
    live: VecDeque<Segment>,
    /// Prepared to be the next one.
    spare: Option<Segment>,
    files: Files,
    highest: u32,
    /// Frames that are not written yet; they end at `end`.
    buffer: Vec<u8>,
    end: Position,
    durable: Position,
    /// Files that were written since they were synced.
    unsynced: Vec<u32>,
    is_bounded: bool,
    has_failed: bool,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("cut", &self.checkpoint.cut)
            .field("durable", &self.durable)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the disk's log, or makes one. Nothing is appended before [`Log::begin_anew`].
    pub fn open(disk: Arc<dyn Disk>, options: LogOptions) -> Result<Self, LogError> {
        assert!(options.segment_size >= SEGMENT_SIZE_MIN, "a segment has room for the largest record");
        let mut survey = Survey::new(&*disk, options.store_id)?;
        let (checkpoint, has_checkpoint) = match survey.checkpoint {
            Some(checkpoint) => {
                // A killed process may have left this copy on its way; the other one is written next.
                let failed =
                    |error| LogError::Io { file: CHECKPOINT_FILE, action: "sync the checkpoint", error };
                disk.sync(CHECKPOINT_FILE).map_err(failed)?;
                (checkpoint, true)
            }
            None => match create_checkpoint(&*disk, &options, &survey) {
                Ok(()) => (Checkpoint::FIRST, true),
                // It is made when the log begins.
                Err(LogError::NoSpace { .. }) => (Checkpoint::FIRST, false),
                Err(error) => return Err(error),
            },
        };
        let (live, dead): (Vec<_>, Vec<_>) =
            survey.segments.drain(..).partition(|segment| segment.number >= checkpoint.cut.segment());
        survey.idle.extend(dead.iter().map(|segment| (segment.file, segment.size)));
        let files = Files::new(&*disk, survey.idle, survey.files_end, options.segment_size);
        Ok(Self {
            disk,
            options,
            checkpoint,
            has_checkpoint,
            live: live.into(),
            spare: None,
            files,
            highest: survey.highest.max(checkpoint.cut.segment().saturating_sub(1)),
            buffer: Vec::new(),
            end: checkpoint.cut,
            durable: checkpoint.cut,
            unsynced: Vec::new(),
            is_bounded: true,
            has_failed: false,
        })
    }

    /// Visits the frames from the cut on, in order, those of a segment at a time. What lies behind the first bad one,
    /// and was never called durable, is as if it had never been written. Only before the log begins anew.
    pub fn replay<E: From<LogError>>(
        &self,
        visit: impl FnMut(&[Frame<'_>]) -> Result<(), E>,
    ) -> Result<(), E> {
        let live: Vec<_> = self.live.iter().copied().collect();
        walk(&*self.disk, &live, self.checkpoint.cut, visit)?;
        Ok(())
    }

    /// Gives up all that there is, and begins in a new segment, which is one of the old files where there is one: so a
    /// full disk lets a log begin that has been there before. The caller has made the slots durable that hold it.
    /// On [`LogError::NoSpace`] it has not begun, and can be asked to again.
    pub fn begin_anew(&mut self) -> Result<(), LogError> {
        if !self.has_checkpoint {
            make_checkpoint(&*self.disk, &self.options)?;
            self.has_checkpoint = true;
        }
        let number = self.highest + 1;
        let size = self.live.back().map_or(SIZE_FIRST, |segment| segment.size);
        self.end = Position::start(number);
        self.durable = self.end;
        self.cut(self.end)?;
        let first = self.prepare(number, size)?;
        self.live.push_back(first);
        Ok(())
    }

    /// Whether there is a segment to append to.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        !self.live.is_empty()
    }

    /// The largest payload of the next frame: what this segment has room for, and in any case what each has.
    #[must_use]
    pub fn payload_size_max(&self) -> usize {
        const OF_EACH: usize = (SEGMENT_SIZE_MIN - FRAMES_OFFSET) as usize - 2 * FRAME_HEADER_SIZE;
        // Words: a payload is padded.
        (self.room().saturating_sub(2 * FRAME_HEADER_SIZE) / 8 * 8).max(OF_EACH)
    }

    /// Where the next frame goes.
    #[must_use]
    pub fn end(&self) -> Position {
        self.end
    }

    /// Everything before this position is durable.
    #[must_use]
    pub fn durable(&self) -> Position {
        self.durable
    }

    /// Whether a sync would have nothing to do.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.durable == self.end
    }

    /// Where a replay would begin.
    #[must_use]
    pub fn cut_position(&self) -> Position {
        self.checkpoint.cut
    }

    /// Segments that hold what the slots may lack, and those that there may be.
    #[must_use]
    pub fn fill(&self) -> (u32, u32) {
        (u32::try_from(self.live.len()).unwrap_or(u32::MAX), self.options.segments_max)
    }

    /// Appends a frame. All of it is written by [`Log::write`], and some or none before. On [`LogError::Full`] and
    /// [`LogError::NoSpace`] nothing has changed.
    pub fn append(
        &mut self,
        shard: ShardIndex,
        epoch: u64,
        kind: Kind,
        payload: &[u8],
    ) -> Result<(), LogError> {
        self.append_part(shard, epoch, kind, payload, false)
    }

    /// As [`Log::append`]; a frame that `continues` counts only with what is appended next.
    pub fn append_part(
        &mut self,
        shard: ShardIndex,
        epoch: u64,
        kind: Kind,
        payload: &[u8],
        continues: bool,
    ) -> Result<(), LogError> {
        assert!(payload.len() <= self.payload_size_max(), "a payload fits into a segment");
        if self.has_failed {
            return Err(LogError::Failed);
        }
        let size = Frame::size(payload.len());
        if size + FRAME_HEADER_SIZE > self.room() {
            self.roll()?;
        }
        let (position, durable) = (self.end, self.durable);
        self.push(&Frame { position, durable, epoch, shard, kind, continues, payload })
    }

    fn push(&mut self, frame: &Frame<'_>) -> Result<(), LogError> {
        let (header, words, last) = frame.pieces();
        self.keep(&header);
        if words.len() < DIRECT_SIZE_MIN {
            self.keep(words);
        } else {
            // What is large goes from where it is to the system: what copies it once more is half of the work.
            self.write()?;
            self.write_at(self.end.offset().into(), words)?;
            self.advance(words.len());
        }
        if let Some(last) = last {
            self.keep(&last);
        }
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        self.advance(bytes.len());
    }

    fn advance(&mut self, size: usize) {
        let size = u32::try_from(size).expect("a frame is smaller than a segment");
        self.end = Position::new(self.end.segment(), self.end.offset() + size);
    }

    /// Bytes left in the current segment.
    fn room(&self) -> usize {
        let size = self.live.back().map_or(0, |segment| segment.size);
        usize::try_from(size.saturating_sub(self.end.offset().into())).unwrap_or(usize::MAX)
    }

    /// Goes on in the next segment.
    fn roll(&mut self) -> Result<(), LogError> {
        let next = match self.spare.take() {
            Some(spare) => spare,
            None if self.is_full() => return Err(LogError::Full { segments_max: self.options.segments_max }),
            None => self.prepare(self.end.segment() + 1, self.live_size())?,
        };
        // There is room: every frame leaves it.
        let (position, durable) = (self.end, self.durable);
        self.push(&Frame {
            position,
            durable,
            epoch: 0,
            shard: ShardIndex(0),
            kind: Kind::End,
            continues: false,
            payload: &[],
        })?;
        self.write()?;
        self.live.push_back(next);
        self.end = Position::start(next.number);
        Ok(())
    }

    /// Bytes of all live segments.
    fn live_size(&self) -> u64 {
        self.live.iter().map(|segment| segment.size).sum()
    }

    /// Makes a file the segment of this number: durable, and empty.
    fn prepare(&mut self, number: u32, size: u64) -> Result<Segment, LogError> {
        let (file, size) = match self.files.take(&*self.disk, size) {
            Ok(taken) => taken,
            Err((_, error)) if is_full(&error) => return Err(LogError::NoSpace { error }),
            Err((file, error)) => return Err(self.fail(file, "make a segment", error)),
        };
        let header = segment_header(self.options.store_id, number);
        let written = self.disk.write(file, 0, &header).and_then(|()| self.disk.sync(file));
        written.map_err(|error| self.fail(file, "prepare a segment", error))?;
        self.highest = self.highest.max(number);
        Ok(Segment { number, file, size })
    }

    /// Keeps one segment in reserve, so that the next roll waits for nothing. Call it when there is time.
    pub fn keep_a_spare(&mut self) -> Result<(), LogError> {
        if self.spare.is_none() && !self.is_full() && !self.has_failed {
            self.spare = Some(self.prepare(self.end.segment() + 1, self.live_size())?);
        }
        Ok(())
    }

    /// Whether it may have no more segments than allowed. What a checkpoint must say before it can cut is appended
    /// in any case.
    pub fn set_bounded(&mut self, is_bounded: bool) {
        self.is_bounded = is_bounded;
    }

    fn is_full(&self) -> bool {
        self.is_bounded && self.live.len() >= self.options.segments_max as usize
    }

    /// Hands what was appended to the system.
    pub fn write(&mut self) -> Result<(), LogError> {
        if self.has_failed {
            return Err(LogError::Failed);
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let start = self.end.offset() as usize - buffer.len();
        let written = self.write_at(start as u64, &buffer);
        if written.is_ok() {
            buffer.clear();
        }
        self.buffer = buffer;
        written
    }

    /// Writes bytes to the current segment.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), LogError> {
        let current = self.live.back().expect("a log that was begun has a segment").file;
        if let Err(error) = self.disk.write(current, offset, bytes) {
            return Err(self.fail(current, "write", error));
        }
        if self.unsynced.last() != Some(&current) {
            self.unsynced.push(current);
        }
        Ok(())
    }

    /// Makes everything appended so far durable.
    pub fn sync(&mut self) -> Result<Position, LogError> {
        self.write()?;
        self.sync_files()?;
        Ok(self.durable)
    }

    fn sync_files(&mut self) -> Result<(), LogError> {
        if is_planted(Bug::AckBeforeSync) {
            self.durable = self.end;
            return Ok(());
        }
        for file in std::mem::take(&mut self.unsynced) {
            if let Err(error) = self.disk.sync(file) {
                return Err(self.fail(file, "sync", error));
            }
        }
        self.durable = self.end;
        Ok(())
    }

    /// Gives up what lies before `position`: the slots hold it durably. What lies behind must be durable itself.
    pub fn cut(&mut self, position: Position) -> Result<(), LogError> {
        assert!(position <= self.durable, "the log is cut where it is durable");
        if self.has_failed {
            return Err(LogError::Failed);
        }
        let checkpoint = Checkpoint { counter: self.checkpoint.counter + 1, cut: position };
        write_checkpoint(&*self.disk, &self.options, &checkpoint)
            .map_err(|error| self.fail(CHECKPOINT_FILE, "write the checkpoint", error))?;
        self.checkpoint = checkpoint;
        while let Some(first) = self.live.front().copied().filter(|first| first.number < position.segment()) {
            self.live.pop_front();
            self.files.give_back(&*self.disk, first.file, first.size);
        }
        Ok(())
    }

    fn fail(&mut self, file: u32, action: &'static str, error: io::Error) -> LogError {
        self.has_failed = !is_planted(Bug::RetryAfterFailedSync);
        LogError::Io { file, action, error }
    }
}

fn create_checkpoint(disk: &dyn Disk, options: &LogOptions, survey: &Survey) -> Result<(), LogError> {
    // It is made before the first segment; a segment without it has lost it.
    if !survey.segments.is_empty() {
        return Err(LogError::Checkpoint);
    }
    if survey.has_checkpoint_file {
        // Its making was cut off.
        let error = |error| LogError::Io { file: CHECKPOINT_FILE, action: "remove the checkpoint", error };
        disk.remove(CHECKPOINT_FILE).map_err(error)?;
    }
    make_checkpoint(disk, options)
}

fn make_checkpoint(disk: &dyn Disk, options: &LogOptions) -> Result<(), LogError> {
    let made = disk
        .create(CHECKPOINT_FILE, CHECKPOINT_FILE_SIZE)
        .and_then(|()| write_checkpoint(disk, options, &Checkpoint::FIRST));
    made.map_err(|error| match is_full(&error) {
        true => LogError::NoSpace { error },
        false => LogError::Io { file: CHECKPOINT_FILE, action: "make the checkpoint", error },
    })
}

fn write_checkpoint(disk: &dyn Disk, options: &LogOptions, checkpoint: &Checkpoint) -> io::Result<()> {
    let offset = CHECKPOINT_OFFSETS[usize::from(checkpoint.counter.is_multiple_of(2))];
    disk.write(CHECKPOINT_FILE, offset, &checkpoint.encode(options.store_id))?;
    disk.sync(CHECKPOINT_FILE)
}
