//! What is found when a log is opened: its files, its frames, where it ends, and whether that is damage.
//!
//! A bad frame is the log's torn end unless something behind it says that it was durable: then it is damage, and
//! the log is not read past it in silence.

use uuid::Uuid;

use super::codec::{
    CHECKPOINT_FILE_SIZE, CHECKPOINT_OFFSETS, CHECKPOINT_SIZE, Checkpoint, FRAME_HEADER_SIZE, FRAMES_OFFSET,
    Found, Frame, Kind, Position, SEGMENT_HEADER_SIZE, read_segment_header,
};
use super::disk::{CHECKPOINT_FILE, Disk};
use super::{LogError, Segment};
use crate::slot::image::read_u64;

/// What files say that they are.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) has_checkpoint_file: bool,
    /// By number.
    pub(crate) segments: Vec<Segment>,
    /// Files and sizes that hold nothing needed.
    pub(crate) idle: Vec<(u32, u64)>,
    /// Above all files' names.
    pub(crate) files_end: u32,
    /// Highest segment number.
    pub(crate) highest: u32,
}

impl Survey {
    pub(crate) fn new(disk: &dyn Disk, store_id: Uuid) -> Result<Self, LogError> {
        let mut survey = Self {
            checkpoint: None,
            has_checkpoint_file: false,
            segments: Vec::new(),
            idle: Vec::new(),
            files_end: CHECKPOINT_FILE + 1,
            highest: 0,
        };
        let files = disk.files().map_err(io_error(CHECKPOINT_FILE, "list the log's files"))?;
        let mut nameless = Vec::new();
        for (file, size) in files {
            survey.files_end = survey.files_end.max(file + 1);
            if file == CHECKPOINT_FILE {
                survey.has_checkpoint_file = true;
                if size >= CHECKPOINT_FILE_SIZE {
                    survey.checkpoint = read_checkpoint(disk, store_id)?;
                }
                continue;
            }
            if size < u64::from(FRAMES_OFFSET) || size > u64::from(u32::MAX) {
                // Its making was cut off.
                survey.idle.push((file, size));
                continue;
            }
            let mut header = [0; SEGMENT_HEADER_SIZE];
            disk.read(file, 0, &mut header).map_err(io_error(file, "read"))?;
            match checked(read_segment_header(store_id, &header), file, store_id)? {
                Some(number) => survey.segments.push(Segment { number, file, size }),
                None => nameless.push((file, size)),
            }
        }
        survey.segments.sort_by_key(|segment| segment.number);
        survey.highest = survey.segments.last().map_or(0, |segment| segment.number);
        let cut = survey.checkpoint.map(|checkpoint| checkpoint.cut);
        for (file, size) in nameless {
            // It was cut off while it became a segment; then it holds nothing but what is older than the cut.
            let bytes = read_whole(disk, file, size)?;
            let newest = frames(&bytes, FRAMES_OFFSET).map(|frame| frame.position).max();
            match (newest, cut) {
                (None, _) => survey.idle.push((file, size)),
                (Some(newest), Some(cut)) if newest < cut => survey.idle.push((file, size)),
                (Some(newest), _) => {
                    return Err(LogError::Damaged { segment: newest.segment(), offset: 0 });
                }
            }
        }
        Ok(survey)
    }
}

fn io_error(file: u32, action: &'static str) -> impl FnOnce(std::io::Error) -> LogError {
    move |error| LogError::Io { file, action, error }
}

/// Another release's or store's file is an error; a bad one is for the caller to judge.
fn checked<T>(found: Found<T>, file: u32, wanted: Uuid) -> Result<Option<T>, LogError> {
    match found {
        Found::Good(good) => Ok(Some(good)),
        Found::Bad => Ok(None),
        Found::Version(found) => Err(LogError::Version { file, found }),
        Found::Store(found) => Err(LogError::Store { file, found, wanted }),
    }
}

fn read_checkpoint(disk: &dyn Disk, store_id: Uuid) -> Result<Option<Checkpoint>, LogError> {
    let mut newest: Option<Checkpoint> = None;
    for offset in CHECKPOINT_OFFSETS {
        let mut copy = [0; CHECKPOINT_SIZE];
        disk.read(CHECKPOINT_FILE, offset, &mut copy).map_err(io_error(CHECKPOINT_FILE, "read"))?;
        let found = checked(Checkpoint::decode(store_id, &copy), CHECKPOINT_FILE, store_id)?;
        newest = newest.into_iter().chain(found).max_by_key(|checkpoint| checkpoint.counter);
    }
    Ok(newest)
}

/// A whole file. Its size is what the disk has of it, so that this allocates no more than is there.
fn read_whole(disk: &dyn Disk, file: u32, size: u64) -> Result<Vec<u8>, LogError> {
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    disk.read(file, 0, &mut bytes).map_err(io_error(file, "read"))?;
    Ok(bytes)
}

/// Every good frame in a segment's bytes from an offset on, whatever lies between them and whatever number they
/// are of.
fn frames(bytes: &[u8], from: u32) -> impl Iterator<Item = Frame<'_>> {
    let end = bytes.len().saturating_sub(FRAME_HEADER_SIZE);
    (from as usize..=end).step_by(8).filter_map(|offset| {
        let position = Position(read_u64(bytes, offset + 8));
        let is_here = position.offset() as usize == offset && position.segment() > 0;
        is_here.then(|| Frame::read(position, &bytes[offset..])).flatten()
    })
}

/// Visits the frames of these segments from `from` on, a segment's at a time; says where they end.
pub(crate) fn walk<E: From<LogError>>(
    disk: &dyn Disk,
    segments: &[Segment],
    from: Position,
    mut visit: impl FnMut(&[Frame<'_>]) -> Result<(), E>,
) -> Result<Position, E> {
    let mut end = from;
    let first = segments.partition_point(|segment| segment.number < from.segment());
    for (segment, wanted) in segments[first..].iter().zip(from.segment()..) {
        if segment.number != wanted {
            return Err(LogError::Missing { segment: wanted }.into());
        }
        if end.segment() != segment.number {
            // The frames end in a segment before this one; it was prepared, or got what was never durable.
            continue;
        }
        let bytes = read_whole(disk, segment.file, segment.size)?;
        let frames;
        (frames, end) = walk_segment(&bytes, end);
        visit(&frames)?;
    }
    let is_first_missing = segments[first..].is_empty() && from.offset() != FRAMES_OFFSET;
    if is_first_missing {
        return Err(LogError::Missing { segment: from.segment() }.into());
    }
    for segment in segments.iter().filter(|segment| segment.number >= end.segment()) {
        let bytes = read_whole(disk, segment.file, segment.size)?;
        let is_durable =
            |frame: &Frame<'_>| frame.position.segment() == segment.number && frame.durable > end;
        let behind = if segment.number == end.segment() { end.offset() } else { FRAMES_OFFSET };
        if frames(&bytes, behind).any(|frame| is_durable(&frame)) {
            return Err(LogError::Damaged { segment: end.segment(), offset: end.offset() }.into());
        }
    }
    Ok(end)
}

/// The frames of a segment, and the position behind the last one: in it, or at the start of the next one.
fn walk_segment(bytes: &[u8], from: Position) -> (Vec<Frame<'_>>, Position) {
    let (mut at, mut frames) = (from, Vec::new());
    while let Some(frame) = bytes.get(at.offset() as usize..).and_then(|bytes| Frame::read(at, bytes)) {
        if frame.kind == Kind::End {
            return (frames, Position::start(at.segment() + 1));
        }
        at = Position(at.0 + Frame::size(frame.payload.len()) as u64);
        frames.push(frame);
    }
    (frames, at)
}
