//! Regions and windows hold what was written, and stay within their bounds.

use super::*;

#[test]
fn heap_region_reads_what_was_written() {
    let mut region = Region::heap(128, 256);
    region.bytes_mut(8, 3).copy_from_slice(b"abc");
    region.copy(8, 64, 3);
    assert_eq!(region.bytes(64, 3), b"abc");
    region.set_word(1, 7, 5);
    assert_eq!(region.line(1)[7], 5);
    region.grow(256).unwrap();
    assert_eq!(region.bytes(8, 3), b"abc");
    assert_eq!(region.grow(257).unwrap_err().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn a_window_sees_what_its_region_holds_and_no_further() {
    let mut region = Region::heap(64, 128);
    region.set_word(0, 1, 7);
    region.bytes_mut(16, 8).copy_from_slice(&9_u64.to_le_bytes());
    region.copy(16, 32, 5);
    let window = region.window();
    let mut words = [1; 2];
    assert!(window.load(8, &mut words));
    assert_eq!(words, [7, 9]);
    assert!(!window.load(4, &mut words) && !window.load(56, &mut words) && !window.load(1 << 60, &mut words));
    region.grow(128).unwrap();
    assert!(window.load(56, &mut words));
    drop(region);
    assert!(window.load(8, &mut words), "a window keeps its memory");
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
fn high_halves_are_compared_in_place() {
    for place in 0..8 {
        let mut line = [0x0000_0007_0000_0009; 8];
        line[place] = 0xFFFF_FFF0_0000_0007;
        assert_eq!(high_halves_equal(&line, 0xFFFF_FFF0), 1 << place);
        assert_eq!(high_halves_equal(&line, 7), 0xFF & !(1 << place));
        assert_eq!(high_halves_equal(&line, 9), 0);
    }
}

#[test]
fn prefetch_takes_any_address() {
    prefetch(0);
    prefetch(usize::MAX);
}
