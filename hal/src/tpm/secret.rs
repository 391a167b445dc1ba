//! The auth value of a key: read when it is needed, wiped when it was used.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::string::String;
use std::vec::Vec;

use zeroize::Zeroizing;

use crate::{Error, ErrorKind, durable};

/// A TPM takes auth values up to the size of the key's name digest (TPM 2.0 part 1, section 19.6.4.2).
pub(super) const MAX_AUTH: usize = 32;

/// Where an auth value comes from. It is never part of a configuration file or command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthSource {
    /// A systemd credential: the file of this name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// An environment variable.
    Environment(String),
    /// A file. One line feed at its end is not part of the value.
    File(PathBuf),
}

impl AuthSource {
    /// The auth value.
    pub(super) fn read(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        match self {
            Self::Credential(name) => {
                let dir = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                    Error::new(
                        ErrorKind::Unreachable,
                        format_args!("CREDENTIALS_DIRECTORY is not set: the unit has no LoadCredential={name}:..."),
                    )
                })?;
                if name.is_empty() || name.contains('/') {
                    return Err(Error::new(ErrorKind::Unsupported, format_args!("{name:?} is not the name of a credential")));
                }
                from_file(&Path::new(&dir).join(name))
            }
            Self::Environment(name) => {
                let value = std::env::var(name).map(Zeroizing::new).map_err(|_| {
                    Error::new(ErrorKind::Unreachable, format_args!("no auth value in the environment variable {name}"))
                })?;
                fit(value.as_bytes(), name)
            }
            Self::File(path) => from_file(path),
        }
    }
}

fn from_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    // Room for a value too long by one and its line feed, so that nothing is cut silently and nothing moves while it is read.
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_AUTH + 3));
    let read = std::fs::File::open(path).and_then(|f| f.take(MAX_AUTH as u64 + 2).read_to_end(&mut content));
    read.map_err(|e| match e.kind() {
        // An absent auth value must not read as an absent key.
        io::ErrorKind::NotFound => Error::new(ErrorKind::Unreachable, format_args!("no auth value at {}", path.display())),
        _ => durable::explain(path, &e),
    })?;
    fit(content.strip_suffix(b"\n").unwrap_or(&content), &path.display())
}

fn fit(value: &[u8], place: &dyn core::fmt::Display) -> Result<Zeroizing<Vec<u8>>, Error> {
    let refuse = |why| Err(Error::new(ErrorKind::Unsupported, format_args!("the auth value in {place} {why}")));
    match value {
        [] => refuse("is empty"),
        [.., 0] => refuse("ends in a zero byte, which a TPM drops"),
        _ if value.len() > MAX_AUTH => refuse("is longer than the 32 bytes a TPM takes"),
        _ => Ok(Zeroizing::new(value.to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_feed_is_not_part_of_the_value() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let source = AuthSource::File(file.path().to_path_buf());
        for (content, value) in [("secret\n", "secret"), ("secret", "secret"), (" s \n\n", " s \n")] {
            std::fs::write(file.path(), content).expect("write");
            assert_eq!(source.read().expect("read").as_slice(), value.as_bytes());
        }
    }

    #[test]
    fn what_a_tpm_would_change_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let source = AuthSource::File(file.path().to_path_buf());
        let longest = [b'x'; 32];
        std::fs::write(file.path(), [&longest[..], b"\n"].concat()).expect("write");
        assert_eq!(source.read().expect("read").as_slice(), longest);
        for content in [&b""[..], b"\n", b"pin\0", &[b'x'; 33], &[b'x'; 4096]] {
            std::fs::write(file.path(), content).expect("write");
            assert_eq!(source.read().expect_err("refused").kind(), ErrorKind::Unsupported);
        }
    }

    #[test]
    fn an_absent_value_is_not_an_absent_key() {
        for source in [AuthSource::File("/nonexistent/auth".into()), AuthSource::Environment("BOUNDKEY_NO_SUCH_VARIABLE".into())]
        {
            assert_eq!(source.read().expect_err("absent").kind(), ErrorKind::Unreachable);
        }
    }
}
