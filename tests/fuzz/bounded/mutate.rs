//! Mutations of bytes and of text: few at a time, and with the words that the corpus has.

/// Makes new inputs out of a pool.
pub struct Mutator {
    state: u64,
    /// Runs of letters and digits from the corpus.
    words: Vec<Vec<u8>>,
}

/// Numbers at the edges of types, and of what is sensible, as text has them.
const NUMBERS: [&str; 10] = [
    "0",
    "-1",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "340282366920938463463374607431768211456",
];
/// The same as bytes.
const BYTES: [u8; 8] = [0, 1, 0x7f, 0x80, 0x81, 0x82, 0xfe, 0xff];
/// What structures text.
const MARKS: &[u8] = b"\n\r\t \"'\\{}[]:,;/%?&=#-.*|>!~\0";

impl Mutator {
    /// Mutations that follow from `seed`, with words of `corpus`.
    pub fn new(seed: u64, corpus: &[Vec<u8>]) -> Self {
        let mut words: Vec<Vec<u8>> = corpus
            .iter()
            .flat_map(|input| input.split(|b| !b.is_ascii_alphanumeric() && !b"_-.$".contains(b)))
            .filter(|word| (2..=40).contains(&word.len()))
            .map(<[u8]>::to_vec)
            .collect();
        words.sort();
        words.dedup();
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, words }
    }

    /// A new input of at most `longest` bytes; the newest of the pool are taken more often than others.
    pub fn mutate(&mut self, pool: &[Vec<u8>], longest: usize) -> Vec<u8> {
        let mut input = self.one_of(pool).cloned().unwrap_or_default();
        for _ in 0..=self.below(4) {
            self.change(&mut input, pool);
        }
        input.truncate(longest);
        input
    }

    /// A number below `bound`, or 0 (xorshift64*).
    fn below(&mut self, bound: usize) -> usize {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let random = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(random).unwrap_or(0).checked_rem(bound).unwrap_or(0)
    }

    fn one_of<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        // Every other time from the newest quarter.
        let from = if self.below(2) == 0 { of.len() - of.len() / 4 } else { 0 };
        let from = if from == of.len() { 0 } else { from };
        of.get(from + self.below(of.len() - from))
    }

    /// A place in the input, and a length that is more often short.
    fn piece(&mut self, length: usize) -> (usize, usize) {
        let at = self.below(length);
        let most = (length - at).min(1 << self.below(9));
        (at, at + self.below(most + 1))
    }

    fn change(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let length = input.len();
        let at = self.below(length + 1);
        let (from, to) = self.piece(length);
        match self.below(14) {
            0 if from < length => input[from] ^= 1 << self.below(8),
            1 if from < length => input[from] = BYTES[self.below(BYTES.len())],
            2 if from < length => {
                input[from] = input[from].wrapping_add(u8::try_from(self.below(32)).unwrap_or(0)).wrapping_sub(16);
            }
            3 => drop(input.drain(from..to)),
            4 => {
                let piece = input[from..to].to_vec();
                for _ in 0..=self.below(3) {
                    input.splice(at..at, piece.iter().copied());
                }
            }
            5 => {
                let byte = u8::try_from(self.below(256)).unwrap_or(0);
                input.splice(at..at, std::iter::repeat_n(byte, 1 << self.below(7)));
            }
            6 => input.insert(at, MARKS[self.below(MARKS.len())]),
            7 => {
                // A piece of another.
                let other = self.one_of(pool).cloned().unwrap_or_default();
                let (start, end) = self.piece(other.len());
                input.splice(from..to, other[start..end].iter().copied());
            }
            8 => {
                // The end of another.
                let other = self.one_of(pool).cloned().unwrap_or_default();
                let start = self.below(other.len() + 1);
                input.truncate(at);
                input.extend(&other[start..]);
            }
            9 | 10 => {
                let word = self.below(self.words.len());
                let new = self.words.get(word).cloned().unwrap_or_default();
                let old = word_at(input, at);
                input.splice(old, new);
            }
            11 => {
                let number = NUMBERS[self.below(NUMBERS.len())];
                let old = number_after(input, at);
                input.splice(old, number.bytes());
            }
            12 => {
                // A line, or what stands between commas, out or twice.
                let mark = if self.below(2) == 0 { b'\n' } else { b',' };
                let part = part_at(input, at, mark);
                let piece = if self.below(2) == 0 { vec![] } else { [&input[part.clone()], &input[part.clone()]].concat() };
                input.splice(part, piece);
            }
            13 => {
                // A length or number of 2, 4 or 8 bytes.
                let number = [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, u64::from(u32::MAX), u64::MAX][self.below(9)];
                let wide = 2 << self.below(3);
                let bytes = if self.below(2) == 0 {
                    number.to_be_bytes()[8 - wide..].to_vec()
                } else {
                    number.to_le_bytes()[..wide].to_vec()
                };
                if let Some(place) = input.get_mut(from..from + wide) {
                    place.copy_from_slice(&bytes);
                }
            }
            _ => {}
        }
    }
}

fn span(input: &[u8], at: usize, of: impl Fn(u8) -> bool) -> std::ops::Range<usize> {
    let start = input[..at].iter().rposition(|b| !of(*b)).map_or(0, |i| i + 1);
    let end = input[at..].iter().position(|b| !of(*b)).map_or(input.len(), |i| at + i);
    start..end
}

fn word_at(input: &[u8], at: usize) -> std::ops::Range<usize> {
    span(input, at, |b| b.is_ascii_alphanumeric() || b"_-.$".contains(&b))
}

fn part_at(input: &[u8], at: usize, mark: u8) -> std::ops::Range<usize> {
    let mut part = span(input, at, |b| b != mark);
    part.end = (part.end + 1).min(input.len());
    part
}

/// The next number at or after `at`; where there is none, the place itself.
fn number_after(input: &[u8], at: usize) -> std::ops::Range<usize> {
    match input[at..].iter().position(u8::is_ascii_digit) {
        Some(i) => span(input, at + i, |b| b.is_ascii_digit()),
        None => at..at,
    }
}
