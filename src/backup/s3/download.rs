//! An object while it is read: in pieces, the next one on its way while one is used.
//!
//! Always true: at most two pieces are in memory. A piece is asked for again when its answer breaks off, so a large
//! object needs no connection that lasts.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use object_store::ObjectStoreExt as _;
use object_store::path::Path as Key;
use tokio::task::JoinHandle;

use super::Connection;
use super::explain::explain;

const PIECE_SIZE: u64 = 8 << 20;

/// An object's bytes.
pub(super) struct Download {
    connection: Arc<Connection>,
    key: Key,
    size: u64,
    /// Up to here pieces were asked for.
    asked: u64,
    next: Option<JoinHandle<object_store::Result<Bytes>>>,
    piece: Bytes,
}

impl Download {
    pub(super) fn new(connection: Arc<Connection>, key: Key, size: u64) -> Self {
        Self { connection, key, size, asked: 0, next: None, piece: Bytes::new() }
    }

    /// Asks for the next piece, if there is one.
    fn ask(&mut self) {
        let range = self.asked..self.size.min(self.asked + PIECE_SIZE);
        if range.is_empty() {
            return;
        }
        self.asked = range.end;
        // Not the connection: a task that held the last of it would end the thread it runs on.
        let (client, key) = (self.connection.client.clone(), self.key.clone());
        self.next = Some(self.connection.runtime.spawn(async move { client.get_range(&key, range).await }));
    }
}

impl Read for Download {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            if self.next.is_none() {
                self.ask();
            }
            let Some(task) = self.next.take() else { return Ok(0) };
            let piece = self.connection.runtime.block_on(task).map_err(io::Error::other)?;
            self.piece = piece.map_err(explain)?;
            self.ask();
        }
        let taken = target.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut target[..taken]);
        Ok(taken)
    }
}
