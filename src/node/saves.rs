//! The thread that takes backups when clients ask for them (BGSAVE, SAVE): as `slotstream backup` does, through the
//! node's own replication port, so that it costs what a follower's first scan costs and no writer stops.
//!
//! Always true: a directory `backup-<Unix ms>` in the backups' directory is a whole backup. One under way is in
//! `unfinished`, and what a kill leaves there is finished or removed by the next one.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::Context as _;
use rustix::fs::{Access, access};
use uuid::Uuid;

use crate::backup::manifest::MANIFEST_FILE;
use crate::backup::{self, BackupError, Manifest, ManifestError, Place};
use crate::config;
use crate::saves::{Answer, Done, Running, Saves};
use crate::stop::Stop;
use crate::store::directory::{self, FileError, file_error};
use crate::watch::Counts;

const UNFINISHED: &str = "unfinished";
const PREFIX: &str = "backup-";
/// A line in the log each time.
const SAY_INTERVAL: Duration = Duration::from_secs(10);

/// Why there is no new backup.
#[derive(Debug, thiserror::Error)]
enum SaveError {
    #[error(transparent)]
    Take(#[from] BackupError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    File(#[from] FileError),
}

/// Makes the directory for backups, and looks whether it can be written to: better now than when the first backup is
/// asked for.
pub(super) fn check(options: &config::Saves) -> anyhow::Result<()> {
    let Some(directory) = &options.backup_directory else { return Ok(()) };
    Place::check_local(directory).context("--backup-directory")?;
    let tried = fs::create_dir_all(directory).map_err(file_error(directory, "create it")).and_then(|()| {
        let rights = Access::WRITE_OK | Access::EXEC_OK;
        access(directory, rights).map_err(io::Error::from).map_err(file_error(directory, "write to it"))
    });
    tried.context("--backup-directory")
}

/// Starts the thread, where the options name a directory; it ends with the stop signal.
pub(super) fn start(
    options: &config::Saves,
    saves: &Arc<Saves>,
    (replication, store_id): (SocketAddr, Uuid),
    stop: &Stop,
) -> io::Result<Option<JoinHandle<()>>> {
    let Some(directory) = options.backup_directory.clone() else { return Ok(None) };
    let (requests, asked) = mpsc::channel();
    let saver = Saver {
        kept: options.backups_kept.map_or(usize::MAX, usize::from),
        leader: reachable(replication).to_string(),
        store_id,
        saves: Arc::clone(saves),
        stop: stop.clone(),
        directory,
    };
    let (name, last) = (saver.directory.display().to_string(), saver.newest());
    let thread = std::thread::Builder::new().name("saves".to_owned()).spawn(move || {
        while let Ok(Request::Save(answer)) = asked.recv() {
            saver.save(answer);
        }
    })?;
    let (to_stop, to_refuse) = (requests.clone(), Arc::downgrade(saves));
    saves.listen(name, last, move |answer| {
        if requests.send(Request::Save(answer)).is_err()
            && let Some(saves) = to_refuse.upgrade()
        {
            saves.failed("the node is stopping".to_owned(), Duration::ZERO);
        }
    });
    // Nobody listens any more: then the thread has ended, which is what is wanted.
    stop.on_stop(move || drop(to_stop.send(Request::Stop)));
    Ok(Some(thread))
}

enum Request {
    Save(Option<Answer>),
    Stop,
}

/// Where a listener at `address` is reached from this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(host, address.port())
}

struct Saver {
    directory: PathBuf,
    kept: usize,
    /// The node's own replication port.
    leader: String,
    store_id: Uuid,
    saves: Arc<Saves>,
    stop: Stop,
}

impl Saver {
    fn save(&self, answer: Option<Answer>) {
        let start = Instant::now();
        tracing::info!(directory = %self.directory.display(), "backup begun: a client asked for it");
        let outcome = self.take(start);
        let outcome = match outcome {
            Ok(done) => {
                let Done { path, records, bytes, .. } = &done;
                tracing::info!(path, records, bytes, took = ?start.elapsed(), "backup done");
                self.saves.done(done, start.elapsed());
                self.delete_old();
                Ok(())
            }
            Err(error) => {
                let error = error.to_string();
                if self.stop.is_set() {
                    tracing::info!("backup given up: the node stops");
                } else {
                    tracing::error!(error, "backup failed");
                }
                self.saves.failed(error.clone(), start.elapsed());
                Err(error)
            }
        };
        if let Some(answer) = answer {
            answer(outcome);
        }
    }

    fn take(&self, start: Instant) -> Result<Done, SaveError> {
        let unfinished = self.directory.join(UNFINISHED);
        if unfinished.join(MANIFEST_FILE).exists() {
            // A kill came between the last two steps; it is whole.
            self.publish(&unfinished, Manifest::read(&unfinished)?.created_at_ms)?;
        }
        let to = Place::from(&*unfinished);
        let request = backup::Request { leader: &self.leader, to: &to, since: None };
        let mut said = start;
        let taken = backup::take_watched(request, &mut |counts| {
            self.show(start, &mut said, &counts);
            if self.stop.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if taken.is_err() {
            // Its files are gone already; the first error is the one to report.
            drop(fs::remove_dir(&unfinished));
        }
        let manifest = taken?.manifest;
        let path = self.publish(&unfinished, manifest.created_at_ms)?;
        let (records, bytes) = contents(&manifest);
        Ok(Done { path: path.display().to_string(), unix_s: written_at(&path), records, bytes })
    }

    fn show(&self, start: Instant, said: &mut Instant, counts: &Counts) {
        let Counts { done: slots, total: slots_total, records, bytes } = *counts;
        let seconds = start.elapsed().as_secs_f64();
        self.saves.progress(Running { seconds, slots, slots_total, records, bytes });
        if said.elapsed() >= SAY_INTERVAL {
            *said = Instant::now();
            tracing::info!(slots, slots_total, records, bytes, "backup under way");
        }
    }

    /// Gives a whole backup its name.
    fn publish(&self, unfinished: &Path, created_at_ms: u64) -> Result<PathBuf, SaveError> {
        let path = (created_at_ms..).map(|ms| self.directory.join(format!("{PREFIX}{ms}")));
        let free = path.into_iter().find(|path| !path.exists());
        let path = free.unwrap_or_else(|| unreachable!("a directory has fewer names than there are numbers"));
        fs::rename(unfinished, &path).map_err(file_error(&path, "move a backup there"))?;
        directory::sync(&self.directory).map_err(file_error(&self.directory, "sync it"))?;
        Ok(path)
    }

    /// The newest whole backup, also of another process.
    fn newest(&self) -> Option<Done> {
        let (_, path) = self.all().pop()?;
        let (records, bytes) = Manifest::read(&path).map_or((0, 0), |manifest| contents(&manifest));
        Some(Done { path: path.display().to_string(), unix_s: written_at(&path), records, bytes })
    }

    /// All whole backups, oldest first. A directory that cannot be read holds none.
    fn all(&self) -> Vec<(u64, PathBuf)> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut found: Vec<_> = entries
            .filter_map(|entry| {
                let name = entry.file_name();
                let created_at_ms = name.to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
                entry.path().join(MANIFEST_FILE).exists().then(|| (created_at_ms, entry.path()))
            })
            .collect();
        found.sort();
        found
    }

    fn delete_old(&self) {
        let is_ours = |path: &Path| Manifest::read(path).is_ok_and(|found| found.store_id == self.store_id);
        let mut ours: Vec<_> = self.all().into_iter().filter(|(_, path)| is_ours(path)).collect();
        ours.truncate(ours.len().saturating_sub(self.kept));
        for (_, path) in ours {
            // The manifest first: half of a backup is none.
            let deleted = fs::remove_file(path.join(MANIFEST_FILE)).and_then(|()| fs::remove_dir_all(&path));
            match deleted {
                Ok(()) => tracing::info!(path = %path.display(), "old backup deleted"),
                Err(error) => tracing::warn!(path = %path.display(), %error, "old backup not deleted"),
            }
        }
    }
}

/// Records and bytes of a backup's files.
fn contents(manifest: &Manifest) -> (u64, u64) {
    let all = manifest.shards.iter().map(|entry| entry.contents);
    all.fold((0, 0), |(records, bytes), contents| (records + contents.records, bytes + contents.file_bytes))
}

/// When a backup's manifest was written, Unix seconds; 0 if nobody knows.
fn written_at(backup: &Path) -> u64 {
    let written = fs::metadata(backup.join(MANIFEST_FILE)).and_then(|found| found.modified());
    written.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}
