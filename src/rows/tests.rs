//! Readers and writers, against each other, against a dump that Redis wrote, and against bytes that nobody should
//! have written.

use std::collections::BTreeMap;

use super::*;

type Rows = Vec<(Vec<u8>, Vec<u8>, u64)>;
type Refused = BTreeMap<String, Vec<String>>;

const FORMATS: [Format; 3] = [Format::Json, Format::Csv, Format::Rdb];

/// All rows, and the keys of what is none by what it is.
fn read(format: Format, bytes: &[u8], database: u64) -> Result<(Rows, Refused), RowError> {
    // In small pieces, so that every buffer is filled more than once.
    struct Pieces<'a>(&'a [u8]);
    impl Read for Pieces<'_> {
        fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
            let len = target.len().min(7);
            self.0.read(&mut target[..len])
        }
    }
    let mut source = reader(format, Pieces(bytes), database)?;
    let (mut rows, mut refused) = (Rows::new(), Refused::new());
    while let Some(item) = source.next()? {
        match item {
            Item::Row(row) => rows.push((row.key.to_vec(), row.value.to_vec(), row.expire_at_ms)),
            Item::Refused { key, what } => {
                refused.entry(what.into_owned()).or_default().push(key.escape_ascii().to_string());
            }
        }
    }
    Ok((rows, refused))
}

fn written(format: Format, rows: &Rows) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut target = writer(format, &mut bytes).expect("memory takes it");
    for (key, value, expire_at_ms) in rows {
        let row = Row { key, value, expire_at_ms: *expire_at_ms };
        target.push(row).expect("memory takes it");
    }
    target.finish().expect("memory takes it");
    drop(target);
    bytes
}

fn error(format: Format, bytes: &[u8]) -> String {
    read(format, bytes, 0).map_or_else(|error| error.to_string(), |found| panic!("taken: {found:?}"))
}

/// A dump that Redis 7.0 wrote: strings of every encoding, other types, two databases, a function.
fn golden() -> Vec<u8> {
    let text = include_str!("../../tests/data/redis_v10.hex");
    let words = text.lines().flat_map(|line| line.split(' ').skip(1));
    words.map(|word| u8::from_str_radix(word, 16).expect("hex")).collect()
}

/// A dump of these parts, with its checksum.
fn dump(version: u32, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("REDIS{version:04}").into_bytes();
    bytes.extend(parts.concat());
    bytes.push(0xFF);
    let checksum = rdb::checksum_of(&bytes);
    bytes.extend(checksum.to_le_bytes());
    bytes
}

#[test]
fn every_format_reads_what_it_wrote_byte_for_byte() {
    let all: Vec<u8> = (0..=u8::MAX).collect();
    let mut rows: Rows = vec![
        (b"key".to_vec(), b"value".to_vec(), 0),
        (b"empty".to_vec(), Vec::new(), 1),
        (all.clone(), all.clone(), u64::MAX >> 1),
        ("\u{e9}\",\r\n\\\u{0}\u{1F600}".into(), "a \"quoted\",\nline\r\n".into(), 4_102_444_800_123),
        (vec![b'k'; 1024], vec![0xFF; VALUE_SIZE_MAX], 7),
        (b" blank ".to_vec(), b" ".to_vec(), 0),
    ];
    // Lengths around every step of the encoding.
    rows.extend([1, 63, 64, 16_383, 16_384].map(|len| (vec![b'n'; len.min(1024)], vec![b'v'; len], 0)));
    for format in FORMATS {
        let bytes = written(format, &rows);
        let (found, refused) = read(format, &bytes, 0).expect("reads");
        assert!(found == rows, "{format:?}");
        assert_eq!(refused, Refused::new(), "{format:?}");
        let (found, _) = read(format, &written(format, &Rows::new()), 0).expect("reads");
        assert_eq!(found, Rows::new(), "{format:?}");
    }
}

#[test]
fn a_dump_of_redis_gives_its_strings_and_names_the_rest() {
    let (rows, refused) = read(Format::Rdb, &golden(), 0).expect("reads");
    let found: BTreeMap<String, (Vec<u8>, u64)> = rows
        .into_iter()
        .map(|(key, value, expiry)| (String::from_utf8(key).expect("text"), (value, expiry)))
        .collect();
    let numbers: Vec<String> = (1..=60).map(|number: u32| number.to_string()).collect();
    let long_key = format!("key:{}", "k".repeat(40));
    let wanted = [
        ("plain", b"hello".to_vec(), 0),
        ("empty", Vec::new(), 0),
        ("int8", b"-7".to_vec(), 0),
        ("int16", b"31000".to_vec(), 0),
        ("int32", b"-2000000000".to_vec(), 0),
        ("int64", b"9000000000000000000".to_vec(), 0),
        ("packed", b"abcdefgh".repeat(40), 0),
        (&long_key, b"v".to_vec(), 0),
        ("long", numbers.join(",").into_bytes(), 0),
        ("expires", b"soon".to_vec(), 4_102_444_800_123),
        ("binary", b"\x00\xFF\r\n".to_vec(), 0),
    ];
    let wanted: BTreeMap<_, _> =
        wanted.into_iter().map(|(key, value, expiry)| (key.to_owned(), (value, expiry))).collect();
    assert_eq!(found, wanted);
    let counts: BTreeMap<&str, usize> =
        refused.iter().map(|(what, keys)| (what.as_str(), keys.len())).collect();
    let wanted = [
        ("list", 2),
        ("set", 3),
        ("sorted set", 2),
        ("hash", 2),
        ("stream", 1),
        ("function library", 1),
        ("of database 3", 1),
    ];
    assert_eq!(counts, BTreeMap::from(wanted));
    let (rows, _) = read(Format::Rdb, &golden(), 3).expect("reads");
    assert_eq!(rows, [(b"other".to_vec(), b"db".to_vec(), 0)]);
}

#[test]
fn every_cut_and_every_flipped_bit_of_a_dump_is_found() {
    let good = golden();
    rdb::check(&good[..]).expect("it is good");
    for at in 0..good.len() {
        rdb::check(&good[..at]).expect_err("a cut is found");
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert!(rdb::check(&bad[..]).is_err(), "bit {bit} of byte {at}");
        }
    }
    let more = [&good[..], b"x"].concat();
    assert!(error(Format::Rdb, &more).contains("follows its end mark"));
}

#[test]
fn without_a_checksum_damage_is_an_error_or_other_rows_and_never_a_panic() {
    let mut good = golden();
    let end = good.len() - 8;
    good[end..].fill(0);
    rdb::check(&good[..]).expect("nothing to compare with");
    for at in 9..end {
        for value in [0x00, 0x01, 0x7F, 0x80, 0x81, 0xC0, 0xC3, 0xFF] {
            let mut bad = good.clone();
            bad[at] = value;
            // Either is right: what matters is that it ends.
            drop(read(Format::Rdb, &bad, 0));
        }
    }
}

#[test]
fn values_of_every_kind_end_where_they_end() {
    let row = b"\x00\x05after\x01v";
    let id = [0; 16];
    let kinds: Vec<(u8, Vec<u8>, &str)> = vec![
        (1, b"\x02\x01a\xC0\x07".to_vec(), "list"),
        (2, b"\x01\x01a".to_vec(), "set"),
        (3, b"\x03\x01a\x031.5\x01b\xFD\x01c\xFE".to_vec(), "sorted set"),
        (4, b"\x01\x01f\x01v".to_vec(), "hash"),
        (5, b"\x01\x01a\0\0\0\0\0\0\xF0\x3F".to_vec(), "sorted set"),
        (
            7,
            b"\x81\0\0\0\0\0\0\0\x09\x01\x05\x02\x06\x03ffff\x04dddddddd\x05\x01s\x00".to_vec(),
            "value of a module",
        ),
        (9, b"\x02zm".to_vec(), "hash"),
        (10, b"\x02zl".to_vec(), "list"),
        (11, b"\x02is".to_vec(), "set"),
        (12, b"\x02zl".to_vec(), "sorted set"),
        (13, b"\x02zl".to_vec(), "hash"),
        (14, b"\x02\x02zl\xC3\x05\x0A\x01ab\xC0\x01".to_vec(), "list"),
        (15, [&b"\x01\x10"[..], &id, b"\x02lp\x01\x01\x01\x00"].concat(), "stream"),
        (16, b"\x02lp".to_vec(), "hash"),
        (17, b"\x02lp".to_vec(), "sorted set"),
        (18, b"\x02\x01\x05plain\x02\x02lp".to_vec(), "list"),
        (20, b"\x02lp".to_vec(), "set"),
        (
            21,
            [
                &b"\x01\x10"[..],
                &id,
                b"\x02lp\x01\x01\x01\x01\x01\x00\x00\x01\x01\x01g\x01\x01\x01\x01",
                &id,
                b"deliverd\x01\x01\x02me",
                b"seenseenactiveac\x01",
                &id,
            ]
            .concat(),
            "stream",
        ),
        (22, b"\x01\x07\x01f\x01v".to_vec(), "hash"),
        (23, b"\x02lp".to_vec(), "hash"),
        (24, b"mmmmmmmm\x01\x07\x01f\x01v".to_vec(), "hash"),
        (25, b"mmmmmmmm\x02lp".to_vec(), "hash"),
    ];
    for (kind, value, name) in kinds {
        // An expiry belongs to the value that it stands before, and to no other.
        let part = [&b"\xFC\x01\0\0\0\0\0\0\0"[..], &[kind], b"\x01k", &value].concat();
        let (rows, refused) = read(Format::Rdb, &dump(12, &[&part, row]), 0)
            .unwrap_or_else(|error| panic!("kind {kind}: {error}"));
        assert_eq!(rows, [(b"after".to_vec(), b"v".to_vec(), 0)], "kind {kind}");
        assert_eq!(refused, Refused::from([(name.to_owned(), vec!["k".to_owned()])]), "kind {kind}");
    }
    for kind in [6, 8, 26, 100] {
        let said = error(Format::Rdb, &dump(12, &[&[kind], b"\x01k\x01v"]));
        assert!(said.contains(&format!("byte 9: holds a value of kind {kind}")), "{said}");
    }
}

#[test]
fn parts_that_are_no_rows_are_passed_over() {
    let parts: [&[u8]; 9] = [
        b"\xFA\x09redis-ver\x057.4.0",
        b"\xFE\x00",
        b"\xFB\x02\x01",
        b"\xF4\x01\x02\x03",
        b"\xF7\x01\x02\x02\x00",
        b"\xF8\x05\xF9\x07\xFD\x00\x00\x00\x01\x00\x01a\x01v",
        b"\xFC\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x00\x01b\x01v",
        b"\x00\x00\x01v",
        b"\x00\x01c\x01v",
    ];
    let (rows, refused) = read(Format::Rdb, &dump(11, &parts), 0).expect("reads");
    let row = |key: &[u8], expiry| (key.to_vec(), b"v".to_vec(), expiry);
    // A time before the first one is past, and not "never".
    assert_eq!(rows, [row(b"a", 16_777_216_000), row(b"b", 1), row(b"c", 0)]);
    let names: Vec<_> = refused.keys().collect();
    assert_eq!(names, ["data of a module", "empty key"]);
}

#[test]
fn what_no_store_holds_is_refused_without_being_held() {
    let large = |len: u32| [&b"\x80"[..], &len.to_be_bytes(), &vec![b'x'; len as usize]].concat();
    let parts = [
        [&b"\x00\x05value"[..], &large(65_536)].concat(),
        [&b"\x00"[..], &large(1_025), b"\x01v"].concat(),
        b"\x00\x02ok\x01v".to_vec(),
        [&b"\x00\x04more"[..], &large(700_000)].concat(),
    ];
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let (rows, refused) = read(Format::Rdb, &dump(9, &parts), 0).expect("reads");
    assert_eq!(rows, [(b"ok".to_vec(), b"v".to_vec(), 0)]);
    assert_eq!(refused["value larger than any store's"], ["value", "more"]);
    assert_eq!(refused["key larger than any store's"], ["x".repeat(64)]);
    // Lengths that nothing follows.
    for claim in [
        &b"\x00\x01k\x81\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"[..],
        b"\x00\x01k\x80\x7F\xFF\xFF\xFF",
        b"\x00\x01k\xC3\x04\x81\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFFabcd",
        b"\x00\x01k\xC3\x81\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x50abcd",
        b"\x0E\x01k\x81\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01a",
    ] {
        let said = error(Format::Rdb, &[b"REDIS0009", claim].concat());
        assert!(said.contains("cut off") || said.contains("damaged at byte"), "{claim:?}: {said}");
    }
}

#[test]
fn other_bytes_are_said_to_be_no_dump() {
    assert!(error(Format::Rdb, b"PK\x03\x04 and so on").contains("it is no dump"));
    assert!(error(Format::Rdb, b"REDISxxxx").contains("it is no dump"));
    assert!(error(Format::Rdb, b"REDIS+009\xFF").contains("it is no dump"));
    assert_eq!(error(Format::Rdb, &dump(13, &[])), "dump of version 13, wanted 1 to 12");
    assert_eq!(error(Format::Rdb, b"REDIS"), "ends at byte 5, before its end mark: it is cut off");
    let mut wrong = dump(9, &[]);
    *wrong.last_mut().expect("bytes") ^= 1;
    assert!(error(Format::Rdb, &wrong).contains("its checksum is"));
    // Before version 5 there is none.
    assert_eq!(read(Format::Rdb, b"REDIS0003\xFE\x00\x00\x01k\x01v\xFF", 0).expect("reads").0.len(), 1);
}

#[test]
fn a_bad_json_line_is_named() {
    let good = "{\"key\":\"k\",\"value\":\"v\",\"slot\":3,\"op\":\"set\"}\n\n \r\n{\"key_hex\":\"00fF\",\"value\":\"\"}";
    let (rows, _) = read(Format::Json, good.as_bytes(), 0).expect("reads");
    assert_eq!(rows, [(b"k".to_vec(), b"v".to_vec(), 0), (b"\x00\xFF".to_vec(), Vec::new(), 0)]);
    for (line, wanted) in [
        ("{\"key\":\"k\"}", "line 2: has no value and no value_hex"),
        ("{\"value\":\"k\"}", "line 2: has no key and no key_hex"),
        ("{\"key\":\"k\",\"key_hex\":\"00\",\"value\":\"\"}", "line 2: has key and key_hex"),
        ("{\"key_hex\":\"0\",\"value\":\"\"}", "line 2: key_hex has an odd number"),
        ("{\"key_hex\":\"0g\",\"value\":\"\"}", "line 2: key_hex has no hexadecimal digits"),
        ("{\"key\":\"k\",\"op\":\"delete\"}", "line 2: tells of a change that is no set"),
        ("{\"key\":\"k\",\"value\":\"\",\"expire_at_unix_ms\":0}", "expire_at_unix_ms is 0"),
        ("{\"key\":\"k\",\"value\":\"\",\"expire_at_unix_ms\":-1}", "line 2: column 44: invalid value"),
        ("{\"key\":7,\"value\":\"\"}", "line 2: column 8: invalid type: integer `7`"),
        ("nonsense", "line 2: column 2: expected ident"),
    ] {
        let said = error(Format::Json, format!("{{\"key\":\"k\",\"value\":\"v\"}}\n{line}\n").as_bytes());
        assert!(said.contains(wanted), "{line}: {said}");
    }
    let long = [b"{\"key\":\"".as_slice(), &vec![b'x'; TEXT_SIZE_MAX]].concat();
    assert!(error(Format::Json, &long).contains("line 1: longer than"));
}

#[test]
fn columns_may_come_in_any_order_and_bad_csv_is_named() {
    let good = "\u{feff}value,expire_at_unix_ms,key\n\"a, b\",4102444800000,k\nv,,\"two\nlines\"\n";
    let (rows, _) = read(Format::Csv, good.as_bytes(), 0).expect("reads");
    let wanted =
        [(b"k".to_vec(), b"a, b".to_vec(), 4_102_444_800_000), (b"two\nlines".to_vec(), b"v".to_vec(), 0)];
    assert_eq!(rows, wanted);
    for (text, wanted) in [
        ("key,value,ttl\n", "column \"ttl\" in the first line; wanted key, value,"),
        ("key\n", "must name a column \"value\" once"),
        ("key,key,value\n", "must name a column \"key\" once"),
        ("", "must name a column \"key\" once"),
        ("key,value\nk,v\nk\n", "line: 3"),
        ("key,value,expire_at_unix_ms\nk,v,soon\n", "line 2: expire_at_unix_ms is \"soon\""),
        ("key,value,expire_at_unix_ms\nk,v,0\n", "line 2: expire_at_unix_ms is \"0\""),
        ("key,value,key_hex\nk,v,00\n", "line 2: has key and key_hex"),
        ("key,value_hex\nk,0\n", "line 2: value_hex has an odd number"),
    ] {
        let said = error(Format::Csv, text.as_bytes());
        assert!(said.contains(wanted), "{text:?}: {said}");
    }
    // A quote that is never closed does not make one record of all that follows.
    let open = [b"key,value\nk,\"".as_slice(), &vec![b'x'; 4 * TEXT_SIZE_MAX]].concat();
    let said =
        reader(Format::Csv, &open[..], 0).and_then(|mut source| source.next().map(|item| item.is_some()));
    let said = said.map_or_else(|error| error.to_string(), |found| panic!("taken: {found}"));
    assert!(said.contains("is a quote never closed?"), "{said}");
}
