//! The log's files that are no segments at the moment, and how large new ones are made.
//!
//! A log grows with what it has to hold: it begins with small files, and makes each new one as large as all that is
//! live, up to the size that the options name. So a small store takes little of the disk, and a busy log's files soon
//! have their full size. A file that is too small for what is wanted goes once a larger one is there.

use std::io;

use super::SEGMENT_SIZE_MIN;
use super::disk::{Disk, is_full};

/// What a log begins with.
pub(super) const SIZE_FIRST: u64 = SEGMENT_SIZE_MIN as u64;

#[derive(Debug)]
pub(super) struct Files {
    /// Files and sizes that hold nothing needed.
    idle: Vec<(u32, u64)>,
    /// Above all files' names.
    end: u32,
    size_max: u64,
}

impl Files {
    /// Of files that hold nothing needed those that may become segments are kept; `size_max` is a segment's.
    pub(super) fn new(disk: &dyn Disk, idle: Vec<(u32, u64)>, end: u32, size_max: u32) -> Self {
        let mut files = Self { idle: Vec::new(), end, size_max: size_max.into() };
        idle.into_iter().for_each(|(file, size)| files.give_back(disk, file, size));
        files
    }

    /// A file of zeros or of nothing needed, and its size: as wanted, within what is allowed, or larger. A smaller one
    /// only where the disk has no room for another.
    pub(super) fn take(&mut self, disk: &dyn Disk, wanted: u64) -> Result<(u32, u64), (u32, io::Error)> {
        let wanted = wanted.clamp(SIZE_FIRST, self.size_max);
        if let Some(fit) = self.idle.iter().position(|(_, size)| *size >= wanted) {
            return Ok(self.idle.swap_remove(fit));
        }
        let (file, small) = (self.end, self.idle.pop());
        match (disk.create(file, wanted), small) {
            (Ok(()), small) => {
                self.end += 1;
                // That it is there does no harm.
                drop(small.map(|(small, _)| disk.remove(small)));
                Ok((file, wanted))
            }
            (Err(error), Some(small)) if is_full(&error) => Ok(small),
            (Err(error), small) => {
                self.idle.extend(small);
                Err((file, error))
            }
        }
    }

    /// This file holds nothing needed any more.
    pub(super) fn give_back(&mut self, disk: &dyn Disk, file: u32, size: u64) {
        if (SIZE_FIRST..=self.size_max).contains(&size) {
            self.idle.push((file, size));
        } else {
            // Of another size, from before an option was changed, or not whole. That it is there does no harm.
            drop(disk.remove(file));
        }
    }
}
