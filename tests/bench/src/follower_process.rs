//! A follower in a process of its own: this program again, told what to do over its standard input.
//!
//! One line in, one or more lines out. Times are the machine's monotonic clock, which all processes share.
//!
//! | request              | answer                                                                          |
//! |----------------------|---------------------------------------------------------------------------------|
//! | (start)              | `synced TOOK APPLIED` when all records are there: ns since it began to follow |
//! | `stream STAMP KEY..` | `at STAMP NOW` as the keys' least stamp rises, the last one for STAMP itself    |
//! | `watch KEY COUNT`    | `watching`, then `seen DELAY` for each of COUNT changes of that key's stamp     |
//! | `digest COUNT`       | `digest NUMBER` over the records with an index below COUNT                      |
//! | `applied`            | `applied COUNT`, or `applied -` where the engine does not say                   |
//! | end of input         | the process ends                                                                |

use std::io::{BufRead as _, BufReader, Lines, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::clocks::monotonic_ns;
use crate::engine::{Engine, EngineName, Follower};
use crate::workload::{digest, key, stamp};

/// What nothing here may last longer than.
const DEADLINE: Duration = Duration::from_secs(180);

/// Runs as the follower until standard input ends.
pub fn run<E: Engine>(directory: &Path, leader: SocketAddr, record_count: u64) -> Result<()> {
    let mut output = std::io::stdout().lock();
    let empty = E::prepare_follower(directory, leader)?;
    let start = Instant::now();
    let follower = E::follow(empty, leader)?;
    while follower.record_count() < record_count {
        ensure!(start.elapsed() < DEADLINE, "the first sync stands at {} records", follower.record_count());
        thread::sleep(Duration::from_micros(500));
    }
    say(&mut output, format_args!("synced {} {}", start.elapsed().as_nanos(), applied(&follower)))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["stream", stamp, keys @ ..] => {
                let keys = keys.iter().map(|key| Ok(key.parse()?)).collect::<Result<Vec<u64>>>()?;
                stream(&mut output, &follower, stamp.parse()?, &keys)?;
            }
            ["watch", key, count] => watch(&mut output, &follower, key.parse()?, count.parse()?)?,
            ["digest", count] => {
                let digest = digest(count.parse()?, |key| follower.get(key));
                say(&mut output, format_args!("digest {digest}"))?;
            }
            ["applied"] => say(&mut output, format_args!("applied {}", applied(&follower)))?,
            _ => bail!("request is {line:?}, wanted one of the table"),
        }
    }
    Ok(())
}

fn applied(follower: &impl Follower) -> String {
    follower.applied().map_or_else(|| "-".to_owned(), |count| count.to_string())
}

fn say(output: &mut impl Write, line: std::fmt::Arguments<'_>) -> Result<()> {
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}

fn stream(output: &mut impl Write, follower: &impl Follower, last: u64, keys: &[u64]) -> Result<()> {
    let keys: Vec<_> = keys.iter().map(|index| key(*index)).collect();
    let (start, mut reported) = (Instant::now(), None);
    loop {
        let least = keys.iter().filter_map(|key| follower.get(key)).map(|value| stamp(&value)).min();
        if least != reported {
            reported = least;
            let least = least.context("a record is gone")?;
            say(output, format_args!("at {least} {}", monotonic_ns()))?;
            if least == last {
                return Ok(());
            }
        }
        ensure!(start.elapsed() < DEADLINE, "the stream stands at {reported:?}");
        // Short against the window that a writer may be ahead, long against what a look costs.
        thread::sleep(Duration::from_micros(100));
    }
}

fn watch(output: &mut impl Write, follower: &impl Follower, index: u64, count: u64) -> Result<()> {
    let key = key(index);
    let look = || follower.get(&key).map(|value| stamp(&value));
    let (start, mut last) = (Instant::now(), look());
    say(output, format_args!("watching"))?;
    let mut seen = 0;
    while seen < count {
        let now = look();
        if now != last {
            let delay = monotonic_ns().saturating_sub(now.context("the record is gone")?);
            say(output, format_args!("seen {delay}"))?;
            last = now;
            seen += 1;
        } else {
            ensure!(start.elapsed() < DEADLINE, "saw {seen} of {count} changes");
            // Looks all the time, but lets whoever brings the change have the core.
            thread::yield_now();
        }
    }
    Ok(())
}

/// The other end of [`run`], in the leader's process. Dropped, it ends the follower.
#[derive(Debug)]
pub struct FollowerProcess {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl FollowerProcess {
    /// Starts a follower and waits until it holds `record_count` records; returns how long that took it.
    pub fn start(
        engine: EngineName,
        directory: &Path,
        leader: SocketAddr,
        record_count: u64,
    ) -> Result<(Self, Duration)> {
        std::fs::create_dir_all(directory)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["follow", engine.as_str()])
            .arg(directory)
            .args([leader.to_string(), record_count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a follower process")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("standard output is a pipe")?).lines();
        let mut process = Self { child, input, output };
        let answer = process.answer("synced")?;
        let took = answer.first().context("synced without a time")?.parse()?;
        Ok((process, Duration::from_nanos(took)))
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The follower's digest over the first `record_count` indexes.
    pub fn digest(&mut self, record_count: u64) -> Result<u64> {
        self.ask(format_args!("digest {record_count}"))?;
        Ok(self.answer("digest")?.first().context("digest without a number")?.parse()?)
    }

    /// Changes applied so far, if the engine counts them.
    pub fn applied(&mut self) -> Result<Option<u64>> {
        self.ask(format_args!("applied"))?;
        Ok(self.answer("applied")?.first().and_then(|count| count.parse().ok()))
    }

    /// Measures how long `change` takes to become visible here, `count` times, with `pause` before each.
    /// `change` gets the stamp to write under key `index`.
    pub fn watch(
        &mut self,
        index: u64,
        count: u64,
        mut pause: impl FnMut() -> Duration,
        mut change: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<f64>> {
        self.ask(format_args!("watch {index} {count}"))?;
        self.answer("watching")?;
        let mut delays = Vec::new();
        for _ in 0..count {
            thread::sleep(pause());
            change(monotonic_ns())?;
            let delay: u32 = self.answer("seen")?.first().context("seen without a delay")?.parse()?;
            delays.push(f64::from(delay));
        }
        Ok(delays)
    }

    /// Runs `write` while the follower reports how far it is: the least stamp under the keys `indexes`. Returns
    /// what `write` returned and the time at which the follower had `last` under all of them.
    pub fn stream<T>(
        &mut self,
        last: u64,
        indexes: &[u64],
        write: impl FnOnce(&AtomicU64) -> Result<T>,
    ) -> Result<(T, u64)> {
        let keys: Vec<_> = indexes.iter().map(u64::to_string).collect();
        self.ask(format_args!("stream {last} {}", keys.join(" ")))?;
        let reached = AtomicU64::new(0);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let end = self.follow_stream(last, &reached);
                // Whatever the end was: a writer that still waits must not wait for ever.
                reached.store(u64::MAX, Ordering::Relaxed);
                end
            });
            let written = write(&reached);
            let Ok(end) = reader.join() else { bail!("the reader of a follower's answers panicked") };
            Ok((written?, end?))
        })
    }

    fn follow_stream(&mut self, last: u64, reached: &AtomicU64) -> Result<u64> {
        loop {
            let words = self.answer("at")?;
            let [at, now] = words.as_slice() else { bail!("answer is {words:?}, wanted a stamp and a time") };
            // Relaxed: only a pace is kept with it; a stale value makes the writer wait a little.
            reached.store(at.parse()?, Ordering::Relaxed);
            if at.parse() == Ok(last) {
                return Ok(now.parse()?);
            }
        }
    }

    fn ask(&mut self, request: std::fmt::Arguments<'_>) -> Result<()> {
        let input = self.input.as_mut().context("the follower was told to end")?;
        writeln!(input, "{request}").context("the follower process has ended")
    }

    fn answer(&mut self, word: &str) -> Result<Vec<String>> {
        let line = self.output.next().context("the follower process has ended")??;
        let mut words = line.split_ascii_whitespace().map(str::to_owned);
        ensure!(words.next().as_deref() == Some(word), "answer is {line:?}, wanted `{word}`");
        Ok(words.collect())
    }
}

impl Drop for FollowerProcess {
    fn drop(&mut self) {
        // The end of its input is the request to end; a follower that is stuck is ended by its id.
        drop(self.input.take());
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > Duration::from_secs(10) {
                self.child.kill().ok();
                self.child.wait().ok();
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
