//! The `slotstream` program: reads the command line and runs what it asks for.
//!
//! Exit codes: 0 done, 1 failure or a difference found, 2 bad usage, 101 a panic, 130 told to stop twice, 135 a page of
//! a mapped file that cannot be had; one line on standard error says why.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;

use slotstream::backup::{self, Place, PlaceError};
use slotstream::config::{self, Command, ExportArgs, ImportArgs, ParseError};
use slotstream::inspect::export::ExportError;
use slotstream::inspect::import::ImportError;
use slotstream::inspect::tail::listen::Listen;
use slotstream::inspect::tail::push::Sink;
use slotstream::inspect::tail::token::{Token, TokenError};
use slotstream::inspect::tail::{NoPosition, Start};
use slotstream::inspect::{self, ToolError, Verdict};
use slotstream::stop::Stop;
use slotstream::{node, signals};

const EXIT_BAD: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_PANIC: u8 = 101;

fn main() -> ExitCode {
    if let Err(error) = node::exit_on_bus_error() {
        complain(&format!("a page that cannot be read will end this process without a word: {error}"));
    }
    match config::parse(std::env::args_os()) {
        Ok(command) => match run(command) {
            Ok(Verdict::Good) => ExitCode::SUCCESS,
            Ok(Verdict::Bad) => ExitCode::from(EXIT_BAD),
            Err(error) if is_broken_pipe(&error) => ExitCode::from(EXIT_BAD),
            Err(error) => {
                complain(&format!("{error:#}").replace('\n', " "));
                ExitCode::from(if is_usage(&error) { EXIT_USAGE } else { EXIT_BAD })
            }
        },
        Err(ParseError::Show(text)) => {
            // Nobody reads it, or somebody does: neither is a failure.
            text.print().map_or(ExitCode::SUCCESS, |()| ExitCode::SUCCESS)
        }
        Err(ParseError::Usage(line)) => {
            complain(&line);
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// One line on standard error; where nobody takes it, the exit code must do.
fn complain(line: &str) {
    drop(writeln!(io::stderr(), "slotstream: {line}"));
}

/// A node that has lost a thread serves some things and not others, and nobody sees it: end the process.
fn exit_on_panic() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        std::process::exit(EXIT_PANIC.into());
    }));
}

/// Whether the arguments are wrong, whatever nodes and files hold.
fn is_usage(error: &anyhow::Error) -> bool {
    let import = error.downcast_ref::<ImportError>();
    let export = error.downcast_ref::<ExportError>();
    let tool = error.downcast_ref::<ToolError>();
    error.is::<node::BadUsage>()
        || error.is::<TokenError>()
        || error.is::<PlaceError>()
        || error.is::<NoPosition>()
        || matches!(import, Some(ImportError::Format { .. }))
        || matches!(export, Some(ExportError::Format { .. }))
        || matches!(tool, Some(ToolError::SameDirectory { .. }))
}

/// Whoever read our output went away, as `head` does; nothing is left to say.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    error.chain().any(pipe)
}

fn run(command: Command) -> anyhow::Result<Verdict> {
    let mut out = io::stdout().lock();
    match command {
        Command::Leader(options) => {
            exit_on_panic();
            node::lead(&options)?;
        }
        Command::Follower(options) => {
            exit_on_panic();
            node::follow(&options)?;
        }
        Command::Status(options) => {
            return Ok(inspect::status::print(&options.nodes, options.json, &mut out)?);
        }
        Command::Promote(options) => {
            return Ok(inspect::roles::promote(&options.node, options.force, &mut out)?);
        }
        Command::Switchover(options) => {
            let (leader, to) = (&options.leader, &options.to);
            return Ok(inspect::roles::switchover(leader, to, options.timeout, &mut out)?);
        }
        Command::Inspect(options) => {
            return Ok(inspect::files::print(&options.directory, options.shard, options.json, &mut out)?);
        }
        Command::Verify(options) => {
            return Ok(match &options.other {
                None => inspect::verify::check(&options.directory, options.json, &mut out)?,
                Some(other) => inspect::verify::compare(&options.directory, other, options.json, &mut out)?,
            });
        }
        Command::Backup(options) => {
            let to = Place::parse(&options.to)?;
            let since = options.since.as_deref().map(Place::parse).transpose()?;
            let request = backup::Request { leader: &options.leader, to: &to, since: since.as_ref() };
            writeln!(out, "{}", backup::take(request)?)?;
        }
        Command::Restore(options) => {
            let backups = options.backups.iter().map(|given| Place::parse(given));
            let backups = backups.collect::<Result<Vec<_>, _>>()?;
            writeln!(out, "{}", backup::restore(&backups, &options.to)?)?;
        }
        Command::Import(options) => {
            let ImportArgs { node, file: path, format, database } = options;
            let import = inspect::import::Import { node, path, format, database };
            return Ok(inspect::import::run(&import, &mut out)?);
        }
        Command::Export(options) => {
            let ExportArgs { node, file: path, format } = options;
            let export = inspect::export::Export { node, path, format };
            return Ok(inspect::export::run(&export, &mut out)?);
        }
        Command::Tail(options) => {
            let stop = Stop::new();
            signals::set_on_signals(&stop).context("signals cannot be handled")?;
            let tail = inspect::tail::Tail {
                node: options.node,
                shards: options.shards.map(|shards| shards.indexes().to_vec()),
                from: options.from.parse::<Start>()?,
                position_file: options.position_file,
                json: options.json || options.listen.is_some(),
            };
            let token = || Token::read(options.token_file.as_deref());
            if let Some(address) = options.listen {
                let (token, readers_max) = (token()?, usize::from(options.readers_max));
                Token::check(token.as_ref(), address)?;
                inspect::tail::listen::run(&tail, &Listen { address, token, readers_max }, &stop)?;
            } else if let Some(address) = options.connect {
                let sink = Sink { address, token: token()?, acks: !options.no_acks };
                inspect::tail::push::run(&tail, &sink, &stop)?;
            } else {
                inspect::tail::run(&tail, &stop, &mut out)?;
            }
        }
        Command::Demo(options) => {
            let stop = Stop::new();
            signals::set_on_signals(&stop).context("signals cannot be handled")?;
            drop(out);
            return Ok(inspect::demo::run(options.keep, &stop)?);
        }
        Command::Bench(options) => {
            let load = inspect::bench::Load {
                address: options.address,
                clients: options.clients,
                pipeline: options.pipeline,
                keys: options.keys,
                value_size: options.value_size,
                duration: options.duration,
            };
            inspect::bench::run(&load, &mut out)?;
        }
    }
    Ok(Verdict::Good)
}
