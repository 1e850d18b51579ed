//! Floor 1: what a slot is. [`layout`] fixes sizes and offsets, [`image`] reads, writes and checks bytes,
//! [`lineage`] says where two histories part.

pub mod image;
pub mod layout;
pub mod lineage;
pub mod place;

pub use image::{Record, RecordError, Records, SlotError, SlotView};
pub use layout::{Geometry, GeometryError, Seq, ShardIndex, SlotIndex, Status};
pub use lineage::Term;
pub use place::Place;
