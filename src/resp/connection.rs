//! A connection: read, take a turn, write, again.
//!
//! Reading, the turn and the first attempt to write happen in one poll, on buffers that all
//! connections of a worker share; a connection owns only what outlives the poll: the bytes of an
//! unfinished command, and replies that the socket did not take. While replies wait, nothing is read,
//! so a slow reader holds one turn's replies and no more.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::command::{roles, wait};
use super::held::Held;
use super::session::Session;
use super::turn::{CARRIED_SIZE_MAX, End, READ_SIZE, Scratch, Turn, Unfinished};
use super::worker::Worker;

const UNBLOCKED: &[u8] =
    b"-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n";

/// A client's connection. Dropping it closes it.
pub(super) struct Connection {
    stream: TcpStream,
    worker: Arc<Worker>,
    session: Session,
    /// Bytes read and not dealt with; they begin with a command's first byte.
    kept: Vec<u8>,
    /// `kept` may hold a whole command: take a turn before reading.
    is_runnable: bool,
    unfinished: Option<Unfinished>,
    resume: usize,
    /// Replies that the socket did not take yet.
    unsent: Vec<u8>,
    /// Replies that wait for followers, behind those.
    held: Option<Held>,
}

/// What follows a turn, once its replies are sent.
enum Next {
    Read,
    /// There is more to do already, but others come first.
    Yield,
    Wait(wait::Request),
    Ask(roles::Pending),
    Hold,
    /// The client has closed its side.
    Gone,
    Close,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, worker: Arc<Worker>, session: Session) -> Self {
        Self {
            stream,
            worker,
            session,
            kept: Vec::new(),
            is_runnable: false,
            unfinished: None,
            resume: 0,
            unsent: Vec::new(),
            held: None,
        }
    }

    /// Serves the client until either side ends it.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.serve().await {
            tracing::debug!(%error, peer = %self.session.info.peer, "client connection lost");
        }
    }

    async fn serve(&mut self) -> io::Result<()> {
        loop {
            let next = poll_fn(|context| self.poll_turn(context)).await?;
            if !self.unsent.is_empty() {
                let unsent = std::mem::take(&mut self.unsent);
                self.stream.write_all(&unsent).await?;
            }
            if let Some(held) = self.held.take() {
                self.confirm(held).await?;
            }
            match next {
                Next::Read => {}
                Next::Yield => tokio::task::yield_now().await,
                Next::Wait(request) => self.wait(request).await?,
                Next::Ask(pending) => self.ask(pending).await?,
                Next::Hold => self.hold().await?,
                Next::Gone => return Ok(()),
                Next::Close => return self.close().await,
            }
        }
    }

    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Next>> {
        let mut scratch = self.worker.scratch.lock();
        let Scratch { input, reply, ahead } = &mut *scratch;
        let is_large = self.kept.len() > CARRIED_SIZE_MAX;
        let mut filled = self.kept.len();
        let mut is_full = false;
        if !is_large && filled > 0 {
            input[..filled].copy_from_slice(&self.kept);
        }
        if !self.is_runnable {
            let count = if is_large {
                ready!(poll_extend(&mut self.stream, context, &mut self.kept))?
            } else {
                ready!(poll_read(&mut self.stream, context, &mut input[filled..filled + READ_SIZE]))?
            };
            if count == 0 {
                return Poll::Ready(Ok(Next::Gone));
            }
            self.worker.counters.net_input_bytes.add(count as u64);
            is_full = count == READ_SIZE;
            filled += count;
        }
        let data = if is_large { &mut self.kept[..] } else { &mut input[..filled] };
        let turn = Turn::new(&self.worker, &mut self.session, ahead, reply);
        let outcome = turn.run(data, &mut self.unfinished, &mut self.resume);
        self.held = outcome.held;
        if is_large {
            self.kept.drain(..outcome.consumed);
        } else if outcome.consumed < filled {
            self.kept.clear();
            self.kept.extend_from_slice(&input[outcome.consumed..filled]);
        } else {
            self.kept.clear();
        }
        if self.kept.is_empty() && self.kept.capacity() > 0 {
            // An idle connection holds no buffer.
            self.kept = Vec::new();
        }
        if reply.len() > 0 {
            let sent = poll_send(&mut self.stream, context, reply.as_bytes())?;
            self.worker.counters.net_output_bytes.add(reply.len() as u64);
            if sent < reply.len() {
                self.unsent = reply.as_bytes()[sent..].to_vec();
            }
        }
        scratch.shrink();
        drop(scratch);
        self.is_runnable = !matches!(outcome.end, End::Drained) && !self.kept.is_empty();
        Poll::Ready(Ok(match outcome.end {
            End::Drained if self.kept.len() > self.worker.options.command_size_max => Next::Close,
            End::Drained if is_full => Next::Yield,
            End::Drained => Next::Read,
            End::Paused => Next::Yield,
            End::Waiting(request) => Next::Wait(request),
            End::Asking(pending) => Next::Ask(pending),
            End::Held => Next::Hold,
            End::Close => Next::Close,
        }))
    }

    /// Waits for followers, then sends the replies that were held back for them.
    async fn confirm(&mut self, held: Held) -> io::Result<()> {
        let replies = tokio::select! {
            replies = held.wait(&self.worker) => replies,
            error = gone(&self.stream) => return Err(error),
        };
        self.worker.counters.net_output_bytes.add(replies.len() as u64);
        self.stream.write_all(&replies).await
    }

    /// Waits for followers and answers; ends early if the client goes away.
    async fn wait(&mut self, request: wait::Request) -> io::Result<()> {
        let node = &self.worker.context.node;
        // What a leader waits for never comes on a node that follows, and the other way round.
        let of_follower = request.is_of_follower();
        let reply = tokio::select! {
            () = node.control.until(|| of_follower.is_some_and(|of_follower| node.follows() != of_follower)) => UNBLOCKED.to_vec(),
            reply = request.answer(&self.worker, self.session.resp3) => reply,
            error = gone(&self.stream) => return Err(error),
        };
        self.reply(&reply).await
    }

    /// Waits for the node and answers; ends early if the client goes away.
    async fn ask(&mut self, pending: roles::Pending) -> io::Result<()> {
        let reply = tokio::select! {
            reply = pending.reply() => reply,
            error = gone(&self.stream) => return Err(error),
        };
        self.reply(&reply).await
    }

    /// Waits until writes are no longer held; ends early if the client goes away.
    async fn hold(&mut self) -> io::Result<()> {
        let control = &self.worker.context.node.control;
        tokio::select! {
            () = control.until(|| !control.are_writes_held()) => Ok(()),
            error = gone(&self.stream) => Err(error),
        }
    }

    async fn reply(&mut self, reply: &[u8]) -> io::Result<()> {
        self.worker.counters.net_output_bytes.add(reply.len() as u64);
        self.stream.write_all(reply).await
    }

    /// Closes so that the client can read the last reply: a socket closed with unread bytes is reset,
    /// and a reset may overtake the reply.
    async fn close(&mut self) -> io::Result<()> {
        const PATIENCE: Duration = Duration::from_millis(500);
        const DISCARDED_MAX: usize = 1 << 20;
        self.stream.shutdown().await?;
        let discard = async {
            // On the heap: every connection's future would have the room for it otherwise.
            let mut discarded = vec![0; 4096];
            let mut total = 0;
            while total < DISCARDED_MAX {
                match self.stream.read(&mut discarded).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => total += count,
                }
            }
        };
        // Whether the client closed or the time is over: we are done with it.
        drop(tokio::time::timeout(PATIENCE, discard).await);
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.worker.clients.remove(self.session.info.id);
        self.worker.counters.connections_closed.add(1);
    }
}

/// Reads what is there into `target`. Not `try_read`: this one knows from a short read that the socket is
/// empty, and saves the system call that would say so.
fn poll_read(
    stream: &mut TcpStream,
    context: &mut Context<'_>,
    target: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut target = ReadBuf::new(target);
    ready!(Pin::new(stream).poll_read(context, &mut target))?;
    Poll::Ready(Ok(target.filled().len()))
}

/// Reads what is there, up to [`READ_SIZE`], behind `target`'s end.
fn poll_extend(
    stream: &mut TcpStream,
    context: &mut Context<'_>,
    target: &mut Vec<u8>,
) -> Poll<io::Result<usize>> {
    let len = target.len();
    target.resize(len + READ_SIZE, 0);
    let read = poll_read(stream, context, &mut target[len..]);
    let count = if let Poll::Ready(Ok(count)) = read { count } else { 0 };
    target.truncate(len + count);
    read
}

/// Sends what the socket takes at once; says how many bytes.
fn poll_send(stream: &mut TcpStream, context: &mut Context<'_>, bytes: &[u8]) -> io::Result<usize> {
    match Pin::new(stream).poll_write(context, bytes) {
        Poll::Ready(sent) => sent,
        Poll::Pending => Ok(0),
    }
}

/// Returns when the client has closed its side, whether or not it sent more before.
async fn gone(stream: &TcpStream) -> io::Error {
    const LOOK_INTERVAL: Duration = Duration::from_secs(1);
    loop {
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_read_closed() => return io::ErrorKind::UnexpectedEof.into(),
            Ok(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            Err(error) => return error,
        }
    }
}
