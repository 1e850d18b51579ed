//! Where a backup lies: a directory of this machine, or a prefix of a bucket in object storage. Both hold the same
//! files, so that a copy of one is the other.

use std::fmt;
use std::path::{Path, PathBuf};

use super::FileError;
use super::directory::Directory;
use super::storage::Storage;

/// What a place in object storage begins with.
pub(super) const S3_SCHEME: &str = "s3://";

/// Where a backup lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory of this machine.
    Directory(PathBuf),
    /// `s3://BUCKET/PREFIX`.
    #[cfg(feature = "s3")]
    Bucket(super::s3::Bucket),
}

/// Why a text names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// This program knows directories only.
    #[error("{text:?}: this slotstream was built without object storage; build it with `--features s3`")]
    NoFeature {
        /// The text.
        text: String,
    },
    /// `s3://` and something that is no bucket.
    #[error("{text:?}: {what}; wanted s3://BUCKET/PREFIX")]
    Bucket {
        /// The text.
        text: String,
        /// What is wrong with it.
        what: String,
    },
    /// Object storage where a directory is wanted.
    #[error("{text:?} lies in object storage; wanted a directory of this machine")]
    NotLocal {
        /// The text.
        text: String,
    },
    /// Nothing at all.
    #[error("an empty path; wanted a directory or s3://BUCKET/PREFIX")]
    Empty,
}

impl Place {
    /// The place that a user names.
    pub fn parse(given: &Path) -> Result<Self, PlaceError> {
        if given.as_os_str().is_empty() {
            return Err(PlaceError::Empty);
        }
        let Some(text) = given.to_str().filter(|text| text.starts_with(S3_SCHEME)) else {
            return Ok(Self::from(given));
        };
        #[cfg(not(feature = "s3"))]
        return Err(PlaceError::NoFeature { text: text.to_owned() });
        #[cfg(feature = "s3")]
        match text[S3_SCHEME.len()..].parse() {
            Ok(bucket) => Ok(Self::Bucket(bucket)),
            Err(what) => Err(PlaceError::Bucket { text: text.to_owned(), what }),
        }
    }

    /// Refuses what is meant for object storage where only a directory will do.
    pub fn check_local(given: &Path) -> Result<(), PlaceError> {
        match given.to_str().filter(|text| text.starts_with(S3_SCHEME)) {
            Some(text) => Err(PlaceError::NotLocal { text: text.to_owned() }),
            None => Ok(()),
        }
    }

    /// What is done with the backup there.
    pub(super) fn storage(&self) -> Result<Box<dyn Storage>, FileError> {
        match self {
            Self::Directory(path) => Ok(Box::new(Directory::at(path))),
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => Ok(Box::new(bucket.connect()?)),
        }
    }

    /// What people call it, where errors want a path.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(self.to_string())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

impl From<&Path> for Place {
    fn from(directory: &Path) -> Self {
        Self::Directory(directory.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_a_directory_or_is_refused() {
        let parse = |text: &str| Place::parse(Path::new(text));
        assert_eq!(parse("/b"), Ok(Place::from(Path::new("/b"))));
        assert_eq!(parse(""), Err(PlaceError::Empty));
        assert!(Place::check_local(Path::new("s3://bucket/prefix")).is_err());
        assert_eq!(Place::check_local(Path::new("s3")), Ok(()));
        if !cfg!(feature = "s3") {
            let error = parse("s3://bucket/prefix").expect_err("it is not built in").to_string();
            assert!(error.contains("--features s3"), "{error}");
        }
    }
}
