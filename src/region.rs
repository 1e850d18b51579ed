//! Memory that slots and indexes lie in: a mapped file, anonymous pages, or plain heap words.
//!
//! All `unsafe` for this memory is in this file. A region reserves its largest size at once, so it
//! grows without moving; only its first [`Region::len`] bytes may be touched, and every access is
//! checked against that. A file's bytes are allocated on disk before they count as part of the
//! region, so that a full disk is an error and never a SIGBUS.

use std::fs::File;
use std::io;
use std::ptr::NonNull;

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, fallocate};

/// Bytes of a cache line; [`Region::line`] counts in these.
pub const LINE_SIZE: usize = 64;
const LINE_WORDS: usize = LINE_SIZE / 8;

#[derive(Debug)]
enum Backing {
    File { _map: MmapRaw, file: File },
    Private { _map: MmapMut },
    Anonymous { _map: MmapMut },
    Heap { _words: Vec<u64> },
}

/// A growable run of bytes that never moves.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    reserved: usize,
    backing: Backing,
}

// SAFETY: the region owns its memory, and Rust's borrow rules on `&self` and `&mut self` are the
// only way to it; for a file, the store's directory lock keeps other processes out.
unsafe impl Send for Region {}
// SAFETY: as for Send; `&Region` only reads.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `file`, whose first `len` bytes are allocated, with address space for `reserved` bytes.
    pub fn map(file: File, len: usize, reserved: usize) -> io::Result<Self> {
        assert!(len <= reserved, "region length within its reserve");
        let map = MmapOptions::new().len(reserved).map_raw(&file)?;
        // Random access is the rule; without this the kernel reads ahead, builds large folios, and
        // one dirty byte then costs up to 2 MiB of write-back.
        map.advise(Advice::Random)?;
        let base = NonNull::new(map.as_mut_ptr()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, reserved, backing: Backing::File { _map: map, file } })
    }

    /// Maps a copy of the first `len` bytes of a file: what is written never reaches it.
    pub fn map_private(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: the mapping is private, and the store's directory lock keeps other writers out.
        let mut map = unsafe { MmapOptions::new().len(len.max(1)).map_copy(file)? };
        let base = NonNull::new(map.as_mut_ptr()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, reserved: len, backing: Backing::Private { _map: map } })
    }

    /// Zeroed pages that no file backs, huge ones where the system has them.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        let mut map = MmapOptions::new().len(len.max(1)).map_anon()?;
        // Only advice: a kernel without huge pages serves small ones.
        drop(map.advise(Advice::HugePage));
        let base = NonNull::new(map.as_mut_ptr()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, reserved: len, backing: Backing::Anonymous { _map: map } })
    }

    /// Zeroed heap words, for simulators and tests.
    #[must_use]
    pub fn heap(len: usize, reserved: usize) -> Self {
        assert!(len <= reserved, "region length within its reserve");
        let mut words = vec![0_u64; reserved.div_ceil(8).max(1)];
        let base = NonNull::from(&mut words[0]).cast();
        Self { base, len, reserved, backing: Backing::Heap { _words: words } }
    }

    /// Bytes that may be touched.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte may be touched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes it can grow to.
    #[must_use]
    pub fn reserved(&self) -> usize {
        self.reserved
    }

    /// Makes the region `len` bytes long. On an error nothing has changed but, perhaps, the file's length.
    pub fn grow(&mut self, len: usize) -> io::Result<()> {
        if len <= self.len {
            return Ok(());
        }
        if len > self.reserved {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the region's reserve is used up"));
        }
        if let Backing::File { file, .. } = &self.backing {
            allocate(file, self.len, len)?;
        }
        self.len = len;
        Ok(())
    }

    /// Makes what was written durable.
    pub fn sync(&self) -> io::Result<()> {
        match &self.backing {
            Backing::File { file, .. } => file.sync_data(),
            Backing::Private { .. } | Backing::Anonymous { .. } | Backing::Heap { .. } => Ok(()),
        }
    }

    #[inline]
    fn check(&self, offset: usize, len: usize) {
        assert!(offset <= self.len && len <= self.len - offset, "region access in bounds");
    }

    /// `len` bytes at `offset`.
    #[inline]
    #[must_use]
    pub fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        self.check(offset, len);
        // SAFETY: offset is within the region, as checked above.
        let start = unsafe { self.base.add(offset) };
        // SAFETY: the bytes are allocated and initialised (zeroed at least), and `&self` keeps writers out.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), len) }
    }

    /// `len` bytes at `offset`, to be written.
    #[inline]
    pub fn bytes_mut(&mut self, offset: usize, len: usize) -> &mut [u8] {
        self.check(offset, len);
        // SAFETY: offset is within the region, as checked above.
        let start = unsafe { self.base.add(offset) };
        // SAFETY: the bytes are allocated and initialised, and `&mut self` keeps everybody else out.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) }
    }

    /// Copies `len` bytes from one place to another that does not overlap it.
    #[inline]
    pub fn copy(&mut self, from: usize, to: usize, len: usize) {
        self.check(from, len);
        self.check(to, len);
        assert!(from + len <= to || to + len <= from, "copy between places that do not overlap");
        // SAFETY: `from` is within the region, as checked above.
        let source = unsafe { self.base.add(from) };
        // SAFETY: `to` is within the region, as checked above.
        let target = unsafe { self.base.add(to) };
        // SAFETY: both runs are in bounds and do not overlap, as checked above.
        unsafe { source.copy_to_nonoverlapping(target, len) };
    }

    /// The `index`-th cache line as words.
    #[inline]
    #[must_use]
    pub fn line(&self, index: usize) -> &[u64; LINE_WORDS] {
        self.check(index * LINE_SIZE, LINE_SIZE);
        // SAFETY: the line is within the region, as checked above.
        let start = unsafe { self.base.add(index * LINE_SIZE) };
        // SAFETY: the base is aligned to 8 in every backing, any bits are a u64, `&self` keeps writers out.
        unsafe { start.cast::<[u64; LINE_WORDS]>().as_ref() }
    }

    /// The `index`-th cache line as words, to be written.
    #[inline]
    pub fn line_mut(&mut self, index: usize) -> &mut [u64; LINE_WORDS] {
        self.check(index * LINE_SIZE, LINE_SIZE);
        // SAFETY: the line is within the region, as checked above.
        let start = unsafe { self.base.add(index * LINE_SIZE) };
        // SAFETY: aligned to 8 in every backing, any bits are a u64, `&mut self` keeps everybody out.
        unsafe { start.cast::<[u64; LINE_WORDS]>().as_mut() }
    }

    /// Where `offset` lies, for [`prefetch`] only.
    #[inline]
    #[must_use]
    pub fn address(&self, offset: usize) -> usize {
        self.base.as_ptr().addr() + offset
    }
}

/// Allocates the bytes `from..to` of a file on disk, or fails and changes nothing that is in use.
fn allocate(file: &File, from: usize, to: usize) -> io::Result<()> {
    loop {
        match fallocate(file, FallocateFlags::empty(), from as u64, (to - from) as u64) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes a file of `len` allocated zero bytes to map.
pub fn create_file(path: &std::path::Path, len: usize) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    allocate(&file, 0, len)?;
    Ok(file)
}

/// Starts loading the cache line at an address; never waits and never faults, whatever the address.
#[inline]
pub fn prefetch(address: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line: *const i8 = std::ptr::without_provenance(address);
        // SAFETY: a prefetch is a hint; the processor drops it where the address is not mapped.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    std::hint::black_box(address);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heap_region_reads_what_was_written() {
        let mut region = Region::heap(128, 256);
        region.bytes_mut(8, 3).copy_from_slice(b"abc");
        region.copy(8, 64, 3);
        assert_eq!(region.bytes(64, 3), b"abc");
        region.line_mut(1)[7] = 5;
        assert_eq!(region.line(1)[7], 5);
        region.grow(256).unwrap();
        assert_eq!(region.bytes(8, 3), b"abc");
        assert_eq!(region.grow(257).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    #[should_panic(expected = "in bounds")]
    fn access_behind_the_length_panics() {
        let _bytes = Region::heap(64, 256).bytes(60, 5).len();
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps a file")]
    fn file_region_grows_in_place_and_keeps_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("region");
        let file = create_file(&path, 4096).unwrap();
        let mut region = Region::map(file, 4096, 1 << 30).unwrap();
        region.bytes_mut(4090, 6).copy_from_slice(b"behind");
        let before = region.address(0);
        region.grow(1 << 20).unwrap();
        assert_eq!(region.address(0), before);
        region.bytes_mut((1 << 20) - 1, 1)[0] = 7;
        drop(region);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 1 << 20);
        assert_eq!(&bytes[4090..4096], b"behind");
    }

    #[test]
    fn prefetch_takes_any_address() {
        prefetch(0);
        prefetch(usize::MAX);
    }
}
