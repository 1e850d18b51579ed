//! Lays a configuration file under what flags and environment say.
//!
//! A file's key is handed to clap as the flag of that name, unless the user set that option himself;
//! so values are parsed, checked and defaulted in one place.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};

use super::args::{Cli, Command, Common, Lead, Leader};
use crate::slot::layout::KEY_SIZE_MAX;

/// Why there is nothing to run.
#[derive(Debug)]
pub enum ParseError {
    /// Help or version was asked for: print it and exit with 0.
    Show(clap::Error),
    /// Bad usage: one line, exit with 2.
    Usage(String),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Show(text) => text.fmt(f),
            Self::Usage(line) => f.write_str(line),
        }
    }
}

impl From<clap::Error> for ParseError {
    fn from(error: clap::Error) -> Self {
        use clap::error::ErrorKind;
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Self::Show(error),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                Self::Usage("no command given; `slotstream --help` lists them".to_owned())
            }
            _ => Self::Usage(one_line(&error.render().to_string())),
        }
    }
}

/// clap's message without usage and hints to `--help`: what was found, what was wanted, perhaps a tip.
fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let kept =
        lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    let text = kept.collect::<Vec<_>>().join(" ");
    text.strip_prefix("error: ").unwrap_or(&text).to_owned()
}

/// Parses the command line, environment and, where one is named, the configuration file.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, ParseError> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    // A help names the variables; what they hold is long, or empty.
    let command =
        Cli::command().mut_subcommands(|command| command.mut_args(|argument| argument.hide_env_values(true)));
    let mut matches = command.clone().try_get_matches_from(&arguments)?;
    let given = matches.subcommand();
    if let Some((name, matches_given)) = given
        && let Ok(Some(file)) = matches_given.try_get_one::<std::path::PathBuf>("config")
    {
        let role = command.find_subcommand(name).expect("clap matched this subcommand");
        let flags = flags_of_file(file, role, matches_given)?;
        arguments.extend(flags);
        matches = command.try_get_matches_from(&arguments).map_err(|error| {
            // Without the file it parsed, so the file is at fault.
            ParseError::Usage(format!("{}: {}", file.display(), one_line(&error.render().to_string())))
        })?;
    }
    let cli = Cli::from_arg_matches(&matches)?;
    check(&cli.command).map_err(ParseError::Usage)?;
    Ok(cli.command)
}

fn flags_of_file(
    file: &Path,
    role: &clap::Command,
    given: &clap::ArgMatches,
) -> Result<Vec<OsString>, ParseError> {
    let at = |what: String| ParseError::Usage(format!("{}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| at(error.to_string()))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
        at(format!("line {line}: {}", error.message().replace('\n', " ")))
    })?;
    let mut flags = Vec::new();
    for (key, value) in &table {
        let known = role.get_arguments().any(|argument| argument.get_id() == key && key != "config");
        if !known {
            return Err(at(format!("unknown key `{key}`")));
        }
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(flag) => flag.to_string(),
            other => {
                return Err(at(format!(
                    "`{key}` is a TOML {}, wanted a string, an integer or a boolean",
                    other.type_str()
                )));
            }
        };
        if matches!(given.value_source(key), None | Some(ValueSource::DefaultValue)) {
            flags.push(format!("--{}={text}", key.replace('_', "-")).into());
        }
    }
    Ok(flags)
}

/// What one option alone cannot know.
fn check(command: &Command) -> Result<(), String> {
    match command {
        Command::Leader(leader) => {
            check_common(&leader.common)?;
            check_lead(&leader.lead)?;
            check_prefix(leader)
        }
        Command::Follower(follower) => {
            check_common(&follower.common)?;
            check_lead(&follower.lead)?;
            required(follower.leader.is_some(), "leader", "HOST:PORT")
        }
        _ => Ok(()),
    }
}

/// What a scan or a checkpoint writes at once: a lower rate is a mistake, such as a size without its unit.
const RATE_MIN: usize = 64 << 10;

/// Bytes a second; zero, where it is allowed, is no limit.
fn check_rates(common: &Common) -> Result<(), String> {
    let replication = &common.replication;
    let rates = [
        ("scan-rate-max", replication.scan_rate_max, ""),
        ("scan-rate-busy", Some(replication.scan_rate_busy), ", or 0 for no limit"),
        ("checkpoint-rate", Some(common.durability.checkpoint_rate), ", or 0 for all at once"),
    ];
    for (name, rate, or) in rates {
        if let Some(rate) = rate.filter(|rate| *rate < RATE_MIN && (*rate > 0 || or.is_empty())) {
            return Err(format!("--{name} is {rate} bytes a second, wanted at least {RATE_MIN} (64KiB){or}"));
        }
    }
    Ok(())
}

const SIZE_MIN: usize = 4 << 10;
const SIZE_MAX: usize = 1 << 30;

fn check_lead(lead: &Lead) -> Result<(), String> {
    // Half of it is the largest frame; a ring that holds no image of any store is of no use.
    let ring_size = lead.ring_size.map(|size| ("ring-size", size));
    for (name, size) in ring_size.into_iter().chain([("ack-window", lead.ack_window)]) {
        if !(SIZE_MIN..=SIZE_MAX).contains(&size) {
            return Err(format!("--{name} is {size} bytes, wanted {SIZE_MIN} to {SIZE_MAX}"));
        }
    }
    Ok(())
}

/// A prefix is a part of the key. Where the directory says how long that is, the node checks it.
fn check_prefix(leader: &Leader) -> Result<(), String> {
    let key_bits = leader.key_size.unwrap_or(KEY_SIZE_MAX) * 8;
    match leader.shard_prefix_bits {
        Some(found) if found > key_bits => {
            Err(format!("--shard-prefix-bits is {found}, wanted at most the {key_bits} bits of a key"))
        }
        _ => Ok(()),
    }
}

fn required(given: bool, name: &str, wanted: &str) -> Result<(), String> {
    if given {
        return Ok(());
    }
    let variable = name.to_uppercase().replace('-', "_");
    let key = name.replace('-', "_");
    Err(format!(
        "--{name} {wanted} is required (or SLOTSTREAM_{variable}, or `{key}` in the configuration file)"
    ))
}

fn check_common(common: &Common) -> Result<(), String> {
    required(common.data_dir.is_some(), "data-dir", "DIR")?;
    common.durability.check()?;
    check_rates(common)?;
    if !common.listen.ip().is_loopback() && !common.allow_remote_clients {
        return Err(format!(
            "--listen {} is reachable from other machines and there is no password; wanted a loopback address, or --allow-remote-clients",
            common.listen
        ));
    }
    let ports = [
        ("listen", Some(common.listen)),
        ("http-listen", Some(common.http_listen)),
        ("replication-listen", common.replication_listen),
    ];
    for (index, (name, address)) in ports.iter().enumerate() {
        let same = |(_, other): &&(&str, Option<SocketAddr>)| other == address;
        if let (Some(address), Some((other, _))) = (address, ports[..index].iter().find(same))
            && address.port() != 0
        {
            return Err(format!("--{name} and --{other} are both {address}, wanted two ports"));
        }
    }
    if common.dead_after < common.heartbeat_interval * 2 {
        return Err(format!(
            "--dead-after is {:?}, wanted at least twice --heartbeat-interval ({:?})",
            common.dead_after, common.heartbeat_interval
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader(arguments: &[&str]) -> Result<Leader, String> {
        let all = ["slotstream", "leader"].iter().chain(arguments).map(OsString::from);
        match parse(all) {
            Ok(Command::Leader(leader)) => Ok(leader),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().expect("temp dir");
        let path = directory.path().join("node.toml");
        std::fs::write(&path, text).expect("file");
        (directory, path.to_string_lossy().into_owned())
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let (_directory, path) = file(
            "data_dir = \"/from/file\"\nring_size = \"2MiB\"\nshard_count = 8\nallow_remote_clients = true\n",
        );
        let found = leader(&["--config", &path, "--shard-count", "16"]).expect("parses");
        assert_eq!(found.shard_count, Some(16));
        assert_eq!(found.lead.ring_size, Some(2 << 20));
        assert_eq!(found.lead.ack_window, 1 << 20);
        assert!(found.common.allow_remote_clients);
        assert_eq!(found.common.data_dir.as_deref(), Some(Path::new("/from/file")));
    }

    #[test]
    fn unknown_keys_wrong_types_and_bad_values_in_a_file_are_one_line_that_names_it() {
        for (text, wanted) in [
            ("data_dirr = \"x\"", "unknown key `data_dirr`"),
            ("leader = \"a:1\"", "unknown key `leader`"),
            ("config = \"x\"", "unknown key `config`"),
            ("shard_count = [1]", "`shard_count` is a TOML array"),
            ("[listen]\na = 1", "`listen` is a TOML table"),
            ("shard_count = 70000", "invalid value '70000'"),
            ("listen = 7", "invalid value '7'"),
            ("data_dir = \"x\"\nbroken", "line 2"),
            ("ring_size = \"1MB\"", "wanted bytes"),
        ] {
            let (_directory, path) = file(text);
            let error = leader(&["--data-dir", "/x", "--config", &path]).expect_err(text);
            assert!(error.contains(&path) && error.contains(wanted), "{text}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn what_is_missing_or_does_not_fit_together_is_said() {
        let unset = |name: &str| std::env::var_os(name).is_none();
        assert!(unset("SLOTSTREAM_DATA_DIR"), "this test needs an environment without SLOTSTREAM_DATA_DIR");
        for (arguments, wanted) in [
            (&["--shard-count", "4"][..], "--data-dir DIR is required"),
            (&["--data-dir", "/x", "--listen", "0.0.0.0:6379"], "--allow-remote-clients"),
            (&["--data-dir", "/x", "--dead-after", "1s"], "--dead-after is 1s"),
            (
                &["--data-dir", "/x", "--http-listen", "127.0.0.1:6379"],
                "--http-listen and --listen are both 127.0.0.1:6379",
            ),
            (&["--data-dir", "/x", "--shard-prefix-bits", "9000"], "9000, wanted at most the 8192 bits"),
            (
                &["--data-dir", "/x", "--shard-prefix-bits", "999", "--key-size", "16"],
                "999, wanted at most the 128 bits",
            ),
            (&["--data-dir", "/x", "--log-level", "nonsense"], "\"nonsense\" is no level; wanted off, error"),
            (&["--data-dir", "/x", "--ring-size", "1"], "--ring-size is 1 bytes"),
            (&["--data-dir", "/x", "--scan-rate-max", "50"], "--scan-rate-max is 50 bytes a second"),
            (
                &["--data-dir", "/x", "--scan-rate-max", "0"],
                "--scan-rate-max is 0 bytes a second, wanted at least",
            ),
            (
                &["--data-dir", "/x", "--scan-rate-busy", "96"],
                "wanted at least 65536 (64KiB), or 0 for no limit",
            ),
            (&["--data-dir", "/x", "--checkpoint-rate", "64"], "--checkpoint-rate is 64 bytes a second"),
            (&["--data-dir", "/x", "--frobnicate"], "unexpected argument '--frobnicate'"),
            (&["--config", "/does/not/exist.toml"], "/does/not/exist.toml: No such file"),
        ] {
            let error = leader(arguments).expect_err("bad usage");
            assert!(error.contains(wanted), "{arguments:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    /// A value for an option, by what its help calls it.
    fn example(argument: &clap::Arg) -> String {
        if let Some(value) = argument.get_possible_values().first() {
            return value.get_name().to_owned();
        }
        let name = argument.get_value_names().and_then(<[_]>::first).map_or("", |name| name.as_str());
        match name {
            "ADDR" => "127.0.0.1:0",
            "HOST:PORT" => "leader.example:8379",
            "N" | "BYTES" | "BITS" => "8",
            "TIME" => "2s",
            "SIZE" => "128MiB",
            "DIR" | "FILE" => "/some/where",
            "SHARDS" => "0,2-3",
            "LEVEL" => "warn",
            "ID" => "6a8a8b4e-6d0f-4b58-9d5c-2f3f6a1a2b3c",
            other => panic!("no example of {other:?} for {argument}"),
        }
        .to_owned()
    }

    /// `promote = true` was once refused: it was the one option that took no value.
    #[test]
    fn every_option_of_a_node_can_stand_in_a_file() {
        let command = Cli::command();
        for name in ["leader", "follower"] {
            let role = command.find_subcommand(name).expect("a role");
            for argument in role.get_arguments() {
                let id = argument.get_id().as_str();
                if matches!(id, "help" | "config") {
                    continue;
                }
                let value = example(argument);
                let is_plain = value == "true" || value.parse::<u64>().is_ok();
                let value = if is_plain { value } else { format!("\"{value}\"") };
                let (_directory, path) = file(&format!("{id} = {value}\n"));
                let words = ["slotstream", name, "--config", &path];
                let needed = [("data_dir", "--data-dir=/x"), ("leader", "--leader=a:1")];
                let needed = needed.into_iter().filter(|(needed, _)| {
                    *needed != id && role.get_arguments().any(|known| known.get_id() == needed)
                });
                let words = words.into_iter().chain(needed.map(|(_, flag)| flag)).map(OsString::from);
                if let Err(error) = parse(words) {
                    panic!("{name}: {id} = {value}: {error}");
                }
            }
        }
        let (_directory, path) = file("promote = true\n");
        assert!(leader(&["--data-dir", "/x", "--config", &path]).is_ok_and(|found| found.promote));
        assert!(leader(&["--data-dir", "/x", "--promote"]).is_ok_and(|found| found.promote));
        assert!(leader(&["--data-dir", "/x"]).is_ok_and(|found| !found.promote));
        let flag_wins = leader(&["--data-dir", "/x", "--config", &path, "--promote=no"]);
        assert!(flag_wins.is_ok_and(|found| !found.promote));
    }

    /// As wide as a terminal, and in groups: the options of a node are many.
    #[test]
    fn every_help_is_grouped_and_fits_a_terminal() {
        let mut command = Cli::command();
        let names: Vec<String> = command.get_subcommands().map(|found| found.get_name().to_owned()).collect();
        assert!(names.len() > 10, "{names:?}");
        for name in &names {
            let found = command.find_subcommand_mut(name).expect("named above");
            for help in [found.render_help().to_string(), found.render_long_help().to_string()] {
                let wide = help.lines().find(|line| line.chars().count() > 100);
                assert_eq!(wide, None, "of {name}");
            }
            let options = found.get_arguments().filter(|argument| argument.get_id() != "help");
            let without = options.filter(|argument| argument.get_help_heading().is_none()).count();
            let is_node = matches!(name.as_str(), "leader" | "follower");
            assert!(!is_node || without == 0, "{without} options of {name} stand in no group");
        }
    }

    #[test]
    fn every_option_of_a_node_has_the_environment_name_of_its_flag() {
        let command = Cli::command();
        for role in ["leader", "follower"] {
            let role = command.find_subcommand(role).expect("a role");
            for argument in role.get_arguments().filter(|argument| argument.get_id() != "help") {
                let id = argument.get_id().as_str();
                let variable = format!("SLOTSTREAM_{}", id.to_uppercase());
                assert_eq!(argument.get_env(), Some(std::ffi::OsStr::new(&variable)), "{id}");
                assert_eq!(argument.get_long(), Some(id.replace('_', "-").as_str()), "{id}");
            }
        }
    }
}
