//! What shards have goes into the log in frames, whatever it is and however large the log's files are.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use super::super::{Options, Store, directory};
use super::Durability;
use crate::slot::image::image_seq;
use crate::slot::{Geometry, Records};
use crate::wal::disk::{FileDisk, FirstUse};
use crate::wal::{Kind, Log, LogError, LogOptions};

const PUTS: [u64; 6] = [1, 900, 3, 20_000, 5_000, 90];

#[test]
#[cfg_attr(miri, ignore = "maps files")]
fn a_buffer_of_any_size_goes_into_a_log_whose_files_are_small_at_first() {
    let directory = tempfile::tempdir().expect("temp dir");
    let geometry = Geometry { shard_count: 1, key_size_max: 8, value_size_max: 100, shard_prefix_bits: 0 };
    let options =
        Options { durability: Durability::Interval(Duration::from_secs(3600)), ..Options::create(geometry) };
    let (segment_size, store) = (options.log_segment_size, Store::open(directory.path(), options));
    let store = store.expect("a new store");
    for puts in PUTS {
        for number in 0..puts {
            // Of all lengths, so that frames are padded.
            let value = vec![7; usize::try_from(number % 100).expect("small")];
            store.put(&number.to_le_bytes(), &value).expect("room");
        }
        store.sync_log().expect("a good disk");
    }
    let copy = directory.path().join("copy");
    fs::create_dir(&copy).expect("a directory");
    for entry in fs::read_dir(directory::log_path(directory.path())).expect("a log") {
        let entry = entry.expect("a file");
        fs::copy(entry.path(), copy.join(entry.file_name())).expect("space");
    }
    let disk = Arc::new(FileDisk::new(&copy, FirstUse::Allocated).expect("a log"));
    let options = LogOptions { store_id: store.store_id(), segment_size, segments_max: 64 };
    let (mut last, mut largest) = (0, 0);
    let replayed = Log::open(disk, options).expect("a log").replay(|frames| {
        for frame in frames.iter().filter(|frame| frame.kind == Kind::Records) {
            largest = largest.max(frame.payload.len());
            for record in Records::new(&geometry, frame.payload) {
                let seq = image_seq(record.expect("a whole record").image).0;
                assert_eq!(seq, last + 1, "in the order of seqs, without a gap");
                last = seq;
            }
        }
        Ok::<_, LogError>(())
    });
    replayed.expect("a good log");
    assert_eq!(last, PUTS.iter().sum::<u64>());
    assert!(largest > 256 << 10, "what a shard has is in few frames: {largest}");
}
