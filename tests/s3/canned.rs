//! A server that gives every request the same answer, or none.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use crate::harness::PATIENCE;

/// An error as S3 tells it, on a connection that ends.
pub(crate) fn answer(status: &str, code: &str, message: &str) -> Vec<u8> {
    let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    (head + &body).into_bytes()
}

/// What the server does with a request.
pub(crate) enum Answer {
    /// Sends these bytes and closes.
    Bytes(Vec<u8>),
    /// Closes at once.
    HangUp,
    /// Says nothing.
    Silence,
}

/// Listens until it is dropped.
pub(crate) struct Canned {
    pub(crate) address: SocketAddr,
    is_over: Arc<AtomicBool>,
}

impl Canned {
    pub(crate) fn new(answer: Answer) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
        let address = listener.local_addr().expect("an address");
        let is_over = Arc::new(AtomicBool::new(false));
        let guard = Arc::clone(&is_over);
        thread::spawn(move || {
            let mut silent = Vec::new();
            for mut client in listener.incoming().flatten() {
                if guard.load(SeqCst) {
                    return;
                }
                match &answer {
                    Answer::HangUp => {}
                    Answer::Silence => silent.push(client),
                    Answer::Bytes(bytes) => {
                        client.set_read_timeout(Some(PATIENCE)).expect("socket option");
                        let mut head = Vec::new();
                        let mut byte = [0];
                        // Requests here have no body; one that breaks off is its client's matter.
                        while !head.ends_with(b"\r\n\r\n")
                            && client.read(&mut byte).is_ok_and(|read| read == 1)
                        {
                            head.push(byte[0]);
                        }
                        drop(client.write_all(bytes));
                    }
                }
            }
        });
        Self { address, is_over }
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
        drop(TcpStream::connect(self.address));
    }
}
