//! Floor 1: memory that slots and indexes lie in: a mapped file, anonymous pages, or plain heap words.
//!
//! All `unsafe` for this memory is in this file. A region reserves its largest size at once, so it
//! grows without moving; only its first [`Region::len`] bytes may be touched, and every access is
//! checked against that. A file's bytes are allocated on disk before they count as part of the
//! region, so that a full disk is an error and never a SIGBUS.
//!
//! One owner writes. Beside it, [`Window`]s read words without its leave: what they may look at, the
//! owner changes through [`Region::store`], [`Region::copy`] and [`Region::set_word`] only, which store
//! whole words atomically. A window's reader finds out by other means (a version) whether its words belong together.

#[cfg(feature = "server")]
pub mod fault;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};

/// Bytes of a cache line; [`Region::line`] counts in these.
pub const LINE_SIZE: usize = 64;
const LINE_WORDS: usize = LINE_SIZE / 8;

/// Makes bytes at an offset of a simulated file durable.
pub type SyncBytes = Arc<dyn Fn(usize, &[u8]) -> io::Result<()> + Send + Sync>;

enum Backing {
    File {
        map: MmapRaw,
        file: File,
    },
    Mapped {
        _map: MmapMut,
    },
    /// With what of it is on the disk of a simulated machine, once that is kept.
    Heap {
        _words: Vec<u64>,
        disk: Mutex<Option<Vec<u8>>>,
    },
    /// Of a machine whose disks can fail.
    Simulated {
        _words: Vec<u64>,
        sync: SyncBytes,
    },
}

impl std::fmt::Debug for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File { .. } => "File",
            Self::Mapped { .. } => "Mapped",
            Self::Heap { .. } => "Heap",
            Self::Simulated { .. } => "Simulated",
        })
    }
}

#[derive(Debug)]
struct Memory {
    base: NonNull<u8>,
    /// Bytes that may be touched; only grows.
    len: AtomicUsize,
    reserved: usize,
    backing: Backing,
}

// SAFETY: the memory is plain bytes that no thread is tied to.
unsafe impl Send for Memory {}
// SAFETY: a shared `Memory` is reached through one `Region`, whose borrows order plain accesses, and
// through windows, which load atomically what the region stores atomically.
unsafe impl Sync for Memory {}

/// A growable run of bytes that never moves.
#[derive(Debug)]
pub struct Region {
    memory: Arc<Memory>,
    len: usize,
}

impl Region {
    fn new(base: *mut u8, len: usize, reserved: usize, backing: Backing) -> io::Result<Self> {
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory: Arc::new(Memory { base, len: AtomicUsize::new(len), reserved, backing }), len })
    }

    /// Maps `file`, whose first `len` bytes are allocated, with address space for `reserved` bytes.
    pub fn map(file: File, len: usize, reserved: usize) -> io::Result<Self> {
        assert!(len <= reserved, "region length within its reserve");
        let map = MmapOptions::new().len(reserved).map_raw(&file)?;
        // Random access is the rule; without this the kernel reads ahead, builds large folios, and
        // one dirty byte then costs up to 2 MiB of write-back.
        map.advise(Advice::Random)?;
        Self::new(map.as_mut_ptr(), len, reserved, Backing::File { map, file })
    }

    /// Maps a copy of the first `len` bytes of a file: what is written never reaches it.
    pub fn map_private(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: the mapping is private, and the store's directory lock keeps other writers out.
        let mut map = unsafe { MmapOptions::new().len(len.max(1)).map_copy(file)? };
        Self::new(map.as_mut_ptr(), len, len, Backing::Mapped { _map: map })
    }

    /// Zeroed pages that no file backs, huge ones where the system has them. What is reserved and not
    /// touched takes no memory.
    pub fn anonymous(len: usize, reserved: usize) -> io::Result<Self> {
        assert!(len <= reserved, "region length within its reserve");
        let mut map = MmapOptions::new().len(reserved.max(1)).no_reserve_swap().map_anon()?;
        // Only advice: a kernel without huge pages serves small ones.
        drop(map.advise(Advice::HugePage));
        Self::new(map.as_mut_ptr(), len, reserved, Backing::Mapped { _map: map })
    }

    /// Zeroed heap words, for simulators and tests.
    #[must_use]
    pub fn heap(len: usize, reserved: usize) -> Self {
        assert!(len <= reserved, "region length within its reserve");
        let mut words = vec![0_u64; reserved.div_ceil(8).max(1)];
        let base = NonNull::from(words.as_mut_slice()).cast();
        let backing = Backing::Heap { _words: words, disk: Mutex::new(None) };
        let memory = Memory { base, len: AtomicUsize::new(len), reserved, backing };
        Self { memory: Arc::new(memory), len }
    }

    /// Heap words that begin with these bytes, as a file's memory does, and whose syncs `sync` does.
    #[must_use]
    pub fn simulated(bytes: &[u8], reserved: usize, sync: SyncBytes) -> Self {
        assert!(bytes.len() <= reserved, "region length within its reserve");
        let mut words = vec![0_u64; reserved.div_ceil(8).max(1)];
        let (base, len) = (NonNull::from(words.as_mut_slice()).cast(), AtomicUsize::new(bytes.len()));
        let backing = Backing::Simulated { _words: words, sync };
        let mut region = Self { memory: Arc::new(Memory { base, len, reserved, backing }), len: bytes.len() };
        region.bytes_mut(0, bytes.len()).copy_from_slice(bytes);
        region
    }

    /// A reader of words that runs beside the owner.
    #[must_use]
    pub fn window(&self) -> Window {
        Window { memory: Arc::clone(&self.memory) }
    }

    /// Bytes that may be touched.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes it can grow to.
    #[must_use]
    pub fn reserved(&self) -> usize {
        self.memory.reserved
    }

    /// Makes the region `len` bytes long. On an error nothing has changed but, perhaps, the file's length.
    pub fn grow(&mut self, len: usize) -> io::Result<()> {
        if len <= self.len {
            return Ok(());
        }
        if len > self.memory.reserved {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the region's reserve is used up"));
        }
        if let Backing::File { file, .. } = &self.memory.backing {
            allocate(file, self.len, len)?;
        }
        self.len = len;
        // Release: a window that sees the new length may touch the bytes.
        self.memory.len.store(len, Ordering::Release);
        Ok(())
    }

    /// Begins to read a part of a file that will be wanted. Only advice: who touches it waits for what is not there.
    pub fn read_ahead(&self, offset: usize, len: usize) {
        // No more than this is read for one asking.
        const STEP: usize = 128 << 10;
        let Backing::File { map, .. } = &self.memory.backing else { return };
        let end = offset.saturating_add(len).min(self.len);
        for step in (offset..end).step_by(STEP) {
            drop(map.advise_range(Advice::WillNeed, step, STEP.min(end - step)));
        }
    }

    /// Makes what was written durable.
    pub fn sync(&self) -> io::Result<()> {
        match &self.memory.backing {
            Backing::File { file, .. } => file.sync_data(),
            Backing::Mapped { .. } => Ok(()),
            Backing::Heap { .. } | Backing::Simulated { .. } => self.sync_part(0, self.len),
        }
    }

    /// Makes a part of what was written durable, and nothing else of it.
    pub fn sync_part(&self, offset: usize, len: usize) -> io::Result<()> {
        let part = self.bytes(offset, len);
        match &self.memory.backing {
            Backing::File { map, .. } => map.flush_range(offset, len),
            Backing::Mapped { .. } => Ok(()),
            Backing::Simulated { sync, .. } => sync(offset, part),
            Backing::Heap { disk, .. } => {
                if let Some(disk) = disk.lock().as_mut() {
                    disk.resize(disk.len().max(offset + len), 0);
                    disk[offset..offset + len].copy_from_slice(part);
                }
                Ok(())
            }
        }
    }

    /// Lets heap words have a disk from now on, on which all of them are; for simulators.
    pub fn keep_disk(&self) {
        if let Backing::Heap { disk, .. } = &self.memory.backing {
            disk.lock().get_or_insert_with(|| self.bytes(0, self.len).to_vec());
        }
    }

    /// A copy in heap words, with the same on its disk if these have one.
    #[must_use]
    pub fn copy_to_heap(&self) -> Self {
        let copy = Self::heap_of(self.bytes(0, self.len), self.reserved());
        if let (Backing::Heap { disk: from, .. }, Backing::Heap { disk: to, .. }) =
            (&self.memory.backing, &copy.memory.backing)
        {
            to.lock().clone_from(&from.lock());
        }
        copy
    }

    /// What heap words are after a power cut: what is on their disk, and no longer than that.
    #[must_use]
    pub fn after_power_cut(&self) -> Option<Self> {
        let Backing::Heap { disk, .. } = &self.memory.backing else { return None };
        let disk = disk.lock().clone()?;
        let region = Self::heap_of(&disk, self.reserved());
        region.keep_disk();
        Some(region)
    }

    fn heap_of(bytes: &[u8], reserved: usize) -> Self {
        let mut region = Self::heap(bytes.len(), reserved);
        region.bytes_mut(0, bytes.len()).copy_from_slice(bytes);
        region
    }

    /// Where `len` bytes at `offset` lie, all of them within the region.
    #[inline]
    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset <= self.len && len <= self.len - offset, "region access in bounds");
        // SAFETY: the offset is within the region.
        unsafe { self.memory.base.add(offset) }
    }

    /// `len` bytes at `offset`.
    #[inline]
    #[must_use]
    pub fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        let start = self.at(offset, len);
        // SAFETY: the bytes are allocated and initialised (zeroed at least), and `&self` keeps writers out.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), len) }
    }

    /// `len` bytes at `offset`, to be written.
    #[inline]
    pub fn bytes_mut(&mut self, offset: usize, len: usize) -> &mut [u8] {
        let start = self.at(offset, len);
        // SAFETY: the bytes are allocated and initialised, and `&mut self` keeps everybody else out.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) }
    }

    /// Copies `len` bytes from one place to another that does not overlap it, word by word, each stored
    /// atomically. Both places are 8-aligned.
    #[inline(always)]
    pub fn copy(&mut self, from: usize, to: usize, len: usize) {
        assert!(from + len <= to || to + len <= from, "copy between places that do not overlap");
        let source = self.at(from, len);
        // SAFETY: in bounds as checked by `at`; nobody writes the source but us, and the target is apart.
        let source = unsafe { std::slice::from_raw_parts(source.as_ptr(), len) };
        store_words(self.at(to, len), source);
    }

    /// Writes bytes that nobody looks at yet. Those of a file go the file's way, in steps: a page that was
    /// written is mapped several times faster than one that must be made on its first touch. The steps are
    /// small, because the kernel keeps what was written in one go as one unit of write-back.
    pub fn fill(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        const STEP: usize = 16 << 10;
        self.at(offset, bytes.len());
        let Backing::File { file, .. } = &self.memory.backing else {
            self.bytes_mut(offset, bytes.len()).copy_from_slice(bytes);
            return Ok(());
        };
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (step, behind) = rest.split_at(rest.len().min(STEP - at % STEP));
            file.write_all_at(step, at as u64)?;
            (at, rest) = (at + step.len(), behind);
        }
        Ok(())
    }

    /// The `index`-th cache line as words.
    #[inline]
    #[must_use]
    pub fn line(&self, index: usize) -> &[u64; LINE_WORDS] {
        let start = self.at(index * LINE_SIZE, LINE_SIZE);
        // SAFETY: the base is aligned to 8 in every backing, any bits are a u64, `&self` keeps writers out.
        unsafe { start.cast::<[u64; LINE_WORDS]>().as_ref() }
    }

    /// Stores a word of the `line`-th cache line atomically.
    #[inline]
    pub fn set_word(&mut self, line: usize, place: usize, word: u64) {
        assert!(place < LINE_WORDS, "place in its line");
        let target = self.at(line * LINE_SIZE + place * 8, 8).cast::<AtomicU64>();
        // SAFETY: in bounds and aligned: the base is, and so is the offset.
        unsafe { target.as_ref() }.store(word, Ordering::Relaxed);
    }

    /// Where `offset` lies, for [`prefetch`] only.
    #[inline]
    #[must_use]
    pub fn address(&self, offset: usize) -> usize {
        self.memory.base.as_ptr().addr() + offset
    }
}

/// Stores bytes at `target`, which has room for them and belongs to the caller, whole words atomically.
#[inline(always)]
fn store_words(target: NonNull<u8>, bytes: &[u8]) {
    assert!(target.as_ptr().addr().is_multiple_of(8), "an aligned place");
    let (words, tail) = bytes.as_chunks::<8>();
    // SAFETY: within the room that the caller has checked, and aligned; readers beside us load atomically.
    let target_words =
        unsafe { std::slice::from_raw_parts(target.cast::<AtomicU64>().as_ptr(), words.len()) };
    let word_of = |bytes| u64::from_le_bytes(bytes).to_le();
    // By fours: for a small image the loop itself would be most of the work.
    let (target_lines, target_rest) = target_words.as_chunks::<4>();
    let (lines, rest) = words.as_chunks::<4>();
    for (target, line) in target_lines.iter().zip(lines) {
        (0..4).for_each(|place| target[place].store(word_of(line[place]), Ordering::Relaxed));
    }
    for (target, word) in target_rest.iter().zip(rest) {
        target.store(word_of(*word), Ordering::Relaxed);
    }
    let tail_offset = words.len() * 8;
    // SAFETY: within the room that the caller has checked.
    let target_tail = unsafe { target.add(tail_offset) };
    // SAFETY: as above; a byte needs no alignment.
    let target_tail =
        unsafe { std::slice::from_raw_parts(target_tail.cast::<AtomicU8>().as_ptr(), tail.len()) };
    for (target, byte) in target_tail.iter().zip(tail) {
        target.store(*byte, Ordering::Relaxed);
    }
}

/// Reads words of a region beside its owner. Words are whole; whether two of them belong together is
/// for the reader to find out.
#[derive(Debug)]
pub struct Window {
    memory: Arc<Memory>,
}

impl Window {
    /// Bytes that may be touched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.len.load(Ordering::Acquire)
    }

    /// Bytes of a part of a file that were written and are not on their way to the disk; all of the part where the
    /// system (Linux before 6.5) does not say. None of what is no file.
    pub fn dirty_bytes(&self, offset: usize, len: usize) -> u64 {
        let Backing::File { file, .. } = &self.memory.backing else { return 0 };
        let range = [offset as u64, len as u64];
        let mut pages = PageCounts::default();
        // SAFETY: cachestat reads two numbers and writes five; nobody else has them.
        let result =
            unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), &raw mut pages, 0) };
        if result == 0 { pages.dirty * rustix::param::page_size() as u64 } else { len as u64 }
    }

    /// Begins to write back a part of a file, and does not wait for it: what became of it a [`Window::sync`] says.
    pub fn write_back(&self, offset: usize, len: usize) -> io::Result<()> {
        let Backing::File { file, .. } = &self.memory.backing else { return Ok(()) };
        let offset = offset.try_into().map_err(io::Error::other)?;
        let len = len.try_into().map_err(io::Error::other)?;
        // SAFETY: it takes nothing but numbers.
        let result =
            unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // A system or a file system that does not know it: the sync has more to do, and that is all.
            Some(libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP | libc::EPERM) => Ok(()),
            _ => Err(error),
        }
    }

    /// Makes what was written until now durable, while the owner goes on.
    pub fn sync(&self) -> io::Result<()> {
        match &self.memory.backing {
            Backing::File { file, .. } => file.sync_data(),
            Backing::Mapped { .. } => Ok(()),
            Backing::Simulated { sync, .. } => sync(0, bytes_of(&self.words())),
            Backing::Heap { disk, .. } => {
                if let Some(disk) = disk.lock().as_mut() {
                    disk.clear();
                    disk.extend_from_slice(bytes_of(&self.words()));
                }
                Ok(())
            }
        }
    }

    fn words(&self) -> Vec<u64> {
        let mut words = vec![0; self.memory.len.load(Ordering::Acquire) / 8];
        let loaded = self.load(0, &mut words);
        assert!(loaded, "all of the region, whose length is a multiple of a page");
        words
    }

    /// Loads the words at an 8-aligned offset; false if they are not part of the region (yet).
    #[inline]
    #[must_use]
    pub fn load(&self, offset: usize, words: &mut [u64]) -> bool {
        let len = self.memory.len.load(Ordering::Acquire);
        if !offset.is_multiple_of(8) || offset > len || words.len() * 8 > len - offset {
            return false;
        }
        // SAFETY: in bounds as checked above.
        let source = unsafe { self.memory.base.add(offset).cast::<AtomicU64>() };
        // SAFETY: in bounds and aligned: the base is, and so is the offset; stores there are atomic.
        let source = unsafe { std::slice::from_raw_parts(source.as_ptr(), words.len()) };
        let ((lines, tail), (source, source_tail)) = (words.as_chunks_mut::<4>(), source.as_chunks::<4>());
        for (line, source) in lines.iter_mut().zip(source) {
            *line = std::array::from_fn(|place| source[place].load(Ordering::Relaxed));
        }
        for (word, source) in tail.iter_mut().zip(source_tail) {
            *word = source.load(Ordering::Relaxed);
        }
        true
    }

    /// Loads a cache line into registers. A line that went through memory would have to be written
    /// back before wider loads could read it, and a search would wait for all that came before it.
    #[inline]
    #[must_use]
    pub fn load_line(&self, index: usize) -> Option<[u64; LINE_WORDS]> {
        let lines = self.memory.len.load(Ordering::Acquire) / LINE_SIZE;
        let offset = (index < lines).then(|| index * LINE_SIZE)?;
        // SAFETY: in bounds as checked above.
        let line = unsafe { self.memory.base.add(offset).cast::<[AtomicU64; LINE_WORDS]>() };
        // SAFETY: in bounds and aligned: the base is, and so is the offset; stores there are atomic.
        let line = unsafe { line.as_ref() };
        Some(std::array::from_fn(|place| line[place].load(Ordering::Relaxed)))
    }

    /// Loads the `index`-th word.
    #[inline]
    #[must_use]
    pub fn load_word(&self, index: usize) -> Option<u64> {
        let words = self.memory.len.load(Ordering::Acquire) / 8;
        let offset = (index < words).then(|| index * 8)?;
        // SAFETY: in bounds as checked above.
        let word = unsafe { self.memory.base.add(offset).cast::<AtomicU64>() };
        // SAFETY: in bounds and aligned: the base is, and so is the offset; stores there are atomic.
        Some(unsafe { word.as_ref() }.load(Ordering::Relaxed))
    }

    /// Starts loading the cache line at an offset.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        prefetch(self.memory.base.as_ptr().addr().wrapping_add(offset));
    }
}

/// The same on all machines but Alpha, where it is another call's and fails.
const SYS_CACHESTAT: libc::c_long = 451;

/// What cachestat tells of a range.
#[derive(Default)]
#[repr(C)]
struct PageCounts {
    _cached: u64,
    dirty: u64,
    _in_write_back: u64,
    _evicted: u64,
    _recently_evicted: u64,
}

/// Words as the bytes that they were loaded from.
#[inline]
#[must_use]
pub fn bytes_of(words: &[u64]) -> &[u8] {
    let len = size_of_val(words);
    // SAFETY: any u64 is eight initialised bytes, in the order they have in memory.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), len) }
}

/// Which words of a line have this high half, one bit each. Without branches: which one it is is
/// random, and a wrong guess costs more than looking at all.
#[inline]
#[must_use]
pub fn high_halves_equal(line: &[u64; LINE_WORDS], wanted: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is a part of x86-64.
    return unsafe { high_halves_equal_sse2(line, wanted) };
    #[cfg(not(target_arch = "x86_64"))]
    line.iter()
        .enumerate()
        .fold(0, |bits, (place, word)| bits | (u32::from(word >> 32 == wanted.into()) << place))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse2")]
#[inline]
fn high_halves_equal_sse2(line: &[u64; LINE_WORDS], wanted: u32) -> u32 {
    use std::arch::x86_64::{
        _mm_castps_si128, _mm_castsi128_ps, _mm_cmpeq_epi32, _mm_movemask_ps, _mm_set_epi64x, _mm_set1_epi32,
        _mm_shuffle_ps,
    };
    let wanted = _mm_set1_epi32(wanted.cast_signed());
    let mut bits = 0;
    for half in 0..2 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|place| line[half * 4 + place].cast_signed());
        let (low, high) = (_mm_castsi128_ps(_mm_set_epi64x(b, a)), _mm_castsi128_ps(_mm_set_epi64x(d, c)));
        let high_halves = _mm_castps_si128(_mm_shuffle_ps::<0b11_01_11_01>(low, high));
        let equal = _mm_castsi128_ps(_mm_cmpeq_epi32(high_halves, wanted));
        bits |= _mm_movemask_ps(equal).cast_unsigned() << (half * 4);
    }
    bits
}

/// Allocates the bytes `from..to` of a file on disk, or fails and changes nothing that is in use.
pub fn allocate(file: &File, from: usize, to: usize) -> io::Result<()> {
    if from == to {
        return Ok(());
    }
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

/// Runs [`fault::tell`] and ends the process, whatever else it is doing, when a mapped page cannot be had.
#[cfg(feature = "server")]
fn catch_bus_errors() -> io::Result<()> {
    let handler: extern "C" fn(_, _, _) = on_bus_error;
    // SAFETY: all zeros are an action: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the action lives on, and the handler does only what a handler may.
    let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(feature = "server")]
extern "C" fn on_bus_error(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands over what it knows, for as long as the handler runs.
    let info = unsafe { &*info };
    // SAFETY: of a SIGBUS the kernel tells the address. One that a process has sent has none, and no such code.
    let address = (info.si_code > 0).then(|| unsafe { info.si_addr() }.addr());
    fault::tell(address);
    // SAFETY: nothing of the process runs after it, so nothing can mark anything as closed in order.
    unsafe { libc::_exit(fault::EXIT_BUS_ERROR) }
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
