//! Patterns: placeholders for the one who asks, and `*`.

const BOT: &str = "{{bot.name}}";
const TOKEN: &str = "{{token.name}}";
const INSTANCE: &str = "{{instance.id}}";

/// Who asks for names.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The bot's name; a host has none.
    pub bot: Option<&'a str>,
    /// The token's name.
    pub token: &'a str,
    /// The instance's id.
    pub instance: &'a str,
}

/// The pattern for `subject`. `None`, so that it allows nothing: the pattern names the bot, and a host has none; or what a placeholder
/// stands for is empty, or has a character that means something in a pattern or delimits parts of a name.
pub(super) fn fill_in(pattern: &str, subject: Subject<'_>) -> Option<String> {
    let values = [(BOT, subject.bot), (TOKEN, Some(subject.token)), (INSTANCE, Some(subject.instance))];
    let mut filled = pattern.to_owned();
    for (placeholder, value) in values {
        if filled.contains(placeholder) {
            filled = filled.replace(placeholder, value.filter(|value| !value.is_empty() && value.bytes().all(is_unreserved))?);
        }
    }
    Some(filled)
}

/// Says what is wrong with a pattern of any kind; else gives a name that it allows.
pub(super) fn check(pattern: &str) -> Result<String, String> {
    let filled = [BOT, TOKEN, INSTANCE].iter().fold(pattern.to_owned(), |text, placeholder| text.replace(placeholder, "a"));
    if filled.contains("{{") || filled.contains("}}") {
        return Err(format!("it has a placeholder other than {BOT}, {TOKEN}, {INSTANCE}"));
    }
    if filled.contains("**") {
        return Err("two stars in a row allow no more than one: a star never stands for a delimiter".into());
    }
    Ok(filled.replace('*', "a"))
}

/// Whether `name` fits `pattern`, in which each `*` stands for one or more of the bytes that `any` takes.
///
/// It takes time in proportion to the product of the two lengths, however many stars there are: the name is a device's choice.
pub(super) fn fits(pattern: &str, name: &str, any: fn(u8) -> bool) -> bool {
    // At index n: whether the first n bytes of the name fit the pattern so far.
    let mut so_far = vec![false; name.len() + 1];
    so_far[0] = true;
    for wanted in pattern.bytes() {
        let mut next = vec![false; name.len() + 1];
        for (at, byte) in name.bytes().enumerate() {
            next[at + 1] = if wanted == b'*' { (so_far[at] || next[at]) && any(byte) } else { so_far[at] && byte == wanted };
        }
        so_far = next;
    }
    so_far[name.len()]
}

/// Unreserved characters (RFC 3986 section 2.3): those that delimit nothing in any URI.
pub(super) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Characters within a label of a host name.
pub(super) fn is_of_label(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}
