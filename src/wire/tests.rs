//! What a peer, a wire or a mistaken client can do to frames, and that the format stays as it is.

use std::fmt::Write as _;

use proptest::prelude::*;
use uuid::Uuid;

use super::frame::{
    EPOCH_MAX, FLAG_SCAN, FLAG_STREAM, FLAG_WANTED, Frame, FrameDecoder, FrameError, FrameHeader,
    HEADER_SIZE, Kind, PAYLOAD_SIZE_MAX, PREAMBLE, Side, payload_len,
};
use super::message::{
    Ack, Heartbeat, Hello, MessageError, REFUSE_TEXT_SIZE_MAX, Refuse, RefuseCode, Regain, ScanDone,
    ScanPlace, ScanStart, TERMS_MAX, VERSION, WANT_LEN_MAX, Want, Welcome,
};
use crate::slot::image::{Image, push_record};
use crate::slot::{Geometry, Records, Seq, ShardIndex, SlotIndex, SlotView, Status, Term};

const GEOMETRY: Geometry =
    Geometry { shard_count: 4, key_size_max: 16, value_size_max: 64, shard_prefix_bits: 8 };

fn lineage() -> Vec<Term> {
    vec![Term { epoch: 1, id: 0xA1, first_seq: 1 }, Term { epoch: 2, id: 0xA2, first_seq: 500 }]
}

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        shard: 3,
        resp_port: 6380,
        geometry: Some(GEOMETRY),
        store_id: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        follower_id: Uuid::from_u128(0xfeed),
        epoch: 2,
        watermark: Seq(77),
        head: Seq(90),
        scan_place: Some(ScanPlace { next: SlotIndex(9), through: Seq(80) }),
        asks: true,
        lineage: lineage(),
    }
}

fn welcome() -> Welcome {
    Welcome {
        version: VERSION,
        shard: 3,
        resp_port: 6379,
        geometry: GEOMETRY,
        store_id: hello().store_id,
        epoch: 2,
        since: Seq(77),
        head: Seq(1000),
        slots_formatted: 4096,
        records: 900,
        fork: Seq(85),
        scan_place: Some(ScanPlace { next: SlotIndex(9), through: Seq(80) }),
        heartbeat_ms: 1000,
        lineage: lineage(),
    }
}

fn refuse() -> Refuse {
    Refuse {
        code: RefuseCode::NotLeader,
        text: "this node follows another".to_owned(),
        leader: Some("leader.example:8379".to_owned()),
    }
}

fn record(slot: u32, seq: u64, key: &[u8], value: &[u8]) -> Vec<u8> {
    let image = Image { seq: Seq(seq), status: Status::Occupied, expire_at: 0, key, value };
    let mut bytes = vec![0; image.size()];
    image.write(ShardIndex(3), SlotIndex(slot), &mut bytes);
    let mut record = Vec::new();
    push_record(&mut record, SlotIndex(slot), &bytes);
    record
}

fn slot_batch(flags: u8, epoch: u64, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        payload_len: payload_len(payload.len()),
        kind: Kind::SlotBatch,
        flags,
        epoch,
        payload_crc: 0,
    };
    [&header.encode()[..], payload].concat()
}

fn pushed(push: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    push(&mut bytes);
    bytes
}

/// One of each message, by name.
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let records = [record(7, 78, b"key", b"value"), record(0, 79, b"k", b"")].concat();
    let ack = Ack { received: Seq(80), applied: Seq(79), durable: Seq(0), received_bytes: 4321 };
    vec![
        ("hello", pushed(|out| hello().push(out))),
        ("welcome", pushed(|out| welcome().push(out))),
        ("refuse", pushed(|out| refuse().push(out, 2))),
        ("slot_batch_scan", slot_batch(FLAG_SCAN, 2, &records)),
        ("slot_batch_stream", slot_batch(FLAG_STREAM, 2, &records)),
        ("scan_done", pushed(|out| ScanDone { through: Seq(1000), consistent_at: Seq(1010) }.push(out, 2))),
        ("ack", pushed(|out| ack.push(out, 2))),
        ("slot_batch_wanted", slot_batch(FLAG_WANTED, 2, &records)),
        ("want", pushed(|out| Want { slots: vec![SlotIndex(3), SlotIndex(70_000)] }.push(out, 2))),
        ("scan_start", pushed(|out| ScanStart { since: Seq(900), through: Seq(1000) }.push(out, 2))),
        (
            "regain",
            pushed(|out| Regain { since: Seq(700), next: SlotIndex(40), window_bytes: 1 << 20 }.push(out, 2)),
        ),
        ("heartbeat", pushed(|out| Heartbeat { seq: Seq(1010), unix_ms: 1_700_000_000_123 }.push(out, 2))),
    ]
}

fn decoder(side: Side, bytes: &[u8]) -> FrameDecoder {
    let mut decoder = FrameDecoder::new(side, HEADER_SIZE + PAYLOAD_SIZE_MAX);
    decoder.space()[..bytes.len()].copy_from_slice(bytes);
    decoder.received(bytes.len());
    decoder
}

/// What a receiver makes of one frame: the message as text, or the error as text.
fn understand(bytes: &[u8]) -> Result<String, String> {
    let mut decoder = decoder(Side::Follower, bytes);
    let frame = decoder.next().map_err(|error| error.to_string())?.ok_or("half a frame")?;
    let text = |error: MessageError| error.to_string();
    Ok(match frame.kind {
        Kind::Hello => format!("{:?}", Hello::read(&frame).map_err(text)?),
        Kind::Welcome => format!("{:?}", Welcome::read(&frame).map_err(text)?),
        Kind::Refuse => format!("{:?}", Refuse::read(&frame).map_err(text)?),
        Kind::ScanDone => format!("{:?}", ScanDone::read(&frame).map_err(text)?),
        Kind::Ack => format!("{:?}", Ack::read(&frame).map_err(text)?),
        Kind::Heartbeat => format!("{:?}", Heartbeat::read(&frame).map_err(text)?),
        Kind::ScanStart => format!("{:?}", ScanStart::read(&frame).map_err(text)?),
        Kind::Regain => format!("{:?}", Regain::read(&frame).map_err(text)?),
        Kind::Want => format!("{:?}", Want::read(&frame).map_err(text)?),
        Kind::SlotBatch => {
            let mut text = String::new();
            for record in Records::new(&GEOMETRY, frame.payload) {
                let record = record.map_err(|error| error.to_string())?;
                let view = SlotView::check(&GEOMETRY, ShardIndex(3), record.slot, record.image)
                    .map_err(|error| error.to_string())?;
                if view.image().len() != record.image.len() {
                    return Err("record longer than its image".to_owned());
                }
                write!(text, "{} {:?}", record.slot, view).unwrap();
            }
            format!("{} {text}", frame.flags)
        }
    })
}

#[test]
fn the_format_is_as_it_was() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/wire_v1.hex");
    let mut found = String::new();
    for (name, bytes) in frames() {
        writeln!(found, "{name}").unwrap();
        for line in bytes.chunks(24) {
            let hex: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(found, "  {}", hex.join(" ")).unwrap();
        }
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &found).unwrap();
    }
    let wanted = std::fs::read_to_string(path).unwrap();
    assert!(found == wanted, "wire format has changed: a new version is called for\n{found}");
}

#[test]
fn every_flipped_bit_is_found() {
    for (name, bytes) in frames() {
        understand(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let read = understand(&damaged);
            assert!(read.is_err(), "{name}: bit {bit} flipped, read as {read:?}");
        }
    }
}

#[test]
fn half_a_frame_waits_for_the_rest_wherever_it_is_cut() {
    let frames = frames();
    let stream: Vec<u8> = frames.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    for cut in 0..=stream.len() {
        let mut decoder = FrameDecoder::new(Side::Follower, 512);
        let mut kinds = Vec::new();
        for part in [&stream[..cut], &stream[cut..]] {
            let mut rest = part;
            while !rest.is_empty() {
                let space = decoder.space();
                let len = space.len().min(rest.len());
                space[..len].copy_from_slice(&rest[..len]);
                decoder.received(len);
                rest = &rest[len..];
                while let Some(frame) = decoder.next().unwrap() {
                    kinds.push(frame.kind);
                }
            }
        }
        assert_eq!(kinds.len(), frames.len(), "cut at {cut}");
        assert_eq!(decoder.waiting(), 0);
    }
}

#[test]
fn a_preamble_may_come_byte_by_byte() {
    let hello = pushed(|out| hello().push(out));
    let mut decoder = FrameDecoder::new(Side::Leader, 4096);
    for (at, byte) in PREAMBLE.iter().chain(&hello).enumerate() {
        assert_eq!(decoder.next(), Ok(None), "before byte {at}");
        decoder.space()[0] = *byte;
        decoder.received(1);
    }
    let frame = decoder.next().unwrap().unwrap();
    assert_eq!(Hello::read(&frame).unwrap(), self::hello());
}

#[test]
fn foreign_peers_are_told_apart_by_their_first_bytes() {
    let server = |bytes: &[u8]| decoder(Side::Follower, bytes).next().unwrap_err();
    assert_eq!(server(b"-ERR unknown command"), FrameError::RedisServer);
    assert_eq!(server(b"-NOAUTH Authentication required.\r\n"), FrameError::RedisServer);
    assert_eq!(server(b"+OK\r\n"), FrameError::RedisServer);
    assert_eq!(server(b"HTTP/1.1 400 Bad Request\r\n"), FrameError::HttpServer);
    assert_eq!(server(b"\x15\x03\x01\x00\x02\x02\x46"), FrameError::Tls);
    assert!(matches!(server(b"220 smtp.example.org ESMTP\r\n"), FrameError::Length { .. }));
    let client = |bytes: &[u8]| decoder(Side::Leader, bytes).next().unwrap_err();
    for bytes in [&b"*1\r\n$4\r\nPING\r\n"[..], b"PING\r\n", b"SET a b\r\n", b"*"] {
        assert_eq!(client(bytes), FrameError::RedisClient, "{bytes:?}");
    }
    assert_eq!(client(b"GET / HTTP/1.1\r\n"), FrameError::HttpClient);
    assert_eq!(client(b"\x16\x03\x01\x02\x00\x01"), FrameError::Tls);
    assert_eq!(client(b"\0"), FrameError::Preamble { found: 0 });
    assert_eq!(client(b"SLOTSTREAX\r\n"), FrameError::RedisClient);
}

/// One frame of the highest epoch there is once ended a leader for good: the one behind it is no number.
#[test]
fn an_epoch_that_has_no_next_one_is_refused() {
    let header =
        |epoch| FrameHeader { payload_len: 0, kind: Kind::Hello, flags: 0, epoch, payload_crc: 0 }.encode();
    assert!(FrameHeader::decode(&header(EPOCH_MAX), 4096).is_ok());
    for epoch in [EPOCH_MAX + 1, u64::MAX] {
        assert_eq!(FrameHeader::decode(&header(epoch), 4096), Err(FrameError::Epoch { found: epoch }));
    }
}

#[test]
fn a_length_is_checked_before_anything_is_made_of_it() {
    let header = FrameHeader {
        payload_len: payload_len(PAYLOAD_SIZE_MAX),
        kind: Kind::SlotBatch,
        flags: FLAG_SCAN,
        epoch: 1,
        payload_crc: 0,
    };
    let mut small = FrameDecoder::new(Side::Follower, 4096);
    small.space()[..HEADER_SIZE].copy_from_slice(&header.encode());
    small.received(HEADER_SIZE);
    let wanted = 4096 - HEADER_SIZE;
    assert_eq!(small.next(), Err(FrameError::Length { found: payload_len(PAYLOAD_SIZE_MAX), wanted }));
}

#[test]
fn a_hello_of_later_versions_is_understood_if_it_speaks_ours() {
    let read = |bytes: &[u8]| Hello::read(&decoder(Side::Follower, bytes).next().unwrap().unwrap());
    let later = Hello { version_max: 9, ..hello() };
    assert_eq!(read(&pushed(|out| later.push(out))), Ok(later));
    let too_late = Hello { version_min: 2, version_max: 9, ..hello() };
    let refused = read(&pushed(|out| too_late.push(out)));
    assert_eq!(refused, Err(MessageError::Version { min: 2, max: 9 }));
}

#[test]
fn refusals_say_whether_to_try_again() {
    for code in (0..=u16::MAX).map(RefuseCode::from_u16) {
        assert_eq!(RefuseCode::from_u16(code.to_u16()), code);
    }
    assert!(RefuseCode::ForeignStore.is_permanent());
    assert!(!RefuseCode::TooManyFollowers.is_permanent());
    assert!(RefuseCode::Other(99).is_permanent() && !RefuseCode::Other(999).is_permanent());
}

#[test]
fn a_refusals_text_is_cut_and_made_harmless() {
    let long = Refuse::new(RefuseCode::Shard, "\u{1b}[31m\nä".repeat(400));
    let bytes = pushed(|out| long.push(out, 1));
    let mut decoder = decoder(Side::Follower, &bytes);
    let read = Refuse::read(&decoder.next().unwrap().unwrap()).unwrap();
    assert!(read.text.len() <= REFUSE_TEXT_SIZE_MAX && !read.text.contains(char::is_control), "{read:?}");
}

#[test]
fn a_refusal_names_the_leader_or_nobody() {
    let sent = |leader: Option<&str>| {
        let refuse = Refuse { leader: leader.map(ToOwned::to_owned), ..refuse() };
        let bytes = pushed(|out| refuse.push(out, 1));
        Refuse::read(&decoder(Side::Follower, &bytes).next().unwrap().unwrap()).map(|read| read.leader)
    };
    assert_eq!(sent(Some("[::1]:8379")), Ok(Some("[::1]:8379".to_owned())));
    assert_eq!(sent(None), Ok(None));
    assert_eq!(sent(Some(&format!("{}:1", "h".repeat(300)))), Ok(None), "too long to be sent");
    for bad in ["leader", ":8379", "leader:", "leader:0", "leader:70000", "lea der:1", "\u{1b}[31m:1"] {
        assert!(matches!(sent(Some(bad)), Err(MessageError::Leader { .. })), "{bad:?}");
    }
    // An address that is longer than the payload.
    let payload = [1, 1, 9, 0, b'x'];
    let bytes =
        pushed(|out| super::frame::push_frame(out, Kind::Refuse, 1, |out| out.extend_from_slice(&payload)));
    let read = Refuse::read(&decoder(Side::Follower, &bytes).next().unwrap().unwrap());
    assert!(matches!(read, Err(MessageError::Size { found: 5, wanted: 13, .. })), "{read:?}");
}

#[test]
fn of_a_long_lineage_the_newest_terms_are_sent() {
    let term = |epoch| Term { epoch, id: epoch, first_seq: epoch * 10 };
    let lineage: Vec<_> = (1..=2 * TERMS_MAX as u64).map(term).collect();
    let bytes = pushed(|out| Welcome { lineage: lineage.clone(), ..welcome() }.push(out));
    let mut decoder = decoder(Side::Follower, &bytes);
    let read = Welcome::read(&decoder.next().unwrap().unwrap()).unwrap();
    assert_eq!(read.lineage, lineage[TERMS_MAX..]);
}

#[test]
fn slots_are_asked_for_in_order_and_not_too_many() {
    let read = |slots: Vec<u32>| {
        let payload: Vec<u8> = slots.iter().flat_map(|slot| slot.to_le_bytes()).collect();
        let bytes =
            pushed(|out| super::frame::push_frame(out, Kind::Want, 1, |out| out.extend_from_slice(&payload)));
        let mut decoder = decoder(Side::Follower, &bytes);
        Want::read(&decoder.next().unwrap().unwrap()).map(|want| want.slots.len())
    };
    let most = u32::try_from(WANT_LEN_MAX).unwrap();
    assert_eq!(read(Vec::new()), Ok(0));
    assert_eq!(read((0..most).collect()), Ok(WANT_LEN_MAX));
    assert_eq!(read((0..=most).collect()), Err(MessageError::Want { found: WANT_LEN_MAX + 1 }));
    assert_eq!(read(vec![4, 4]), Err(MessageError::Want { found: 2 }));
}

fn place(next: u32, through: Seq) -> Option<ScanPlace> {
    (next != 0).then_some(ScanPlace { next: SlotIndex(next), through })
}

fn terms(count: u64) -> Vec<Term> {
    (0..count).map(|term| Term { epoch: term / 2, id: term, first_seq: term * 7 }).collect()
}

fn seq() -> impl Strategy<Value = Seq> {
    (0..=Seq::MAX.0).prop_map(Seq)
}

fn geometry() -> impl Strategy<Value = Geometry> {
    let routing = prop_oneof![0..=8_u16, Just(crate::slot::HASH_TAGS)];
    (1..=1024_u16, 1..=1024_u16, any::<u16>(), routing).prop_map(
        |(shard_count, key_size_max, value_size_max, shard_prefix_bits)| Geometry {
            shard_count,
            key_size_max,
            value_size_max,
            shard_prefix_bits,
        },
    )
}

fn round_trip<T: PartialEq + std::fmt::Debug>(
    sent: T,
    push: impl FnOnce(&T, &mut Vec<u8>),
    read: impl FnOnce(&Frame<'_>) -> Result<T, MessageError>,
) {
    let bytes = pushed(|out| push(&sent, out));
    let mut decoder = decoder(Side::Follower, &bytes);
    let frame = decoder.next().unwrap().unwrap();
    assert_eq!(read(&frame).unwrap(), sent);
}

proptest! {
    #[test]
    fn hello_comes_back(
        (shard, resp_port, epoch) in (0..1000_u16, any::<u16>(), 0..=EPOCH_MAX),
        geometry in proptest::option::of(geometry()),
        (store_id, follower_id) in any::<(u128, u128)>(),
        (watermark, head, through) in (seq(), seq(), seq()),
        next in any::<u32>(),
        asks in any::<bool>(),
        term_count in 1..40_u64,
    ) {
        let sent = Hello {
            version_min: 1,
            version_max: 1,
            shard,
            resp_port,
            geometry,
            store_id: Uuid::from_u128(store_id),
            follower_id: Uuid::from_u128(follower_id),
            epoch,
            watermark,
            head,
            scan_place: place(next, through),
            asks,
            lineage: terms(term_count),
        };
        round_trip(sent, Hello::push, Hello::read);
    }

    #[test]
    fn welcome_comes_back(
        (shard, resp_port, epoch) in (any::<u16>(), any::<u16>(), 0..=EPOCH_MAX),
        geometry in geometry(),
        store_id in any::<u128>(),
        (since, head, fork, through) in (seq(), seq(), seq(), seq()),
        next in any::<u32>(),
        (slots_formatted, records, heartbeat_ms) in any::<(u64, u64, u32)>(),
        term_count in 1..40_u64,
    ) {
        let sent = Welcome {
            version: VERSION,
            shard,
            resp_port,
            geometry,
            store_id: Uuid::from_u128(store_id),
            epoch,
            since,
            head,
            slots_formatted,
            records,
            fork,
            scan_place: place(next, through),
            heartbeat_ms,
            lineage: terms(term_count),
        };
        round_trip(sent, Welcome::push, Welcome::read);
    }

    #[test]
    fn small_messages_come_back(a in seq(), b in seq(), c in seq(), word in any::<u64>()) {
        let ack = Ack { received: a, applied: b, durable: c, received_bytes: word };
        round_trip(ack, |ack, out| ack.push(out, 5), Ack::read);
        let done = ScanDone { through: a, consistent_at: b };
        round_trip(done, |done, out| done.push(out, 5), ScanDone::read);
        let start = ScanStart { since: a, through: b };
        round_trip(start, |start, out| start.push(out, 5), ScanStart::read);
        let heartbeat = Heartbeat { seq: a, unix_ms: word };
        round_trip(heartbeat, |heartbeat, out| heartbeat.push(out, 5), Heartbeat::read);
    }

    #[test]
    fn any_bytes_give_frames_or_an_error_and_never_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        side in prop_oneof![Just(Side::Leader), Just(Side::Follower)],
        is_headed in any::<bool>(),
        kind in 1..=9_u8,
    ) {
        // With a good header the payload decides, so that messages see garbage too.
        let stream = if is_headed {
            let mut frame = pushed(|out| {
                super::frame::push_frame(out, Kind::Ack, 1, |out| out.extend_from_slice(&bytes));
            });
            frame[4] = kind;
            let crc = crc32fast::hash(&frame[..20]).to_le_bytes();
            frame[20..24].copy_from_slice(&crc);
            if side == Side::Leader { [&PREAMBLE[..], &frame].concat() } else { frame }
        } else {
            bytes
        };
        let mut decoder = decoder(side, &stream);
        while let Ok(Some(frame)) = decoder.next() {
            match frame.kind {
                Kind::Hello => drop(Hello::read(&frame)),
                Kind::Welcome => drop(Welcome::read(&frame)),
                Kind::Refuse => drop(Refuse::read(&frame)),
                Kind::ScanDone => drop(ScanDone::read(&frame)),
                Kind::Ack => drop(Ack::read(&frame)),
                Kind::Heartbeat => drop(Heartbeat::read(&frame)),
                Kind::Regain => drop(Regain::read(&frame)),
                Kind::ScanStart => drop(ScanStart::read(&frame)),
                Kind::Want => drop(Want::read(&frame)),
                Kind::SlotBatch => Records::new(&GEOMETRY, frame.payload).for_each(drop),
            }
        }
    }
}
