//! An object while it is written: kept until it is complete if it is small, else sent in parts of one size, one on
//! its way while the next one fills.
//!
//! Always true: at most two parts are in memory; nobody sees the object before all of it is there.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutResult};
use tokio::task::JoinHandle;

use super::super::storage::Part;
use super::Connection;
use super::explain::explain;

/// All parts but the last have this size: some servers want it so.
pub(super) const PART_SIZE: usize = 16 << 20;
/// S3 takes no more: 160 GB.
const PARTS_MAX: u32 = 10_000;
/// Room that is enough for what is written between two waits.
const ROOM: usize = 4 << 20;
/// Giving up an upload frees its parts; it is worth no long wait.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

type Multipart = Box<dyn MultipartUpload>;

/// A part that is on its way takes the upload with it.
enum State {
    Idle(Option<Multipart>),
    Busy(JoinHandle<(Option<Multipart>, object_store::Result<()>)>),
}

/// An object that is not complete yet.
pub(super) struct Upload {
    connection: Arc<Connection>,
    key: Key,
    name: String,
    buffer: Vec<u8>,
    state: State,
    parts: u32,
}

impl Upload {
    pub(super) fn new(connection: Arc<Connection>, key: Key, name: &str) -> Self {
        let name = name.to_owned();
        Self { connection, key, name, buffer: Vec::new(), state: State::Idle(None), parts: 0 }
    }

    /// Waits until no part is on its way; fails as the last one did.
    fn settle(&mut self) -> io::Result<()> {
        let State::Busy(task) = &mut self.state else { return Ok(()) };
        let (upload, sent) = self.connection.runtime.block_on(task).map_err(io::Error::other)?;
        self.state = State::Idle(upload);
        sent.map_err(explain)
    }

    /// Sends what is there as one part.
    fn send(&mut self) -> io::Result<()> {
        self.settle()?;
        if self.parts == PARTS_MAX {
            return Err(io::Error::other(format!(
                "an object holds at most {PARTS_MAX} parts of {} MiB",
                PART_SIZE >> 20
            )));
        }
        self.parts += 1;
        let part = bytes::Bytes::from(std::mem::take(&mut self.buffer));
        let State::Idle(upload) = &mut self.state else { unreachable!("it has settled") };
        // Not the connection: a task that held the last of it would end the thread it runs on.
        let (upload, client, key) = (upload.take(), self.connection.client.clone(), self.key.clone());
        self.state = State::Busy(self.connection.runtime.spawn(async move {
            let mut upload = match upload {
                Some(upload) => upload,
                None => match client.put_multipart(&key).await {
                    Ok(upload) => upload,
                    Err(error) => return (None, Err(error)),
                },
            };
            let sent = upload.put_part(part.into()).await;
            (Some(upload), sent)
        }));
        Ok(())
    }

    fn complete(&mut self) -> io::Result<PutResult> {
        if self.parts == 0 {
            let object = bytes::Bytes::from(std::mem::take(&mut self.buffer));
            return self.connection.wait(self.connection.client.put(&self.key, object.into()));
        }
        if !self.buffer.is_empty() {
            self.send()?;
        }
        self.settle()?;
        let State::Idle(upload) = &mut self.state else { unreachable!("it has settled") };
        let upload = upload.as_mut().unwrap_or_else(|| unreachable!("a part was sent"));
        let completed = self.connection.wait(upload.complete())?;
        self.state = State::Idle(None);
        Ok(completed)
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == PART_SIZE {
            self.send()?;
        }
        if self.buffer.capacity() == 0 {
            // All of it at once: growing would leave up to twice as much. What stays empty takes no memory.
            self.buffer.reserve_exact(PART_SIZE);
        }
        let taken = bytes.len().min(PART_SIZE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Part for Upload {
    fn wait_for_room(&mut self, timeout: Duration) -> io::Result<bool> {
        if self.buffer.len() + ROOM <= PART_SIZE {
            return Ok(true);
        }
        if let State::Busy(task) = &mut self.state {
            let waited =
                self.connection.runtime.block_on(async { tokio::time::timeout(timeout, task).await });
            let Ok(ended) = waited else { return Ok(false) };
            let (upload, sent) = ended.map_err(io::Error::other)?;
            self.state = State::Idle(upload);
            sent.map_err(explain)?;
        }
        Ok(true)
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        let completed = self.complete()?;
        self.connection.written.lock().push((self.name.clone(), completed.e_tag));
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Idle(None));
        // What a request sent meanwhile may still arrive: it is over before the upload is given up.
        self.connection.runtime.block_on(async {
            let abort = async {
                let upload = match state {
                    State::Idle(upload) => upload,
                    State::Busy(task) => task.await.ok().and_then(|(upload, _)| upload),
                };
                if let Some(mut upload) = upload {
                    drop(upload.abort().await);
                }
            };
            drop(tokio::time::timeout(ABORT_TIMEOUT, abort).await);
        });
    }
}
