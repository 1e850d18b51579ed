//! REPLICAOF, SLAVEOF, FAILOVER: orders to the node, whose answer is the reply.

use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::control::{FailoverState, Order};
use super::super::error::CommandError;
use super::{Args, Call, Flow};

type Outcome = Result<Flow, CommandError>;

/// Inside EXEC nothing waits but its worker: no longer than this.
const EXEC_PATIENCE: Duration = Duration::from_secs(5);

/// A reply that the node owes.
#[derive(Debug)]
pub(in crate::resp) struct Pending {
    answer: oneshot::Receiver<Result<String, String>>,
}

impl Pending {
    pub(super) fn new(answer: oneshot::Receiver<Result<String, String>>) -> Self {
        Self { answer }
    }

    /// The reply as it goes to the client.
    pub(in crate::resp) async fn reply(self) -> Vec<u8> {
        // A node that is stopping answers nothing any more.
        let answer = self.answer.await.unwrap_or_else(|_| Err(STOPPING.to_owned()));
        match answer {
            Ok(text) => format!("+{text}\r\n").into_bytes(),
            Err(text) => format!("-{}\r\n", text.replace(['\r', '\n'], " ")).into_bytes(),
        }
    }
}

const STOPPING: &str = "ERR this node is stopping";

/// `REPLICAOF host port`, `REPLICAOF NO ONE`
pub(in crate::resp) fn replicaof(call: &mut Call<'_>) -> Outcome {
    if call.worker.context.node.control.failover() != FailoverState::None {
        return Err(CommandError::text("ERR REPLICAOF not allowed while failing over."));
    }
    let args = call.args;
    if args.is(1, "no") && args.is(2, "one") {
        return order(call, Order::Lead);
    }
    let (host, port) = address(&args, 1, "ERR Invalid master port")?;
    order(call, Order::Follow { host, port })
}

/// `FAILOVER [TO host port] [TIMEOUT milliseconds]`, `FAILOVER ABORT`
pub(in crate::resp) fn failover(call: &mut Call<'_>) -> Outcome {
    let args = call.args;
    if args.len() == 2 && args.is(1, "abort") {
        return order(call, Order::AbortFailover);
    }
    let (mut to, mut timeout) = (None, None);
    let mut at = 1;
    while at < args.len() {
        let left = args.len() - 1 - at;
        if args.is(at, "to") && left >= 2 && to.is_none() {
            to = Some(address(&args, at + 1, "ERR FAILOVER target port is no port")?);
            at += 3;
        } else if args.is(at, "timeout") && left >= 1 && timeout.is_none() {
            let ms = u64::try_from(args.integer(at + 1)?).ok().filter(|ms| *ms > 0);
            let ms = ms.ok_or(CommandError::text("ERR FAILOVER timeout must be greater than 0"))?;
            timeout = Some(Duration::from_millis(ms));
            at += 2;
        } else if args.is(at, "force") {
            return Err(CommandError::text(
                "ERR FAILOVER FORCE would lose acknowledged writes and is not supported; if the leader is \
                 gone, send REPLICAOF NO ONE to a follower",
            ));
        } else {
            return Err(CommandError::Syntax);
        }
    }
    order(call, Order::Failover { to, timeout })
}

fn address(args: &Args<'_>, at: usize, bad_port: &'static str) -> Result<(String, u16), CommandError> {
    let port = u16::try_from(args.integer(at + 1)?).ok().filter(|port| *port > 0);
    let port = port.ok_or(CommandError::text(bad_port))?;
    let host = String::from_utf8_lossy(args.at(at)).into_owned();
    // It is shown in INFO and written to logs.
    let is_host = !host.is_empty() && host.len() <= 255 && host.bytes().all(|byte| byte.is_ascii_graphic());
    if is_host { Ok((host, port)) } else { Err(CommandError::text("ERR Invalid host")) }
}

fn order(call: &mut Call<'_>, order: Order) -> Outcome {
    let control = &call.worker.context.node.control;
    if !call.in_exec {
        let (answer, pending) = oneshot::channel();
        // A client that has gone does not hear how its order ended.
        control.order(order, Box::new(move |outcome| drop(answer.send(outcome))));
        return Ok(Flow::Ask(Pending { answer: pending }));
    }
    let (answer, answered) = mpsc::channel();
    control.order(order, Box::new(move |outcome| drop(answer.send(outcome))));
    match answered.recv_timeout(EXEC_PATIENCE) {
        Ok(Ok(text)) => call.reply.simple(&text),
        Ok(Err(text)) => return Err(CommandError::Text(text.into())),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            return Err(CommandError::text("ERR the node is still at work; ask ROLE how it ended"));
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => return Err(CommandError::text(STOPPING)),
    }
    Ok(Flow::Done)
}
