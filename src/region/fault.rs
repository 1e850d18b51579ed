//! The end of a process that cannot have a page of a mapped file.
//!
//! An I/O error, a file that somebody cut short, a hole on a full disk: the kernel sends SIGBUS to whoever touched
//! the page. There is nothing to go on with, so the process says which byte of which file it was and ends at once;
//! no store is marked as closed in order. Only the binary asks for this: a program that embeds a store may have
//! other plans for the signal.
//!
//! What runs in the handler takes no lock, allocates nothing, and never waits for long.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Exit code: what a shell says of a process that the signal has killed.
pub const EXIT_BUS_ERROR: i32 = 135;

/// Longer than any line of the maps: a path has at most 4,096 bytes.
const LINES_MAX: usize = 8 << 10;
/// What a pipe takes at once.
const MESSAGE_MAX: usize = 4 << 10;
/// For a reader of standard error that is busy; one that is stuck must not keep the process alive.
const SAY_WITHIN: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What is mapped where. Opened beforehand: when it is needed no descriptor may be left.
static MAPS: OnceLock<File> = OnceLock::new();
static IS_TOLD: AtomicBool = AtomicBool::new(false);

/// From now on a page that cannot be had ends the process with a line on standard error and [`EXIT_BUS_ERROR`].
pub fn exit_on_bus_error() -> std::io::Result<()> {
    if let Ok(maps) = File::open("/proc/self/maps") {
        drop(MAPS.set(maps));
    }
    super::catch_bus_errors()
}

/// Says on standard error which byte of which file lies at the address; `None`: a process has sent the signal.
pub(super) fn tell(address: Option<usize>) {
    if IS_TOLD.swap(true, Ordering::Relaxed) {
        // Another thread is about to end the process; two lines would say no more.
        std::thread::sleep(Duration::from_secs(5));
        return;
    }
    let mut lines = [0; LINES_MAX];
    let place = address.and_then(|address| find(MAPS.get()?, address as u64, &mut lines));
    let mut message = [0; MESSAGE_MAX];
    let mut rest = message.as_mut_slice();
    // What does not fit is cut off.
    drop(match (address, place) {
        (None, _) => rest.write_all(b"slotstream: ended by a SIGBUS that some process has sent\n"),
        (Some(address), None) => {
            writeln!(rest, "slotstream: SIGBUS at address {address:#x}, which is in no mapped file; {ENDS}")
        }
        (Some(_), Some((path, offset))) => {
            let path = &lines[path];
            rest.write_all(b"slotstream: ")
                .and_then(|()| rest.write_all(&path[..path.len().min(MESSAGE_MAX / 2)]))
                .and_then(|()| {
                    writeln!(rest, ": cannot read or write byte {offset} (SIGBUS): {CAUSES}; {ENDS}")
                })
        }
    });
    let left = rest.len();
    say(&message[..MESSAGE_MAX - left]);
}

const CAUSES: &str = "an I/O error of the disk, a file that was cut short, or a hole on a full disk";
const ENDS: &str = "this process ends at once and nothing is marked as closed in order. The kernel's log tells more; \
                    see to the disk and the file before the next start, and check with `slotstream verify DIR`";

fn say(message: &[u8]) {
    let stderr = std::io::stderr();
    let mut ready = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)];
    if poll(&mut ready, Some(&SAY_WITHIN)) != Ok(0) {
        // Past the lock that standard error has: its holder may be who was interrupted. Who hears nothing sees the
        // exit code.
        let _written: rustix::io::Result<usize> = rustix::io::write(stderr.as_fd(), message);
    }
}

/// Which part of `lines` is the path of the file that is mapped at an address, and which of its bytes lies there.
fn find(mut maps: impl Read, address: u64, lines: &mut [u8]) -> Option<(Range<usize>, u64)> {
    let mut filled = 0;
    loop {
        let read = maps.read(&mut lines[filled..]).ok()?;
        filled += read;
        let mut start = 0;
        while let Some(len) = lines[start..filled].iter().position(|byte| *byte == b'\n') {
            let end = start + len;
            if let Some((path, offset)) = place(&lines[start..end], address) {
                return Some((start + path..end, offset));
            }
            start = end + 1;
        }
        if read == 0 {
            return None;
        }
        lines.copy_within(start..filled, 0);
        filled -= start;
    }
}

/// Of a line `7f00-7f01 rw-s 00001000 fd:00 1234   /path`: where the path begins, and which byte of the file is at
/// the address, if it is within.
fn place(line: &[u8], address: u64) -> Option<(usize, u64)> {
    let mut fields =
        std::str::from_utf8(&line[..line.iter().position(|byte| *byte == b'/')?]).ok()?.split(' ');
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let (from, to) = fields.next()?.split_once('-')?;
    let (from, to) = (hexadecimal(from)?, hexadecimal(to)?);
    let offset = hexadecimal(fields.nth(1)?)?;
    let path = line.iter().position(|byte| *byte == b'/')?;
    (from..to).contains(&address).then(|| (path, offset + (address - from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time, as the kernel gives whole lines only, but not all.
    struct Sips<'a>(&'a [u8]);

    impl Read for Sips<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let (now, later) = self.0.split_at(self.0.len().min(buffer.len()).min(7));
            buffer[..now.len()].copy_from_slice(now);
            self.0 = later;
            Ok(now.len())
        }
    }

    #[test]
    fn an_address_is_found_in_its_file_and_in_no_other() {
        let maps = b"00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/slotstream\n\
                     00e03000-00e24000 rw-p 00000000 00:00 0           [heap]\n\
                     7f0000000000-7f0000010000 rw-s 00003000 fd:00 99  /srv/with space/shards/0002.slots\n\
                     7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0\n";
        let at = |address| {
            let mut lines = [0; 128];
            let (path, offset) = find(Sips(maps), address, &mut lines)?;
            Some((String::from_utf8_lossy(&lines[path]).into_owned(), offset))
        };
        let file = || "/srv/with space/shards/0002.slots".to_owned();
        assert_eq!(at(0x7f00_0000_0000), Some((file(), 0x3000)));
        assert_eq!(at(0x7f00_0000_ffff), Some((file(), 0x12fff)));
        assert_eq!(at(0x7f00_0001_0000), None);
        assert_eq!(at(0x0040_0001).map(|(_, offset)| offset), Some(1));
        assert_eq!(at(0x00e0_3000), None, "no file");
    }

    #[test]
    fn lines_that_do_not_fit_or_mean_nothing_are_no_place() {
        let long = [b"1-2 r 0 0 0 /".as_slice(), &[b'x'; 300]].concat();
        for maps in [b"".as_slice(), b"\n\n", b"no map /x\n", b"zz-1 r 0 0 /\n", &long] {
            assert_eq!(find(maps, 1, &mut [0; 128]), None);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "reads /proc")]
    fn this_program_s_own_code_lies_in_its_file() {
        let address = (exit_on_bus_error as *const ()).addr();
        let mut lines = [0; LINES_MAX];
        let maps = File::open("/proc/self/maps").expect("Linux");
        let (path, _) = find(maps, address as u64, &mut lines).expect("it runs");
        let own = std::env::current_exe().expect("Linux");
        assert_eq!(String::from_utf8_lossy(&lines[path]), own.to_string_lossy());
    }
}
