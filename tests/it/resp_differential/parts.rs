//! One command at random, of those that deal with a part of a value: ranges, bits, fractions, common runs.

use super::random::{INTEGERS, Random, any_case, key, value, word};

const BITS: [&str; 12] =
    ["0", "1", "7", "8", "9", "63", "100", "16000", "-1", "4294967296", "x", "9223372036854775807"];
const RANGES: [&str; 14] = [
    "0",
    "1",
    "2",
    "5",
    "7",
    "100",
    "-1",
    "-2",
    "-5",
    "-100",
    "9223372036854775807",
    "-9223372036854775808",
    "x",
    "",
];
const FLOATS: [&str; 38] = [
    "0",
    "1",
    "-1",
    "0.1",
    "0.2",
    "-0.3",
    "3.14159265358979323846",
    "1e5",
    "1E-5",
    "5.0e3",
    "1e-17",
    "5e-18",
    "-5.1e-18",
    "1e-400",
    "1e-4950",
    "1e-5000",
    "0e-5000",
    "1e17",
    "123456789012345678901234567890",
    "1e300",
    "1e5000",
    "-1e4932",
    "0x1p-3",
    "0X1.8P+4",
    "0x.f",
    "0x",
    "inf",
    "-Infinity",
    "nan",
    "+7.5",
    ".5",
    "5.",
    ".",
    "",
    " 1",
    "1 ",
    "1e",
    "12abc",
];

fn float(random: &mut Random) -> Vec<u8> {
    match random.below(40) {
        0 => word("1e4000"),
        1..=20 => word(random.pick(&FLOATS)),
        21..=24 => word(random.pick(&INTEGERS)),
        25..=30 => {
            let (whole, part) = (random.below(1 << 40), random.next());
            word(&format!("{}{whole}.{part}", random.pick(&["", "-"])))
        }
        _ => {
            // As many digits as make rounding matter.
            let digits = u128::from(random.next()) << 48 | u128::from(random.next());
            let exponent = random.below(60);
            word(&format!("{}{digits}e-{exponent}", random.pick(&["", "-"])))
        }
    }
}

fn field(random: &mut Random, command: &mut Vec<Vec<u8>>) {
    const TYPES: [&str; 18] = [
        "u1", "u2", "u5", "u8", "u16", "u31", "u32", "u63", "i1", "i2", "i8", "i13", "i32", "i63", "i64",
        "u64", "i65", "x8",
    ];
    const OFFSETS: [&str; 14] =
        ["0", "1", "3", "7", "8", "30", "100", "#0", "#1", "#5", "-1", "x", "#x", "#9223372036854775807"];
    // The last ones of each are mistakes: rare, so that most commands do something.
    let pick = |random: &mut Random, of: &[&str], good: usize| {
        word(if random.one_in(30) { random.pick(of) } else { random.pick(&of[..good]) })
    };
    let number = |random: &mut Random| match random.below(4) {
        0 => word(random.pick(&INTEGERS)),
        1 => word(&random.below(300).to_string()),
        2 => word(&format!("-{}", random.below(300))),
        _ => word(&random.next().to_string()),
    };
    match random.below(12) {
        0..=3 => command.push(any_case(random, "get")),
        4..=6 => command.push(any_case(random, "set")),
        7..=9 => command.push(any_case(random, "incrby")),
        10 => {
            command.push(any_case(random, "overflow"));
            let kind = random.pick(&["wrap", "sat", "fail", "wrap", "sat", "fail", "sat", "fail", "bad"]);
            command.push(any_case(random, kind));
            return;
        }
        _ if random.one_in(6) => {
            command.push(word("nonsense"));
            return;
        }
        _ => return,
    }
    let is_get = command.last().is_some_and(|name| name.eq_ignore_ascii_case(b"get"));
    command.extend([pick(random, &TYPES, 15), pick(random, &OFFSETS, 10)]);
    if !is_get {
        command.push(number(random));
    }
}

/// A start, an end and their unit, or some of them.
fn range(random: &mut Random, command: &mut Vec<Vec<u8>>) {
    (0..random.below(3)).for_each(|_| command.push(word(random.pick(&RANGES))));
    if random.one_in(2) {
        let unit = random.pick(&["bit", "byte", "bit", "byte", "bits"]);
        command.push(any_case(random, unit));
    }
}

fn lcs(random: &mut Random, command: &mut Vec<Vec<u8>>) {
    for _ in 0..random.below(4) {
        match random.below(8) {
            0 => command.push(any_case(random, "len")),
            1..=3 => command.push(any_case(random, "idx")),
            4 => command.push(any_case(random, "withmatchlen")),
            5 | 6 => {
                let least = random.pick(&["0", "1", "2", "3", "-1", "x"]);
                command.extend([any_case(random, "minmatchlen"), word(least)]);
            }
            _ => command.push(word(random.pick(&["minmatchlen", "nonsense"]))),
        }
    }
}

/// Letters of which few are different, so that there are many common runs.
fn letters(random: &mut Random) -> Vec<u8> {
    (0..random.below(40)).map(|_| random.pick(b"abcd")).collect()
}

/// One command; inside MULTI none whose replies may differ from those of Redis with reason.
pub(super) fn command(random: &mut Random, in_multi: bool) -> Vec<Vec<u8>> {
    let mut command: Vec<Vec<u8>> = Vec::new();
    match random.below(25) {
        0..=2 => {
            let name = random.pick(&["getrange", "substr"]);
            command.extend([any_case(random, name), key(random)]);
            (0..2).for_each(|_| command.push(word(random.pick(&RANGES))));
        }
        3 | 4 => {
            let offset =
                random.pick(&["0", "1", "5", "40", "300", "-1", "x", "536870912", "9223372036854775807"]);
            command.extend([any_case(random, "setrange"), key(random), word(offset)]);
            command.push(if random.one_in(4) { Vec::new() } else { value(random) });
        }
        5 | 6 => command.extend([any_case(random, "getbit"), key(random), word(random.pick(&BITS))]),
        7..=9 => {
            let bit = random.pick(&["0", "1", "0", "1", "0", "1", "2", "-1", "x"]);
            command.extend([any_case(random, "setbit"), key(random), word(random.pick(&BITS)), word(bit)]);
        }
        10 | 11 => {
            command.extend([any_case(random, "bitcount"), key(random)]);
            range(random, &mut command);
        }
        12 | 13 => {
            let bit = random.pick(&["0", "1", "0", "1", "0", "1", "2", "x"]);
            command.extend([any_case(random, "bitpos"), key(random), word(bit)]);
            range(random, &mut command);
        }
        14..=16 => {
            let name = if random.one_in(4) { "bitfield_ro" } else { "bitfield" };
            command.extend([any_case(random, name), key(random)]);
            (0..=random.below(4)).for_each(|_| field(random, &mut command));
        }
        17 => {
            let name = random.pick(&["and", "or", "xor", "not", "and", "or", "xor", "not", "nand"]);
            command.extend([any_case(random, "bitop"), any_case(random, name), key(random), key(random)]);
            if name != "not" || random.one_in(8) {
                (0..random.below(3)).for_each(|_| command.push(key(random)));
            }
        }
        18..=20 => command.extend([any_case(random, "incrbyfloat"), key(random), float(random)]),
        21 => command.extend([any_case(random, "set"), key(random), float(random)]),
        22 => command.extend([any_case(random, "set"), key(random), letters(random)]),
        _ if in_multi => command.push(word("ping")),
        _ => {
            command.extend([any_case(random, "lcs"), key(random), key(random)]);
            lcs(random, &mut command);
        }
    }
    command
}
