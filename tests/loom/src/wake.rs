//! Parking: a thread that announces, looks again and blocks never sleeps through a record.

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// What a parked thread blocks on; stays set until it was waited for, like an eventfd.
#[derive(Default)]
struct Event {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn set(&self) {
        *self.is_set.lock().expect("no model panics and goes on") = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut is_set = self.is_set.lock().expect("no model panics and goes on");
        while !*is_set {
            is_set = self.changed.wait(is_set).expect("no model panics and goes on");
        }
        *is_set = false;
    }
}

/// One writer, one thread that parks whenever it finds nothing. Lost wake-ups end in a deadlock, which loom reports.
macro_rules! model {
    ($ring:ident, $record_count:expr, $ring_bytes:expr) => {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(4);
        builder.check(|| {
            let event = Arc::new(Event::default());
            let sleeper = {
                let event = Arc::clone(&event);
                crate::$ring::Sleeper::new(move || event.set())
            };
            let (mut writer, mut reader) = crate::$ring::ring($ring_bytes, Arc::clone(&sleeper));
            let writing = thread::spawn(move || (0..$record_count).for_each(|record| writer.push(&[record])));
            let mut received = 0;
            // A latch counts as news too: what follows it will never be in the ring.
            while received < $record_count && !reader.is_latched() {
                let chunk = reader.chunk(usize::MAX);
                received += u8::try_from(chunk.as_slices().0.len()).expect("a few records");
                chunk.commit_all();
                if received == $record_count {
                    break;
                }
                sleeper.announce();
                if reader.is_empty() && !reader.is_latched() {
                    event.wait();
                }
                sleeper.awake();
            }
            writing.join().expect("the writer does not panic");
        });
    };
}

#[test]
fn a_record_always_wakes_its_reader() {
    model!(ring, 1, 2);
}

#[test]
fn every_record_of_several_wakes_its_reader() {
    model!(ring, 2, 2);
}

#[test]
fn an_overflow_wakes_its_reader() {
    model!(ring, 2, 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn parking_without_fences_is_found_out() {
    model!(ring_without_fences, 1, 2);
}
