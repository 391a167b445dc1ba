//! Text that somebody else wrote: cut to a stated length before it is kept, and escaped before it is shown.
//!
//! What is *graphic* goes to terminals, logs and scripts as it is. What is not is escaped: control characters, among them U+009B, which
//! begins a command to a terminal as `ESC [` does; characters that turn the direction of writing (U+202E); line and paragraph
//! separators (U+2028); characters without a width; and those that are assigned to nothing.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Longest [`excerpt`], in bytes.
const EXCERPT: usize = 120;
/// What stands in place of the rest.
const MORE: &str = "...";

/// Whether `c` has a shape of its own, or is a blank. Marks that combine with the character before them are graphic.
pub fn is_graphic(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_graphic() || c == ' ';
    }
    // The standard library knows which characters are printable, but tells only of characters that do not come first whether they are.
    let mut after_another = [b'a', 0, 0, 0, 0];
    let length = 1 + c.encode_utf8(&mut after_another[1..]).len();
    std::str::from_utf8(&after_another[..length]).is_ok_and(|text| text.escape_debug().count() == 2)
}

/// `text` for one line: what is not graphic is written as JSON does, `\u202e`. Line feeds and tabs are escaped as well.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_graphic)
}

/// The same of a whole output, whose own line feeds and tabs stay. JSON stays JSON, for its strings are the only place where it has
/// others.
pub fn output(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_graphic(c) || matches!(c, '\n' | '\t'))
}

/// A JSON text as YAML 1.2, which knows no surrogate pairs: characters beyond U+FFFF that are not graphic have eight digits.
pub fn yaml(json: &str) -> String {
    let mut yaml = String::with_capacity(json.len());
    for c in json.chars() {
        if is_graphic(c) || c == '\n' {
            yaml.push(c);
        } else if let Ok(unit) = u16::try_from(u32::from(c)) {
            let _ = write!(yaml, "\\u{unit:04x}"); // writing to a String cannot fail
        } else {
            let _ = write!(yaml, "\\U{:08x}", u32::from(c));
        }
    }
    yaml
}

fn escaped(text: &str, plain: impl Fn(char) -> bool) -> Cow<'_, str> {
    let Some(first) = text.char_indices().find_map(|(at, c)| (!plain(c)).then_some(at)) else {
        return Cow::Borrowed(text);
    };
    let mut escaped = text[..first].to_owned();
    for c in text[first..].chars() {
        if plain(c) {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}"); // writing to a String cannot fail
            }
        }
    }
    Cow::Owned(escaped)
}

/// `text`, or as much of its beginning as fits into `most` bytes, with `...` in place of the rest.
pub fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let mut end = most.saturating_sub(MORE.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(MORE);
        text.shrink_to_fit();
    }
    text
}

/// `text` as [`line()`] has it, cut to `most` bytes.
pub fn brief(text: &str, most: usize) -> String {
    cut(line(text).into_owned(), most)
}

/// The beginning of what a peer sent, in quotes and escaped, for a sentence that tells what is wrong with it: 120 bytes at most.
pub fn excerpt(text: &str) -> String {
    // No character takes less than a byte, so that no more than that can be shown.
    let mut end = text.len().min(EXCERPT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let escaped = line(&text[..end]).replace('"', "\\\"");
    let whole = end == text.len() && escaped.len() <= EXCERPT - 2;
    let shown = if whole { escaped } else { cut(escaped + MORE, EXCERPT - 2) };
    format!("\"{shown}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each steers a terminal, hides, or changes what a person reads.
    const HARMFUL: [char; 16] = [
        '\0',
        '\u{7}',
        '\u{1b}',
        '\u{7f}',
        '\u{85}',
        '\u{9b}',
        '\u{9d}',
        '\u{ad}',
        '\u{200b}',
        '\u{202e}',
        '\u{2028}',
        '\u{2029}',
        '\u{2066}',
        '\u{feff}',
        '\u{fff9}',
        '\u{e0001}',
    ];

    #[test]
    fn what_is_not_graphic_is_escaped_and_words_are_not() {
        for c in HARMFUL {
            assert!(!is_graphic(c), "{c:?}");
            let text = format!("a{c}b");
            for escaped in [line(&text), output(&text)] {
                assert!(escaped.starts_with("a\\u") && escaped.ends_with('b') && escaped.is_ascii(), "{escaped}");
            }
        }
        for words in ["plain", "Zürich", "東京", "กำลัง", "नमस्ते", "e\u{301}", "😀", "C:\\ \"q\" 'q'"]
        {
            assert_eq!((&*line(words), &*output(words)), (words, words));
        }
        assert_eq!(line("a\n\tb"), "a\\u000a\\u0009b");
        assert_eq!(output("a\n\tb"), "a\n\tb");
    }

    #[test]
    fn escaped_json_says_the_same() {
        let text: String = HARMFUL.iter().collect::<String>() + "\n\"\\ ü";
        for json in [serde_json::to_string(&[&text]), serde_json::to_string_pretty(&[&text])].map(Result::unwrap) {
            let shown = output(&json);
            assert!(shown.chars().all(|c| is_graphic(c) || c == '\n'), "{shown}");
            assert_eq!(serde_json::from_str::<Vec<String>>(&shown).unwrap(), [&*text]);
        }
    }

    #[test]
    fn what_is_cut_says_so_and_stays_text() {
        assert_eq!(cut("abcdef".into(), 6), "abcdef");
        assert_eq!(cut("abcdefg".into(), 6), "abc...");
        assert_eq!(cut("ääää".into(), 6), "ä...");
        assert_eq!(cut("abcdefg".into(), 0), "...");
    }

    #[test]
    fn an_excerpt_has_a_bound_whatever_it_is_of() {
        assert_eq!(excerpt("https://x/\u{1b}[2J"), "\"https://x/\\u001b[2J\"");
        assert_eq!(excerpt("say \"hi\""), "\"say \\\"hi\\\"\"");
        for long in
            ["a".repeat(60_000), "\u{1}".repeat(60_000), "\"".repeat(60_000), "😀".repeat(9_000), "\u{e0001}".repeat(9_000)]
        {
            let excerpt = excerpt(&long);
            assert!(excerpt.len() <= EXCERPT && excerpt.ends_with("...\""), "{excerpt}");
        }
    }
}
