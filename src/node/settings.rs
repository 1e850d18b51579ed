//! What Redis clients have set and asked to keep (CONFIG SET, CONFIG REWRITE): `settings.json` in the data directory.
//!
//! As with the role, the file holds until the arguments are others: these are somebody's newer word. It is replaced in
//! one step.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::resp::Demands;
use crate::store::directory;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// Flags that say something else than they did at the start.
    set: BTreeMap<String, String>,
    /// What the arguments said when this was written.
    started_as: BTreeMap<String, String>,
}

/// A directory's settings.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    path: PathBuf,
    given: Demands,
}

impl Settings {
    /// Of the directory `data_dir`, for a process whose arguments say `given`.
    pub(super) fn new(data_dir: &Path, given: Demands) -> Self {
        Self { path: data_dir.join("settings.json"), given }
    }

    /// What holds from the start on.
    pub(super) fn recall(&self) -> anyhow::Result<Demands> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(self.given),
            Err(error) => return Err(error).with_context(|| self.path.display().to_string()),
        };
        let wrong = || {
            let path = self.path.display();
            format!("{path}: not the settings of a node; remove it to take them from the arguments")
        };
        let content: Content = serde_json::from_str(&text).with_context(wrong)?;
        if content.started_as != flags(&self.given) {
            tracing::warn!(
                forgotten = ?content.set,
                "what CONFIG REWRITE has kept is forgotten: the arguments are others now"
            );
            fs::remove_file(&self.path).with_context(|| format!("{}: cannot remove", self.path.display()))?;
            return Ok(self.given);
        }
        let mut demands = self.given;
        for (name, value) in &content.set {
            let changed = demands.change(name, value);
            changed.map_err(|error| anyhow::anyhow!("`{name}`: {error}")).with_context(wrong)?;
        }
        tracing::info!(set = ?content.set, "settings that CONFIG REWRITE has kept");
        Ok(demands)
    }

    /// Keeps what differs from the arguments; where nothing does there is no file.
    pub(super) fn keep(&self, demands: &Demands) -> io::Result<()> {
        let started_as = flags(&self.given);
        let mut set = flags(demands);
        set.retain(|name, value| started_as.get(name) != Some(value));
        if set.is_empty() {
            match fs::remove_file(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                removed => removed?,
            }
        } else {
            let unfinished = self.path.with_extension("json.new");
            let text = serde_json::to_string(&Content { set, started_as })? + "\n";
            let written = write(&unfinished, &text).and_then(|()| fs::rename(&unfinished, &self.path));
            if written.is_err() {
                // It takes room on a disk that may have none; the first error tells what is wrong.
                drop(fs::remove_file(&unfinished));
            }
            written?;
        }
        directory::sync(self.path.parent().unwrap_or(Path::new(".")))
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn flags(demands: &Demands) -> BTreeMap<String, String> {
    demands.flags().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_kept_until_the_arguments_are_others() {
        let directory = tempfile::tempdir().expect("temp dir");
        let given = Demands::default();
        let settings = |given| Settings::new(directory.path(), given);
        let file = directory.path().join("settings.json");
        assert_eq!(settings(given).recall().expect("none"), given);
        settings(given).keep(&given).expect("nothing to keep");
        assert!(!file.exists());
        let mut changed = given;
        for (name, value) in [("sync-level", "applied"), ("min-replicas-to-write", "2")] {
            changed.change(name, value).expect("a setting");
        }
        settings(given).keep(&changed).expect("kept");
        assert_eq!(settings(given).recall().expect("read"), changed);
        settings(given).keep(&given).expect("as at the start again");
        assert!(!file.exists());
        settings(given).keep(&changed).expect("kept");
        let other = Demands { sync_followers: 2, ..given };
        assert_eq!(settings(other).recall().expect("forgotten"), other);
        assert_eq!(settings(given).recall().expect("gone"), given);
        settings(given).keep(&changed).expect("kept");
        let kept = fs::read_to_string(&file).expect("readable");
        for wrong in ["{}", "", &kept.replace("applied", "loud"), &kept.replacen("sync-level", "port", 1)] {
            fs::write(&file, wrong).expect("written");
            let error = settings(given).recall().expect_err(wrong);
            assert!(error.to_string().contains("settings.json"), "{error:#}");
        }
    }
}
