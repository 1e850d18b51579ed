//! The leader's address, looked up again for each connection, without holding up other links.
//!
//! A literal address needs no looking up. A name is looked up by a thread that lives as long as the
//! question; there is at most one, and all links share its answer.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use parking_lot::Mutex;

/// What a look-up came to.
pub(super) type Answer = io::Result<Vec<SocketAddr>>;

/// Looks up one `HOST:PORT`.
pub(super) struct Resolver {
    address: String,
    literal: Option<SocketAddr>,
    question: Arc<Mutex<Question>>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

enum Question {
    None,
    Asked,
    Answered(Answer),
}

impl Resolver {
    /// `wake` is called when an answer is there.
    pub(super) fn new(address: String, wake: impl Fn() + Send + Sync + 'static) -> Self {
        let literal = address.parse().ok();
        Self { address, literal, question: Arc::new(Mutex::new(Question::None)), wake: Arc::new(wake) }
    }

    /// The answer, if it needs no looking up.
    pub(super) fn literal(&self) -> Option<SocketAddr> {
        self.literal
    }

    /// Asks; does nothing while a question is open.
    pub(super) fn ask(&self) {
        let mut question = self.question.lock();
        if !matches!(*question, Question::None) {
            return;
        }
        let (address, slot, wake) =
            (self.address.clone(), Arc::clone(&self.question), Arc::clone(&self.wake));
        let look_up = move || {
            let answer = address.to_socket_addrs().map(Iterator::collect);
            *slot.lock() = Question::Answered(answer);
            wake();
        };
        *question = match std::thread::Builder::new().name("repl-resolve".to_owned()).spawn(look_up) {
            Ok(_detached) => Question::Asked,
            Err(error) => {
                (self.wake)();
                Question::Answered(Err(error))
            }
        };
    }

    /// Takes the answer, if there is one.
    pub(super) fn answer(&self) -> Option<Answer> {
        let mut question = self.question.lock();
        if !matches!(*question, Question::Answered(_)) {
            return None;
        }
        match std::mem::replace(&mut *question, Question::None) {
            Question::Answered(answer) => Some(answer),
            Question::None | Question::Asked => None,
        }
    }
}
