//! The product's `src/ring.rs` under loom, and the protocol by which several shards are held as one.
//! `cargo test --manifest-path tests/loom/Cargo.toml` visits the interleavings of a writer and a link in small runs, with
//! every value a relaxed load may see, up to a bound of three to five preemptions; no more fit into seconds.
//!
//! The ring's code is the product's own, see `build.rs`. What surrounds it is modelled here as small as it can be: a
//! shard of two slots behind its lock, and a link that drains, re-arms and scans as the leader does.

#![allow(dead_code, reason = "the models use a part of the ring's interface")]

mod rtrb;

mod region {
    //! Prefetching changes nothing that a model could see.
    pub fn prefetch(_address: usize) {}
}

mod ring {
    //! `src/ring.rs` as it is.
    use crate::rtrb;
    include!(concat!(env!("OUT_DIR"), "/ring.rs"));
}

#[cfg(test)]
#[allow(unused_imports, reason = "the fences are what was taken out")]
mod ring_without_fences {
    //! `src/ring.rs` with a planted bug.
    use crate::rtrb;
    include!(concat!(env!("OUT_DIR"), "/ring_without_fences.rs"));
}

#[cfg(test)]
mod hold;
#[cfg(test)]
mod overflow;
#[cfg(test)]
mod wake;
