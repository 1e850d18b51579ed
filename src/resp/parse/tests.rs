//! The parser against a plain one that copies, over whole, split and damaged input.

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { args_max: 64, bulk_size_max: 4096, inline_size_max: 1024 };

/// Parses as a connection does: commands, the bytes left over, and the error if there is one.
fn parse(input: &[u8]) -> (Vec<Vec<Vec<u8>>>, usize, Option<ProtocolError>) {
    let mut buffer = input.to_vec();
    let (mut commands, mut start) = (Vec::new(), 0);
    loop {
        let (mut cursor, mut args) = (Cursor { position: start, args_left: 0 }, Vec::new());
        match cursor.next(&mut buffer, &mut args, &LIMITS) {
            Ok(Step::Command) => {
                commands.push(args.iter().map(|arg| buffer[arg.start..arg.end].to_vec()).collect());
                start = cursor.position;
            }
            Ok(Step::Nothing) => start = cursor.position,
            Ok(Step::Incomplete) => return (commands, buffer.len() - start, None),
            Err(error) => return (commands, buffer.len() - start, Some(error)),
        }
    }
}

/// Parses with one cursor that keeps its place while the buffer grows to each of these lengths.
fn parse_growing(
    input: &[u8],
    lengths: impl Iterator<Item = usize>,
) -> (Vec<Vec<Vec<u8>>>, Option<ProtocolError>) {
    let mut buffer = Vec::new();
    let (mut commands, mut cursor, mut args) = (Vec::new(), Cursor::default(), Vec::new());
    for length in lengths {
        buffer.extend_from_slice(&input[buffer.len()..length]);
        loop {
            match cursor.next(&mut buffer, &mut args, &LIMITS) {
                Ok(Step::Command) => {
                    commands.push(args.iter().map(|arg| buffer[arg.start..arg.end].to_vec()).collect());
                    args.clear();
                }
                Ok(Step::Nothing) => {}
                Ok(Step::Incomplete) => break,
                Err(error) => return (commands, Some(error)),
            }
        }
    }
    (commands, None)
}

fn encode(command: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for arg in command {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn arg() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..24),
        2 => Just(b"\r\n".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1000..1100),
    ]
}

fn command() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(arg(), 1..6)
}

/// A word that an inline command can hold without quotes.
fn inline_command() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec("[a-zA-Z0-9:_$-]{1,12}", 1..5)
        .prop_map(|words| words.into_iter().map(String::into_bytes).collect())
}

#[derive(Debug, Clone)]
enum Item {
    Array(Vec<Vec<u8>>),
    Inline(Vec<Vec<u8>>),
    Blank,
    Empty,
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        6 => command().prop_map(Item::Array),
        2 => inline_command().prop_map(Item::Inline),
        1 => Just(Item::Blank),
        1 => Just(Item::Empty),
    ]
}

fn stream(items: &[Item]) -> (Vec<u8>, Vec<Vec<Vec<u8>>>) {
    let (mut bytes, mut commands) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Item::Array(command) => {
                bytes.extend_from_slice(&encode(command));
                commands.push(command.clone());
            }
            Item::Inline(command) => {
                bytes.extend_from_slice(&command.join(&b' '));
                bytes.extend_from_slice(b"\r\n");
                commands.push(command.clone());
            }
            Item::Blank => bytes.extend_from_slice(b"\r\n"),
            Item::Empty => bytes.extend_from_slice(b"*0\r\n"),
        }
    }
    (bytes, commands)
}

proptest! {
    #[test]
    fn a_stream_parses_into_its_commands(items in prop::collection::vec(item(), 0..12)) {
        let (bytes, commands) = stream(&items);
        prop_assert_eq!(parse(&bytes), (commands, 0, None));
    }

    #[test]
    fn every_split_gives_the_same_commands(items in prop::collection::vec(item(), 1..5)) {
        let (bytes, commands) = stream(&items);
        for split in 0..=bytes.len() {
            let (found, error) = parse_growing(&bytes, [split, bytes.len()].into_iter());
            prop_assert_eq!(error, None);
            prop_assert_eq!(&found, &commands, "split at {}", split);
        }
        let (found, error) = parse_growing(&bytes, 0..=bytes.len());
        prop_assert_eq!((found, error), (commands, None));
    }

    #[test]
    fn starting_over_gives_the_same_as_going_on(
        items in prop::collection::vec(item(), 1..5),
        cut in any::<prop::sample::Index>(),
    ) {
        let (bytes, commands) = stream(&items);
        let cut = cut.index(bytes.len() + 1);
        let (first, left, error) = parse(&bytes[..cut]);
        prop_assert_eq!(error, None);
        let (second, _, error) = parse(&bytes[cut - left..]);
        prop_assert_eq!(error, None);
        prop_assert_eq!([first, second].concat(), commands);
    }

    #[test]
    fn garbage_is_refused_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        parse(&bytes);
        parse_growing(&bytes, 0..=bytes.len());
    }

    #[test]
    fn damage_is_refused_and_never_panics(
        items in prop::collection::vec(item(), 1..6),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (mut bytes, _) = stream(&items);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let whole = parse(&bytes);
        let (found, error) = parse_growing(&bytes, 0..=bytes.len());
        prop_assert_eq!((whole.0, whole.2), (found, error));
    }
}

#[test]
fn lengths_beyond_the_limits_are_refused() {
    let cases: [(&[u8], ProtocolError); 12] = [
        (b"*65\r\n", ProtocolError::ArrayLength),
        (b"*x\r\n", ProtocolError::ArrayLength),
        (b"*\r\n", ProtocolError::ArrayLength),
        (b"*-\r\n", ProtocolError::ArrayLength),
        (b"*99999999999999999999999\r\n", ProtocolError::LineLength),
        (b"*1\r\n$4097\r\n", ProtocolError::BulkLength),
        (b"*1\r\n$-1\r\n", ProtocolError::BulkLength),
        (b"*1\r\n$99999999999999999999999\r\n", ProtocolError::BulkLength),
        (b"*1\r\n$9223372036854775807\r\n", ProtocolError::BulkLength),
        (b"*1\r\n:1\r\n", ProtocolError::BulkStart(':')),
        (b"*1\r\n$1\r\nabc\r\n", ProtocolError::BulkEnd),
        (b"get \"a\r\n", ProtocolError::Quotes),
    ];
    for (input, wanted) in cases {
        assert_eq!(parse(input).2, Some(wanted), "{}", input.escape_ascii());
    }
    assert_eq!(parse(&[b'a'; 1025]).2, Some(ProtocolError::InlineLength));
    assert_eq!(parse(&[b'a'; 1000]).2, None);
}
