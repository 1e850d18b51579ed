//! Network namespaces of a test's own: one for the leader and the test itself, one per follower, a veth
//! pair to each, and real faults on them (nftables for what is dropped or reset, tbf for a slow link).
//!
//! Needs root, `ip` and `tc` (iproute2) and `nft` (nftables). Without them a test fails and says so,
//! unless `SLOTSTREAM_SKIP_NETNS=1` asks to go without.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps its namespaces.
const FOLDER: &str = "/run/netns";
const PREFIX: &str = "slotstream-";

/// What happens to packets of the replication connection; clients and HTTP are left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing passes in either direction.
    Partition,
    /// Nothing passes from the leader to the follower.
    DropDown,
    /// Nothing passes from the follower to the leader.
    DropUp,
    /// Whatever an end sends is answered with a reset, so both ends lose their connection at once.
    Reset,
    /// The cable is out: nothing passes at all, and the kernel knows.
    LinkDown,
}

/// The namespaces; gone when dropped.
#[derive(Debug)]
pub(crate) struct Net {
    leader: Space,
    followers: Vec<Space>,
}

impl Net {
    /// Makes the namespaces and moves the calling thread into the leader's: what it starts from now on,
    /// threads and processes, lives there. `None` if `SLOTSTREAM_SKIP_NETNS` is set.
    pub(crate) fn start(follower_count: u8) -> Option<Self> {
        if std::env::var_os("SLOTSTREAM_SKIP_NETNS").is_some() {
            eprintln!("SKIPPED: SLOTSTREAM_SKIP_NETNS is set");
            return None;
        }
        remove_left_over();
        let leader = Space::new("leader");
        leader.run(&["ip", "link", "set", "lo", "up"]);
        let mut followers = Vec::new();
        for number in 0..follower_count {
            let follower = Space::new(&format!("follower{number}"));
            let (here, there) = (device(number), "leader");
            let (leader_name, name) = (leader.name.as_str(), follower.name.as_str());
            run(&[
                "ip",
                "link",
                "add",
                &here,
                "netns",
                leader_name,
                "type",
                "veth",
                "peer",
                "name",
                there,
                "netns",
                name,
            ]);
            follower.run(&["ip", "link", "set", "lo", "up"]);
            for (space, device, host) in
                [(&leader, here.as_str(), leader_host(number)), (&follower, there, follower_host(number))]
            {
                space.run(&["ip", "addr", "add", &format!("{host}/24"), "dev", device]);
                space.run(&["ip", "link", "set", device, "up"]);
            }
            followers.push(follower);
        }
        leader.enter();
        Some(Self { leader, followers })
    }

    /// The leader's address for this follower.
    pub(crate) fn leader_host(&self, number: u8) -> IpAddr {
        leader_host(number)
    }

    /// A follower's address.
    pub(crate) fn follower_host(&self, number: u8) -> IpAddr {
        follower_host(number)
    }

    /// Does something in a follower's namespace, such as starting its process.
    pub(crate) fn inside<T: Send>(&self, number: u8, action: impl FnOnce() -> T + Send) -> T {
        self.followers[usize::from(number)].inside(action)
    }

    /// Lays a fault on one follower's link.
    pub(crate) fn lay(&self, number: u8, fault: Fault, port: u16) {
        // The resets themselves must pass, so the rules are not about them.
        let reset = "tcp flags & rst == 0 reject with tcp reset";
        // As the follower sees it: what comes in is the leader's, what goes out its own. A reset of what an
        // end sends reaches that end, so each direction's rule tells one of the two.
        let (input, output) = match fault {
            Fault::Partition => ("drop", "drop"),
            Fault::DropDown => ("drop", "accept"),
            Fault::DropUp => ("accept", "drop"),
            Fault::Reset => (reset, reset),
            Fault::LinkDown => {
                self.leader.run(&["ip", "link", "set", &device(number), "down"]);
                return;
            }
        };
        self.followers[usize::from(number)].run(&[
            "nft",
            &format!(
                "table inet fault {{\n\
               chain input {{\n type filter hook input priority 0;\n tcp sport {port} {input};\n }}\n\
               chain output {{\n type filter hook output priority 0;\n tcp dport {port} {output};\n }}\n\
             }}"
            ),
        ]);
    }

    /// Takes a fault off again.
    pub(crate) fn lift(&self, number: u8, fault: Fault) {
        match fault {
            Fault::LinkDown => self.leader.run(&["ip", "link", "set", &device(number), "up"]),
            _ => self.followers[usize::from(number)].run(&["nft", "flush ruleset"]),
        }
    }

    /// Lets the leader send to a follower at this rate only.
    pub(crate) fn slow_down(&self, number: u8, bytes_per_second: u32) {
        let (device, rate) = (device(number), format!("{}bit", u64::from(bytes_per_second) * 8));
        let bucket = ["tbf", "rate", &rate, "burst", "32kb", "latency", "100ms"];
        self.leader.run(&[&["tc", "qdisc", "replace", "dev", &device, "root"], &bucket[..]].concat());
    }

    /// Lets it send as fast as it can again.
    pub(crate) fn speed_up(&self, number: u8) {
        self.leader.run(&["tc", "qdisc", "replace", "dev", &device(number), "root", "pfifo"]);
    }
}

/// The leader's end of the pair to this follower.
fn device(number: u8) -> String {
    format!("follower{number}")
}

fn leader_host(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 79, number, 1).into()
}

fn follower_host(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 79, number, 2).into()
}

/// One namespace.
#[derive(Debug)]
struct Space {
    name: String,
}

impl Space {
    fn new(role: &str) -> Self {
        // The thread too: `cargo test` runs several tests in one process.
        let thread = rustix::thread::gettid().as_raw_nonzero();
        let name = format!("{PREFIX}{}-{thread}-{role}", std::process::id());
        run(&["ip", "netns", "add", &name]);
        Self { name }
    }

    /// Moves the calling thread here.
    fn enter(&self) {
        let path = Path::new(FOLDER).join(&self.name);
        let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
    }

    fn inside<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                action()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn run(&self, words: &[&str]) {
        self.inside(|| run(words));
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// Processes that are still inside keep it until they end; the name goes at once.
fn delete(name: &str) {
    let deleted = Command::new("ip").args(["netns", "del", name]).status();
    if !deleted.is_ok_and(|status| status.success()) {
        eprintln!("namespace {name} stays behind");
    }
}

/// Removes what tests left behind that were killed.
fn remove_left_over() {
    let Ok(names) = std::fs::read_dir(FOLDER) else { return };
    for name in names.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            delete(&name);
        }
    }
}

#[track_caller]
fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
    let why = match output {
        Ok(output) if output.status.success() => return,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    panic!(
        "`{}`: {why}\nThis test makes network namespaces: it needs root, iproute2 and nftables. \
         SLOTSTREAM_SKIP_NETNS=1 goes without it.",
        words.join(" ")
    );
}
