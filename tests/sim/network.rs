//! A connection of the simulated network: two byte pipes that cut, hold back and lose bytes.
//!
//! A send takes any part of what fits; sent bytes can be read only once they were delivered; a read
//! gets any part of what was delivered. A cut connection loses what was not delivered; a frozen one
//! delivers nothing more and tells nobody; a noisy one flips a bit now and then.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use slotstream::Seq;
use slotstream::store::Term;
use slotstream::wire::Transport;

use crate::random::Random;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    Frozen,
    Cut,
}

#[derive(Debug)]
struct Pipe {
    bytes: VecDeque<u8>,
    delivered: usize,
    capacity: usize,
}

#[derive(Debug)]
struct Shared {
    to_leader: Pipe,
    to_follower: Pipe,
    health: Health,
    /// Deliveries in a hundred that flip a bit.
    noise_percent: usize,
    welcomed: Option<Welcomed>,
    follower: usize,
    held: Seq,
}

/// What a leader's shard was when it took a follower.
#[derive(Debug, Clone)]
pub(crate) struct Welcomed {
    pub(crate) head: Seq,
    pub(crate) epoch: u64,
    pub(crate) lineage: Vec<Term>,
}

/// A connection, as the network sees it; clones are the same connection.
#[derive(Debug, Clone)]
pub(crate) struct Connection(Rc<RefCell<Shared>>);

impl Connection {
    /// A connection of this follower, which holds everything up to `held`.
    pub(crate) fn new(follower: usize, held: Seq, capacity: usize, noise_percent: usize) -> Self {
        let pipe = || Pipe { bytes: VecDeque::new(), delivered: 0, capacity };
        let shared = Shared {
            to_leader: pipe(),
            to_follower: pipe(),
            health: Health::Good,
            noise_percent,
            welcomed: None,
            follower,
            held,
        };
        Self(Rc::new(RefCell::new(shared)))
    }

    /// Makes sent bytes readable; `part` of them, or all.
    pub(crate) fn deliver(&self, random: &mut Random, is_all: bool) {
        let mut shared = self.0.borrow_mut();
        if shared.health != Health::Good {
            return;
        }
        let Shared { to_leader, to_follower, noise_percent, .. } = &mut *shared;
        for pipe in [to_leader, to_follower] {
            let waiting = pipe.bytes.len() - pipe.delivered;
            let part = if is_all { waiting } else { random.below(waiting + 1) };
            if part > 0 && random.percent(*noise_percent) {
                pipe.bytes[pipe.delivered + random.below(part)] ^= 1 << random.below(8);
            }
            pipe.delivered += part;
        }
    }

    /// Breaks the connection; both ends will see it after what was delivered.
    pub(crate) fn cut(&self) {
        let mut shared = self.0.borrow_mut();
        shared.health = Health::Cut;
        let Shared { to_leader, to_follower, .. } = &mut *shared;
        for pipe in [to_leader, to_follower] {
            pipe.bytes.truncate(pipe.delivered);
        }
    }

    /// The leader has taken the follower.
    pub(crate) fn welcome(&self, leader: impl FnOnce() -> Welcomed) {
        self.0.borrow_mut().welcomed.get_or_insert_with(leader);
    }

    /// What the leader had when it took the follower, if it has.
    pub(crate) fn welcomed(&self) -> Option<Welcomed> {
        self.0.borrow().welcomed.clone()
    }

    /// The follower at the other end of the leader's.
    pub(crate) fn follower(&self) -> usize {
        self.0.borrow().follower
    }

    /// The follower has everything up to `seq`.
    pub(crate) fn hold(&self, seq: Seq) {
        let mut shared = self.0.borrow_mut();
        shared.held = shared.held.max(seq);
    }

    /// Up to where the follower ever had everything on this connection.
    pub(crate) fn held(&self) -> Seq {
        self.0.borrow().held
    }

    /// From now on nothing arrives any more, and nobody is told.
    pub(crate) fn freeze(&self) {
        let mut shared = self.0.borrow_mut();
        if shared.health == Health::Good {
            shared.health = Health::Frozen;
        }
    }

    /// From now on every bit arrives as it was sent.
    pub(crate) fn be_quiet(&self) {
        self.0.borrow_mut().noise_percent = 0;
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// One end's view of the connection.
    pub(crate) fn end<'a>(&'a self, is_leader: bool, random: &'a mut Random) -> End<'a> {
        End { connection: self, is_leader, random }
    }
}

/// One end of a connection.
pub(crate) struct End<'a> {
    connection: &'a Connection,
    is_leader: bool,
    random: &'a mut Random,
}

impl Transport for End<'_> {
    fn send(&mut self, parts: &[&[u8]]) -> io::Result<usize> {
        let mut shared = self.connection.0.borrow_mut();
        if shared.health == Health::Cut {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let pipe = if self.is_leader { &mut shared.to_follower } else { &mut shared.to_leader };
        let wanted: usize = parts.iter().map(|part| part.len()).sum();
        let fitting = wanted.min(pipe.capacity - pipe.bytes.len());
        if fitting == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Mostly all of it, as a socket does; often enough any part.
        let taken = if self.random.percent(70) { fitting } else { self.random.between(1, fitting) };
        let mut left = taken;
        for part in parts {
            let len = left.min(part.len());
            pipe.bytes.extend(&part[..len]);
            left -= len;
        }
        Ok(taken)
    }

    fn receive(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let mut shared = self.connection.0.borrow_mut();
        let health = shared.health;
        let pipe = if self.is_leader { &mut shared.to_leader } else { &mut shared.to_follower };
        let fitting = pipe.delivered.min(target.len());
        if fitting == 0 {
            return if health == Health::Cut { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let taken = if self.random.percent(70) { fitting } else { self.random.between(1, fitting) };
        let (first, second) = pipe.bytes.as_slices();
        let of_first = taken.min(first.len());
        target[..of_first].copy_from_slice(&first[..of_first]);
        target[of_first..taken].copy_from_slice(&second[..taken - of_first]);
        pipe.bytes.drain(..taken);
        pipe.delivered -= taken;
        Ok(taken)
    }
}
