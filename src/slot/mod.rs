//! Floor 1: what a slot is. [`layout`] fixes sizes and offsets, [`image`] reads, writes and checks bytes.

pub mod image;
pub mod layout;
pub mod place;

pub use image::{Record, RecordError, Records, SlotError, SlotView};
pub use layout::{Geometry, GeometryError, Seq, ShardIndex, SlotIndex, Status};
pub use place::Place;
