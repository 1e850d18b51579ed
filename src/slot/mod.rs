//! Floor 1: what a slot is. [`layout`] fixes sizes and offsets, [`image`] reads, writes and checks bytes,
//! [`lineage`] says where two histories part, [`text`] how keys and values stand in JSON.

pub mod image;
pub mod layout;
pub mod lineage;
pub mod place;
pub mod text;

pub use image::{Record, RecordError, Records, SlotError, SlotView};
pub use layout::{Geometry, GeometryError, HASH_TAGS, Seq, ShardIndex, SlotIndex, Status};
pub use lineage::Term;
pub use place::Place;
pub use text::KeyValueText;
