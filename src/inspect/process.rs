//! Processes of this very executable, for the demo: data directory, ports file and log lie side by side.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where a process writes the addresses it has bound.
pub(super) fn ports_file(directory: &Path) -> PathBuf {
    directory.with_extension("ports")
}

/// Starts this executable with `arguments` on a data directory, at ports the kernel picks.
pub(super) fn start_process(directory: &Path, arguments: &[String]) -> io::Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(directory.with_extension("log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    // The demo's own, whatever the environment says.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SLOTSTREAM_"))
    {
        command.env_remove(name);
    }
    command
        .args(arguments)
        .arg("--data-dir")
        .arg(directory)
        .arg("--ports-file")
        .arg(ports_file(directory))
        .args(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    // In a group of its own, so that Ctrl-C reaches the demo alone and it can clean up.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn()
}

/// Tells a process to stop in order.
pub(super) fn terminate(child: &Child) -> io::Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("no process id"))?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?)
}
