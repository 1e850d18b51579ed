//! The role that a directory remembers: `role.json`, written only when the role changes at run time.
//!
//! A process that is started again with the arguments it had when the role changed takes the role it was
//! given since: otherwise a machine that restarts would bring back a leader that was replaced. Other
//! arguments are somebody's new word, and the file goes away. It is replaced in one step, and durable before
//! the role takes effect.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::store::directory;

/// Whom a node follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaderAt {
    /// Where it takes followers, `HOST:PORT`.
    pub(super) replication: String,
    /// Where it answers Redis clients, on the same host; 0 = it has not said yet.
    #[serde(default)]
    pub(super) resp_port: u16,
}

/// A role, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub(super) enum Remembered {
    /// It was promoted: every shard had passed the check, so a promotion that was cut short is finished. Or it
    /// led all the time, and was replaced.
    Leader {
        /// It has heard of this epoch, which another one leads in, and takes no writes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        superseded_by_epoch: Option<u64>,
    },
    /// It follows.
    Follower(LeaderAt),
}

impl fmt::Display for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader { superseded_by_epoch: None } => f.write_str("leader"),
            Self::Leader { superseded_by_epoch: Some(epoch) } => {
                write!(f, "leader, replaced by epoch {epoch}")
            }
            Self::Follower(leader) => write!(f, "follower of {}", leader.replication),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Content {
    #[serde(flatten)]
    role: Remembered,
    /// The role that the process's arguments gave it when this was written.
    started_as: String,
}

/// A directory's memory of its role.
pub(super) struct Memory {
    path: PathBuf,
    started_as: String,
}

impl Memory {
    /// Of the directory `data_dir`, for a process whose arguments say `started_as`.
    pub(super) fn new(data_dir: &Path, started_as: String) -> Self {
        Self { path: data_dir.join("role.json"), started_as }
    }

    /// The role given at run time, if the process was started as it was then.
    pub(super) fn recall(&self) -> anyhow::Result<Option<Remembered>> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            // Of what is no directory at all, opening the store says more.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| self.path.display().to_string()),
        };
        let content: Content = serde_json::from_str(&text).with_context(|| {
            format!(
                "{}: not the role of a node; remove it to take the role from the arguments",
                self.path.display()
            )
        })?;
        if content.started_as == self.started_as {
            return Ok(Some(content.role));
        }
        tracing::warn!(
            remembered = %content.role,
            then = content.started_as,
            now = self.started_as,
            "the role given at run time is forgotten: the arguments are others now"
        );
        fs::remove_file(&self.path).with_context(|| format!("{}: cannot remove", self.path.display()))?;
        Ok(None)
    }

    /// Keeps a role across restarts. What could not be finished is not left behind: it takes room on a disk
    /// that may have none.
    pub(super) fn keep(&self, role: &Remembered) -> io::Result<()> {
        let unfinished = self.path.with_extension("json.new");
        let kept = self.write(&unfinished, role).and_then(|()| fs::rename(&unfinished, &self.path));
        if kept.is_err() {
            // The first error tells what is wrong here.
            drop(fs::remove_file(&unfinished));
        }
        kept?;
        directory::sync(self.path.parent().unwrap_or(Path::new(".")))
    }

    fn write(&self, path: &Path, role: &Remembered) -> io::Result<()> {
        let content = Content { role: role.clone(), started_as: self.started_as.clone() };
        let mut file = File::create(path)?;
        file.write_all((serde_json::to_string(&content)? + "\n").as_bytes())?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_kept_until_the_arguments_are_others() {
        let directory = tempfile::tempdir().expect("temp dir");
        let memory = |started_as: &str| Memory::new(directory.path(), started_as.to_owned());
        assert_eq!(memory("leader").recall().expect("none"), None);
        let at = LeaderAt { replication: "a:8379".to_owned(), resp_port: 6379 };
        let leader = |superseded_by_epoch| Remembered::Leader { superseded_by_epoch };
        for role in [leader(None), leader(Some(7)), Remembered::Follower(at)] {
            memory("leader").keep(&role).expect("kept");
            assert_eq!(memory("leader").recall().expect("read"), Some(role));
        }
        let older = "{\"role\":\"leader\",\"started_as\":\"leader\"}";
        fs::write(directory.path().join("role.json"), older).expect("written");
        assert_eq!(memory("leader").recall().expect("read"), Some(leader(None)));
        assert_eq!(memory("follower of b:8379").recall().expect("forgotten"), None);
        assert_eq!(memory("leader").recall().expect("gone"), None);
        fs::write(directory.path().join("role.json"), "{\"role\":\"king\"}").expect("written");
        let error = memory("leader").recall().expect_err("no role");
        assert!(error.to_string().contains("role.json"), "{error:#}");
    }
}
