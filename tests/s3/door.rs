//! A door before a server: passes bytes on, and after so many of a client's bytes holds them back or cuts all
//! connections; or refuses the first connections as a busy server does. What the server holds stays as it is.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::canned::answer;
use crate::harness::PATIENCE;

const NAP: Duration = Duration::from_millis(2);

/// What is to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// All goes through.
    Open,
    /// From this byte of clients on, nothing goes through, until the rule is another one.
    HoldAfter(u64),
    /// From this byte of clients on, all connections are closed, new ones too.
    CutAfter(u64),
    /// So many connections are answered 503 and closed; then it is `HoldAfter` the other number.
    Busy(u64, u64),
}

struct Shared {
    server: SocketAddr,
    rule: Mutex<Rule>,
    sent: AtomicU64,
    is_over: AtomicBool,
}

/// Listens at a port of its own until it is dropped.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

impl Door {
    pub(crate) fn new(server: SocketAddr, rule: Rule) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
        let address = listener.local_addr().expect("an address");
        let (rule, sent, is_over) = (Mutex::new(rule), AtomicU64::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { server, rule, sent, is_over });
        let guard = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if guard.is_over.load(SeqCst) {
                    return;
                }
                let shared = Arc::clone(&guard);
                // A connection that breaks is what this is for.
                thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn set(&self, rule: Rule) {
        *self.shared.rule.lock() = rule;
    }

    /// Bytes of clients that went through, or wait.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(SeqCst)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shared.is_over.store(true, SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    /// Whether another connection is to be refused.
    fn is_busy(&self) -> bool {
        let mut rule = self.rule.lock();
        match *rule {
            Rule::Busy(0, limit) => {
                *rule = Rule::HoldAfter(limit);
                false
            }
            Rule::Busy(left, limit) => {
                *rule = Rule::Busy(left - 1, limit);
                true
            }
            _ => false,
        }
    }

    fn is_cut(&self) -> bool {
        matches!(*self.rule.lock(), Rule::CutAfter(limit) if self.sent.load(SeqCst) >= limit)
    }

    fn holds(&self) -> bool {
        matches!(*self.rule.lock(), Rule::HoldAfter(limit) if self.sent.load(SeqCst) >= limit)
    }

    fn serve(self: Arc<Self>, mut client: TcpStream) -> io::Result<()> {
        if self.is_cut() {
            return Ok(());
        }
        if self.is_busy() {
            // An answer before the request would be no answer. Those that come first have no body.
            client.set_read_timeout(Some(PATIENCE))?;
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte)? == 1 {
                head.push(byte[0]);
            }
            return client.write_all(&answer(
                "503 Slow Down",
                "SlowDown",
                "Please reduce your request rate.",
            ));
        }
        let mut server = TcpStream::connect(self.server)?;
        let (mut back_from, mut back_to) = (server.try_clone()?, client.try_clone()?);
        let back = thread::spawn(move || {
            drop(io::copy(&mut back_from, &mut back_to));
            drop(back_to.shutdown(Shutdown::Both));
        });
        client.set_read_timeout(Some(Duration::from_millis(20)))?;
        let mut bytes = vec![0; 1 << 16];
        while !self.is_over.load(SeqCst) && !self.is_cut() {
            let read = match client.read(&mut bytes) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if back.is_finished() {
                        break;
                    }
                    continue;
                }
                Err(_) => break,
            };
            self.sent.fetch_add(read as u64, SeqCst);
            while self.holds() && !self.is_over.load(SeqCst) {
                thread::sleep(NAP);
            }
            if self.is_cut() || server.write_all(&bytes[..read]).is_err() {
                break;
            }
        }
        drop(server.shutdown(Shutdown::Both));
        drop(client.shutdown(Shutdown::Both));
        Ok(())
    }
}
