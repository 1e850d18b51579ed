//! What the thread that owns the role owes, however it ends: an answer to who gave an order, and the end of the node.

use super::roles::UNCERTAIN;
use crate::resp::Answer;
use crate::stop::Stop;

/// An answer that is given even if the order that it is for panics: it may be done then, or not.
pub(super) struct Owed(Option<Answer>);

impl Owed {
    pub(super) fn new(answer: Answer) -> Self {
        Self(Some(answer))
    }

    pub(super) fn give(mut self, result: Result<String, String>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take().filter(|_| std::thread::panicking()) {
            answer(Err(format!(
                "{UNCERTAIN} this node has failed in the middle of it, and ends; the log says why"
            )));
        }
    }
}

/// Nobody would change the role any more: the node ends with the thread that holds this.
pub(super) struct EndsNode(pub(super) Stop);

impl Drop for EndsNode {
    fn drop(&mut self) {
        self.0.set();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A client was once told that the node is stopping, which it was not, and that its order was not done.
    #[test]
    fn an_order_that_panics_is_answered_as_uncertain_and_ends_the_node() {
        let (stop, (answers, answered)) = (Stop::new(), mpsc::channel());
        let held = stop.clone();
        let thread = std::thread::spawn(move || {
            let _ends = EndsNode(held);
            let _owed = Owed::new(Box::new(move |result| answers.send(result).expect("heard")));
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert!(answered.recv().expect("an answer").is_err_and(|text| text.starts_with(UNCERTAIN)));
        assert!(stop.is_set());
    }
}
