//! Words that commands are made of, from a seed that is printed first.

/// xorshift64*: enough to pick commands.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn from_environment(default: u64) -> Self {
        let seed = std::env::var("SLOTSTREAM_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            u64::from(now.subsec_nanos()) * 2 + default
        });
        eprintln!("seed {seed}; replay: SLOTSTREAM_TEST_SEED={seed} cargo test --test it resp_differential");
        Self(seed | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn one_in(&mut self, chance: u64) -> bool {
        self.below(chance) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).expect("an index")]
    }
}

pub(super) const KEYS: [&str; 10] =
    ["a", "b", "c", "counter", "counter2", "key:1", "key:2", "text", "\u{e9}", "with blank"];

pub(super) const INTEGERS: [&str; 20] = [
    "0",
    "1",
    "-1",
    "5",
    "100",
    "-100",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775806",
    "9223372036854775808",
    "-0",
    "+1",
    "01",
    " 1",
    "1 ",
    "",
    "abc",
    "1.5",
    "922337203685477580",
    "99999999999999999999",
];

pub(super) fn word(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

pub(super) fn key(random: &mut Random) -> Vec<u8> {
    word(random.pick(&KEYS))
}

pub(super) fn value(random: &mut Random) -> Vec<u8> {
    match random.below(6) {
        0 | 1 => word(random.pick(&INTEGERS)),
        2 => (0..random.below(40)).map(|_| random.next().to_le_bytes()[0]).collect(),
        3 => {
            let len_max = if random.one_in(10) { 3000 } else { 100 };
            let len = random.below(len_max);
            vec![b'x'; usize::try_from(len).expect("a length")]
        }
        4 => word("hello\r\nworld"),
        _ => word("value"),
    }
}

/// A relative time: no two are near each other, so that GT and LT do not hang on a millisecond.
pub(super) fn time(random: &mut Random, seconds: bool) -> Vec<u8> {
    match random.below(12) {
        0 => word(random.pick(&INTEGERS[6..])),
        1 => word(random.pick(&[
            "0",
            "-1",
            "-1000",
            "9223372036854775",
            "9223372036854776",
            "-9223372036854775",
            "-9223372036854776",
        ])),
        _ => {
            let time = 1_000 + random.below(1_000_000_000);
            word(&(if seconds { time } else { time * 1000 }).to_string())
        }
    }
}

/// An absolute time, far ahead or long ago.
pub(super) fn moment(random: &mut Random, seconds: bool) -> Vec<u8> {
    match random.below(8) {
        0 => word(random.pick(&INTEGERS[6..])),
        1 => word(random.pick(&["1", "0", "-5", "1000"])),
        _ => {
            let time = 4_000_000_000 + random.below(1_000_000_000);
            word(&(if seconds { time } else { time * 1000 }).to_string())
        }
    }
}

pub(super) fn any_case(random: &mut Random, text: &str) -> Vec<u8> {
    if random.one_in(4) { word(&text.to_uppercase()) } else { word(text) }
}

pub(super) fn expiry_options(random: &mut Random, command: &mut Vec<Vec<u8>>) {
    match random.below(6) {
        0 => command.extend([any_case(random, "ex"), time(random, true)]),
        1 => command.extend([any_case(random, "px"), time(random, false)]),
        2 => command.extend([any_case(random, "exat"), moment(random, true)]),
        3 => command.extend([any_case(random, "pxat"), moment(random, false)]),
        4 => command.push(any_case(random, "ex")),
        _ => {}
    }
}
