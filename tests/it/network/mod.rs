//! Faults of the network between a leader and its follower, under load: each a cause at a moment.
//!
//! Real faults in namespaces of the test's own (`wires_`), and those that need to know the protocol, or
//! that no rule of a kernel makes, in a relay (`relay_`).

mod netns;
pub(crate) mod relay;
mod stage;

use std::net::Ipv4Addr;
use std::time::Duration;

use netns::{Fault, Net};
use relay::Cut;
use stage::{Cause, Moment, Setting, Stage};

use crate::harness::{Node, PATIENCE, Reply, assert_equal, wait_in_sync, wait_until};
use crate::load::Load;

macro_rules! scenarios {
    ($stage:ident: $($name:ident: $moment:ident, $cause:expr;)*) => {$(
        #[test]
        fn $name() {
            $stage(Moment::$moment, $cause);
        }
    )*};
}

fn wires(moment: Moment, cause: Cause) {
    if let Some(stage) = Stage::in_namespaces(Setting::USUAL) {
        stage.play(moment, cause);
    }
}

fn relay(moment: Moment, cause: Cause) {
    Stage::relayed(Setting::USUAL).play(moment, cause);
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// An end that came together with the last bytes before it was not seen: the socket was not read again,
/// and the link lasted until `dead_after`. With one this long, the test would not come to its end.
#[test]
fn relay_cuts_at_every_byte() {
    let pause = ms(20);
    let setting = Setting { shards: 8, dead_after: "60s", pause };
    Stage::relayed(setting).play(Moment::Stream, Sweeping);
}

/// No connection lives long enough for a third of a first scan.
#[test]
fn relay_ends_every_connection_within_the_first_scan() {
    let cut = Bad(|rules| rules.cut = Some((700 << 10, Cut::Reset)), |stage| stage.has_phase("stream"));
    Stage::relayed(Setting { pause: ms(20), ..Setting::USUAL }).play(Moment::FirstScan, cut);
}

use Cause::{Bad, Cutting, CuttingAtHz, Flapping, Lasting, Nothing, Sweeping};

scenarios! { wires:
    wires_partitioned_in_the_first_scan: FirstScan, Lasting(Fault::Partition);
    wires_partitioned_at_the_seam: Seam, Lasting(Fault::Partition);
    wires_partitioned_in_the_stream: Stream, Lasting(Fault::Partition);
    wires_partitioned_while_the_follower_restarts: FollowerRestarts, Lasting(Fault::Partition);
    wires_partitioned_while_the_leader_restarts: LeaderRestarts, Lasting(Fault::Partition);
    wires_drop_what_the_leader_sends_in_the_first_scan: FirstScan, Lasting(Fault::DropDown);
    wires_drop_what_the_leader_sends_in_the_stream: Stream, Lasting(Fault::DropDown);
    wires_drop_what_the_follower_sends_in_the_first_scan: FirstScan, Lasting(Fault::DropUp);
    wires_drop_what_the_follower_sends_at_the_seam: Seam, Lasting(Fault::DropUp);
    wires_drop_what_the_follower_sends_in_the_stream: Stream, Lasting(Fault::DropUp);
    wires_reset_in_the_first_scan: FirstScan, Lasting(Fault::Reset);
    wires_reset_at_the_seam: Seam, Lasting(Fault::Reset);
    wires_reset_in_the_stream: Stream, Lasting(Fault::Reset);
    wires_flap_at_1_hz_in_the_first_scan: FirstScan, Flapping(Fault::Partition, 1);
    wires_flap_at_3_hz_at_the_seam: Seam, Flapping(Fault::Reset, 3);
    wires_flap_at_10_hz_in_the_stream: Stream, Flapping(Fault::Reset, 10);
    wires_unplugged_in_the_stream: Stream, Lasting(Fault::LinkDown);
    wires_unplugged_at_10_hz_in_the_first_scan: FirstScan, Flapping(Fault::LinkDown, 10);
}

scenarios! { relay:
    relay_reset_in_the_first_scan: FirstScan, Cutting(Cut::Reset);
    relay_reset_at_the_end_of_the_scan: ScanEnd, Cutting(Cut::Reset);
    relay_reset_right_behind_the_scan: Seam, Cutting(Cut::Reset);
    relay_closed_right_behind_the_scan: Seam, Cutting(Cut::Fin);
    relay_closed_in_the_stream: Stream, Cutting(Cut::Fin);
    relay_lost_its_leader_in_the_stream: Stream, Cutting(Cut::LeaderLost);
    relay_lost_its_follower_in_the_stream: Stream, Cutting(Cut::FollowerLost);
    relay_lost_its_follower_in_an_ack_stall: AckStall, Cutting(Cut::FollowerLost);
    relay_reset_in_an_ack_stall: AckStall, Cutting(Cut::Reset);
    relay_stalls_acks_and_goes_on: AckStall, Nothing;
    relay_flaps_at_10_hz_in_an_ack_stall: AckStall, CuttingAtHz(10);
    relay_flaps_at_3_hz_in_the_first_scan: FirstScan, CuttingAtHz(3);
    relay_delays_by_50_ms: FirstScan, Bad(|rules| rules.delay = ms(50), Stage::has_overflowed);
    relay_delays_by_200_ms: Stream, Bad(|rules| rules.delay = ms(200), |stage| stage.has_streamed(100));
    relay_carries_64_kib_a_second: Stream, Bad(|rules| rules.rate = Some(64 << 10), |stage| stage.lags_by(20_000));
    relay_loses_and_repeats: FirstScan,
        Bad(|rules| rules.stall = Some((64 << 10, ms(200))), Stage::has_overflowed);
    relay_is_there_while_the_follower_restarts: FollowerRestarts, Nothing;
    relay_is_there_while_the_follower_restarts_in_its_first_scan: FollowerRestartsInScan, Nothing;
    relay_is_there_while_the_leader_restarts_in_a_first_scan: LeaderRestartsInScan, Nothing;
    relay_is_slow_while_the_leader_restarts: LeaderRestarts,
        Bad(|rules| rules.rate = Some(64 << 10), |stage| stage.lags_by(5_000));
}

/// One follower is cut off; the leader and its other follower go on as if nothing were.
#[test]
fn wires_partition_of_one_follower_leaves_the_other_alone() {
    let Some(net) = Net::start(2) else { return };
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let arguments = ["--allow-remote-clients", "--heartbeat-interval", "100ms", "--dead-after", "1s"];
    let sizes = ["--shard-count", "2", "--key-size", "16", "--value-size", "64"];
    let everywhere = Ipv4Addr::UNSPECIFIED.into();
    let mut leader = Node::leader_at(everywhere, &at("leader"), &[&arguments[..], &sizes].concat());
    let port = leader.replication().port();
    let mut followers = [0, 1].map(|number| {
        let (path, leader) = (at(&format!("follower-{number}")), (net.leader_host(number), port).into());
        net.inside(number, || Node::follower_at(net.follower_host(number), &path, leader, &arguments))
    });
    let load = Load::start(leader.ports.listen, 1);
    let links = || leader.status()["links"].as_array().expect("links").len();
    wait_until("both followers have their links", PATIENCE, || links() == 4);
    let mut client = leader.client();
    let mut is_on = |followers: i64| {
        // In every shard.
        for marker in 0..16 {
            assert_eq!(client.call(&["SET", &format!("marker{marker}"), "x"]).text(), "OK");
        }
        client.call(&["WAIT", &followers.to_string(), "10000"]) == Reply::Integer(followers)
    };
    assert!(is_on(2));

    net.lay(0, Fault::Partition, port);
    wait_until("one follower is given up", PATIENCE, || {
        assert!(is_on(1), "the other one does not get what is written");
        links() == 2
    });
    net.lift(0, Fault::Partition);
    wait_until("it is back", PATIENCE, || links() == 4);
    assert!(is_on(2));

    drop(load.finish());
    for follower in &mut followers {
        wait_in_sync(&leader, follower);
        assert!(follower.terminate().0.success());
    }
    assert_eq!(leader.metric("slotstream_full_scans_total"), 4.0);
    assert!(leader.terminate().0.success());
    for follower in &followers {
        assert_equal(&leader.directory, &follower.directory);
    }
}
