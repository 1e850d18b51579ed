//! Questions to other nodes, asked for the thread that owns the role.
//!
//! Always true: that thread waits no longer than [`PATIENCE`] for an answer, whatever the other side or a name server
//! does, and not at all once the node is told to stop. A question has a thread of its own; one that is given up ends
//! by its own deadlines, and nobody hears its answer.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::stop::Stop;

/// How long another node may take for one answer, while a client waits for ours.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long all that is asked for one order may take; less than what a client waits for inside EXEC.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);
/// Between two looks at the stop signal.
const TICK: Duration = Duration::from_millis(20);

/// What `question` comes to; an error is the client's. `whom` is asked.
pub(super) fn ask<T: Send + 'static>(
    stop: &Stop,
    whom: &str,
    question: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let deadline = Instant::now() + PATIENCE;
    let (answer, answered) = mpsc::sync_channel(1);
    // Whoever asked may have given up.
    let run = move || drop(answer.send(question()));
    let thread = std::thread::Builder::new().name("roles-ask".to_owned()).spawn(run);
    let _detached = thread.map_err(|error| format!("no thread to ask {whom}: {error}"))?;
    while !stop.is_set() {
        let left = deadline.saturating_duration_since(Instant::now());
        match answered.recv_timeout(left.min(TICK)) {
            Ok(answer) => return answer,
            Err(RecvTimeoutError::Disconnected) => return Err(format!("{whom}: the question failed")),
            Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                return Err(format!("{whom}: no answer within {PATIENCE:?}"));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    Err("this node is stopping".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_without_an_answer_ends_with_patience_or_with_the_node() {
        let (never, asked) = mpsc::channel::<()>();
        let wait = move || asked.recv().map_err(|_| "gone".to_owned());
        let stop = Stop::new();
        let answer = ask(&stop, "b:6379", wait);
        assert_eq!(answer, Err("b:6379: no answer within 4s".to_owned()));
        drop(never);
        assert_eq!(ask(&stop, "b:6379", || Ok(7)), Ok(7));
        stop.set();
        let (_never, asked) = mpsc::channel::<()>();
        let answer = ask(&stop, "b:6379", move || asked.recv().map_err(|_| "gone".to_owned()));
        assert_eq!(answer, Err("this node is stopping".to_owned()));
    }
}
