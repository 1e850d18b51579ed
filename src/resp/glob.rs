//! Redis's glob patterns: `*`, `?`, `[abc]`, `[^a-z]`, `\x`.
//!
//! Going back happens to the last `*` only, so that a hostile pattern costs pattern times text and not more.

/// Whether all of `text` matches the pattern.
pub(super) fn matches(pattern: &[u8], text: &[u8], ignore_case: bool) -> bool {
    let fold = |byte: u8| if ignore_case { byte.to_ascii_lowercase() } else { byte };
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        if p == pattern.len() {
            if t == text.len() {
                return true;
            }
        } else if pattern[p] == b'*' {
            p += 1;
            star = Some((p, t));
            continue;
        } else if t < text.len()
            && let Some(next) = match_one(pattern, p, text[t], &fold)
        {
            p = next;
            t += 1;
            continue;
        }
        match star {
            Some((after, from)) if from < text.len() => {
                p = after;
                t = from + 1;
                star = Some((after, t));
            }
            _ => return false,
        }
    }
}

/// Matches one byte against the pattern's item at `at`; returns where the next item begins.
fn match_one(pattern: &[u8], at: usize, byte: u8, fold: &impl Fn(u8) -> u8) -> Option<usize> {
    match pattern[at] {
        b'?' => Some(at + 1),
        b'[' => {
            let (matched, next) = match_class(pattern, at + 1, byte, fold);
            matched.then_some(next)
        }
        b'\\' if at + 1 < pattern.len() => (fold(pattern[at + 1]) == fold(byte)).then_some(at + 2),
        literal => (fold(literal) == fold(byte)).then_some(at + 1),
    }
}

/// A class that is not closed ends with the pattern.
fn match_class(pattern: &[u8], mut at: usize, byte: u8, fold: &impl Fn(u8) -> u8) -> (bool, usize) {
    let negated = pattern.get(at) == Some(&b'^');
    if negated {
        at += 1;
    }
    let mut matched = false;
    while at < pattern.len() && pattern[at] != b']' {
        if pattern[at] == b'\\' && at + 1 < pattern.len() {
            matched |= pattern[at + 1] == byte;
            at += 2;
        } else if at + 2 < pattern.len() && pattern[at + 1] == b'-' {
            let (a, b) = (fold(pattern[at]), fold(pattern[at + 2]));
            matched |= (a.min(b)..=a.max(b)).contains(&fold(byte));
            at += 3;
        } else {
            matched |= fold(pattern[at]) == fold(byte);
            at += 1;
        }
    }
    (matched != negated, (at + 1).min(pattern.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        let yes: [(&str, &str); 12] = [
            ("*", ""),
            ("h?llo", "hello"),
            ("h*llo", "heeeello"),
            ("h[ae]llo", "hallo"),
            ("h[^e]llo", "hbllo"),
            ("h[a-b]llo", "hbllo"),
            ("h[b-a]llo", "hallo"),
            ("a*b*c", "aXbXbXc"),
            ("\\*x", "*x"),
            ("[a", "a"),
            ("***", "abc"),
            ("a\\", "a\\"),
        ];
        for (pattern, text) in yes {
            assert!(matches(pattern.as_bytes(), text.as_bytes(), false), "{pattern} {text}");
        }
        for (pattern, text) in [("", "a"), ("h[^e]llo", "hello"), ("a*b", "acd"), ("?", ""), ("A", "a")] {
            assert!(!matches(pattern.as_bytes(), text.as_bytes(), false), "{pattern} {text}");
        }
        assert!(matches(b"APPEND*", b"appendonly", true));
    }

    #[test]
    fn many_stars_stay_cheap() {
        let pattern = b"*a".repeat(1000);
        assert!(!matches(&pattern, &[b'b'; 1000], false));
    }
}
