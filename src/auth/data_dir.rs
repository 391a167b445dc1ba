//! The data directory: what `boundkey-auth init` makes and `start` opens. Private files are 0600, the directory 0700.
//!
//! | name | what |
//! | --- | --- |
//! | `cluster.json` | cluster name and server names; written last, so that its presence means a whole `init` |
//! | `keys/` | the authority's keys: in files, or wrapped by a TPM; empty where they are in a PKCS#11 token |
//! | `challenge.key` | 32 bytes that seal challenges |
//! | `ca.json` | the CAs: certificates, phases, trust bundles |
//! | `ca.pem` | certificates of the CAs that count, for people; made anew from `ca.json` |
//! | `tls.pem` | TLS server's key and certificate |
//! | `boundkey.db` | the store |
//! | `init.json` | while `init` makes keys in a token: which one |
//! | `operator.sock` | the operator's API, while the server runs |

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use boundkey_hal::dir::{Dir, Exposed};
use boundkey_hal::{KeyStore, durable};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ca::{self, Authority, CaError, CaSet, Place, ServerIdentity, make_keys};
use super::store::{SqliteStore, StoreError};
use boundkey_api::SOCKET;
use boundkey_platform::pem;
use boundkey_platform::time::{NoRandomness, Random, Timestamp};

pub(super) const CLUSTER: &str = "cluster.json";
pub(super) const KEYS: &str = "keys";
pub(super) const CHALLENGE_KEY: &str = "challenge.key";
pub(super) const CA: &str = "ca.json";
pub(super) const CA_PEM: &str = "ca.pem";
pub(super) const TLS: &str = "tls.pem";
pub(super) const DATABASE: &str = "boundkey.db";
const LOCK: &str = "lock";
const INIT: &str = "init.json";
/// The layout that this version makes.
const FORMAT: u32 = 1;

/// A data directory.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

/// What `cluster.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    format: u32,
    /// The cluster's name.
    pub name: String,
    /// Names and addresses under which devices reach the server.
    pub server_names: Vec<String>,
    /// Where its keys are.
    #[serde(default, skip_serializing_if = "Place::is_files")]
    pub keystore: Place,
}

/// Why the data directory cannot be made or used.
#[derive(Debug)]
#[non_exhaustive]
pub enum DataDirError {
    /// The authority failed.
    Ca(CaError),
    /// `init` on what is a cluster already.
    Exists(PathBuf),
    /// `init` on what is left of a cluster.
    Incomplete(PathBuf),
    /// `init` in a token that has keys of a cluster.
    TokenInUse(String),
    /// The backup is of another cluster.
    Foreign(PathBuf),
    /// Another server runs on it.
    InUse(PathBuf),
    /// The file system failed.
    Io(PathBuf, io::Error),
    /// A file is not what it should be.
    Malformed(PathBuf, String),
    /// `start` before `init`.
    Missing(PathBuf),
    /// What is to be restored is none.
    NoBackup(PathBuf),
    /// No randomness for keys.
    NoRandomness(NoRandomness),
    /// A backup into a directory that holds something.
    NotEmpty(PathBuf),
    /// The database failed.
    Store(StoreError),
}

impl std::fmt::Display for DataDirError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ca(e) => e.fmt(f),
            Self::TokenInUse(keys) => write!(f, "the token has keys of another cluster: {keys}"),
            Self::Exists(dir) => write!(f, "{} holds a cluster already", dir.display()),
            Self::Foreign(dir) => write!(f, "{} is a backup of another cluster", dir.display()),
            Self::Incomplete(dir) => write!(f, "{} holds the database of a cluster, and no {CLUSTER}", dir.display()),
            Self::InUse(dir) => write!(f, "{} is in use by another boundkey-auth", dir.display()),
            Self::Io(path, e) => write!(f, "{}: {e}", path.display()),
            Self::Malformed(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Missing(dir) => write!(f, "{} holds no cluster", dir.display()),
            Self::NoBackup(dir) => write!(f, "{} holds no backup", dir.display()),
            Self::NoRandomness(e) => e.fmt(f),
            Self::NotEmpty(dir) => write!(f, "{} is not empty", dir.display()),
            Self::Store(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for DataDirError {}

impl DataDirError {
    /// What to do next.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Exists(_) => {
                "choose another --data-dir; to begin anew, move this one away: devices joined to it will not know the new one"
            }
            Self::Incomplete(_) => {
                "bring cluster.json back, out of a backup; to begin anew, move this directory away: devices joined to it will not know the new one"
            }
            Self::Foreign(_) => "restore a backup of this cluster: devices know its CA alone",
            Self::TokenInUse(_) => {
                "use another token; if that cluster is given up for good, delete its keys (`boundkey hsm delete-key NAME --yes`)"
            }
            Self::NoBackup(_) => "name a directory that `boundkey-auth backup` made; one that was cut off is none",
            Self::NotEmpty(_) => "name a new directory for each backup",
            Self::InUse(_) => "stop the other server first, or give this one another --data-dir",
            Self::Missing(_) => "make it with `boundkey-auth init --data-dir DIR --cluster-name NAME`",
            Self::Io(_, e) if Exposed::of(e).is_some() => {
                "run as the user that owns the data directory (runuser -u boundkey-auth -- ...); no other user may write in it, nor in \
                 a directory that it is in"
            }
            Self::Io(_, e) if e.kind() == io::ErrorKind::PermissionDenied => "run as the user that owns the data directory",
            Self::Io(_, e) if e.kind() == io::ErrorKind::StorageFull => "make room on that file system and try again",
            Self::Io(_, e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) => {
                "give --data-dir a directory; one that is missing is made by init"
            }
            Self::Ca(CaError::Names(_)) => {
                "write names such as auth.example.com, or addresses: --name of init, later server_names in cluster.json"
            }
            Self::Ca(CaError::Chain(_)) => {
                "nothing was written; have the CA above issue what is asked for, and give its whole chain, to the root"
            }
            Self::Ca(CaError::Key(e)) => ca::advice(e.kind()),
            Self::Ca(_) | Self::Malformed(..) | Self::Store(_) => {
                "restore the data directory from a backup; devices follow a restored server by themselves"
            }
            Self::Io(..) | Self::NoRandomness(_) => "mend the system's fault and try again",
        }
    }
}

impl From<CaError> for DataDirError {
    fn from(e: CaError) -> Self {
        Self::Ca(e)
    }
}

impl From<StoreError> for DataDirError {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

impl From<NoRandomness> for DataDirError {
    fn from(e: NoRandomness) -> Self {
        Self::NoRandomness(e)
    }
}

impl DataDir {
    /// The data directory at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Makes the keys of a cluster to be, at `place`; returns the request for the certificate of its CA (PKCS#10, PEM). It can be asked for
    /// again, and [`Self::init`] takes what comes back for it.
    pub fn request_ca(&self, cluster: &str, place: &Place) -> Result<String, DataDirError> {
        self.check_new()?;
        let (_lock, _, keys) = self.begin(place)?;
        make_keys(&*keys, 1).map_err(CaError::Key)?;
        Ok(Authority::request(cluster, keys)?)
    }

    /// Makes a cluster with its keys at `place`; returns its authority. One that was interrupted goes on where it stopped.
    ///
    /// Its CA is a root; or where `chain` is given (PEM), that of the certificate that came back for the request of
    /// [`Self::request_ca`]. A chain that cannot be taken leaves everything as it was.
    pub fn init(
        &self,
        cluster: &str,
        server_names: &[String],
        place: &Place,
        chain: Option<&[u8]>,
        random: &dyn Random,
        now: Timestamp,
    ) -> Result<Authority, DataDirError> {
        self.check_new()?;
        let requested = self.path(KEYS).exists() && (self.path(INIT).exists() || !place.is_shared());
        if chain.is_some() && !requested {
            return Err(CaError::Chain("no request for it was made here: `init --ca-request FILE` makes it".into()).into());
        }
        let (_lock, place, keys) = self.begin(place)?;
        let authority = if let Some(chain) = chain {
            Authority::under_root(cluster, keys, server_names, chain, random, now)?
        } else {
            make_keys(&*keys, 1).map_err(CaError::Key)?;
            Authority::certify_itself(cluster, keys, random, now)?
        };
        authority.probe().map_err(CaError::Key)?;
        self.write_authority(&authority)?;
        self.make_challenge_key(random)?;
        self.write_server(&authority.issue_server(server_names, None, now, random)?)?;
        let database = self.path(DATABASE);
        match std::fs::remove_file(&database) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(DataDirError::Io(database, e)),
            _ => {}
        }
        SqliteStore::create(&database)?;
        let cluster = Cluster { format: FORMAT, name: cluster.into(), server_names: server_names.into(), keystore: place };
        let json = serde_json::to_vec_pretty(&cluster).map_err(|e| DataDirError::Malformed(self.path(CLUSTER), e.to_string()))?;
        self.write(CLUSTER, &json)?;
        match durable::remove(&self.path(INIT)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(DataDirError::Io(self.path(INIT), e)),
            _ => Ok(authority),
        }
    }

    fn check_new(&self) -> Result<(), DataDirError> {
        if self.path(CLUSTER).exists() { Err(DataDirError::Exists(self.0.clone())) } else { Ok(()) }
    }

    /// Where `init` begins: the directory, held for it alone, and the key store.
    fn begin(&self, place: &Place) -> Result<(File, Place, Box<dyn KeyStore>), DataDirError> {
        let keys_dir = self.path(KEYS);
        durable::create_dir(&keys_dir).map_err(|e| DataDirError::Io(keys_dir.clone(), e))?;
        let lock = self.lock()?;
        // A cluster without its `cluster.json` is no cluster to make anew: its devices would be strangers.
        if !SqliteStore::is_blank(&self.path(DATABASE))? {
            return Err(DataDirError::Incomplete(self.0.clone()));
        }
        let place = place.identified(&keys_dir).map_err(CaError::Key)?;
        let keys = place.open(&keys_dir).map_err(CaError::Key)?;
        if place.is_shared() {
            self.claim(&place, &*keys)?;
        }
        Ok((lock, place, keys))
    }

    /// Keys in a token are taken up by the `init` that made them, and by no other: theirs would be another cluster's.
    fn claim(&self, place: &Place, keys: &dyn KeyStore) -> Result<(), DataDirError> {
        let path = self.path(INIT);
        let claim = serde_json::to_vec(place).map_err(|e| DataDirError::Malformed(path.clone(), e.to_string()))?;
        match std::fs::read(&path) {
            Ok(claimed) if claimed == claim => return Ok(()),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(DataDirError::Io(path, e)),
            _ => {}
        }
        let present = ca::present(keys).map_err(CaError::Key)?;
        if !present.is_empty() {
            let names: Vec<_> = present.iter().map(ToString::to_string).collect();
            return Err(DataDirError::TokenInUse(names.join(", ")));
        }
        self.write(INIT, &claim)
    }

    /// What the cluster is called and reached by.
    pub fn cluster(&self) -> Result<Cluster, DataDirError> {
        let path = self.path(CLUSTER);
        let json = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let (dir, none) = (self.0.clone(), SqliteStore::is_blank(&self.path(DATABASE))?);
                return Err(if none { DataDirError::Missing(dir) } else { DataDirError::Incomplete(dir) });
            }
            other => other.map_err(|e| DataDirError::Io(path.clone(), e))?,
        };
        let cluster: Cluster = serde_json::from_slice(&json).map_err(|e| DataDirError::Malformed(path.clone(), e.to_string()))?;
        if cluster.format != FORMAT {
            let why = format!("format {} is of another version; this one knows {FORMAT}", cluster.format);
            return Err(DataDirError::Malformed(path, why));
        }
        Ok(cluster)
    }

    /// The authority of `cluster`. That of a cluster made before there was a `ca.json` has the one CA of `ca.pem`, and is to be written
    /// by [`Self::write_authority`].
    pub fn authority(&self, cluster: &Cluster, now: Timestamp) -> Result<Authority, DataDirError> {
        let keys = cluster.keystore.open(&self.path(KEYS)).map_err(CaError::Key)?;
        let path = self.path(CA);
        match std::fs::read(&path) {
            Ok(json) => {
                let set = CaSet::read(&json).map_err(|e| DataDirError::Malformed(path, e.to_string()))?;
                Ok(Authority::new(&cluster.name, keys, set)?)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let path = self.path(CA_PEM);
                let certificate =
                    CertificateDer::from_pem_file(&path).map_err(|e| DataDirError::Malformed(path, e.to_string()))?;
                Ok(Authority::first(&cluster.name, keys, vec![certificate.to_vec()], now)?)
            }
            Err(e) => Err(DataDirError::Io(path, e)),
        }
    }

    /// Writes down the CAs, where they are others than those on disk.
    pub fn write_authority(&self, authority: &Authority) -> Result<(), DataDirError> {
        self.write_changed(CA, &authority.set().to_json()?)?;
        self.write_changed(CA_PEM, authority.certificates().as_bytes())
    }

    fn write_changed(&self, name: &str, content: &[u8]) -> Result<(), DataDirError> {
        if std::fs::read(self.path(name)).is_ok_and(|present| present == content) { Ok(()) } else { self.write(name, content) }
    }

    /// The secret that seals challenges.
    pub fn challenge_key(&self) -> Result<Zeroizing<[u8; 32]>, DataDirError> {
        let path = self.path(CHALLENGE_KEY);
        let bytes = Zeroizing::new(std::fs::read(&path).map_err(|e| DataDirError::Io(path.clone(), e))?);
        let key = <[u8; 32]>::try_from(&bytes[..]).map_err(|_| DataDirError::Malformed(path, "not 32 bytes long".into()))?;
        Ok(Zeroizing::new(key))
    }

    /// Makes a new secret that seals challenges: none of before holds any more.
    pub(super) fn make_challenge_key(&self, random: &dyn Random) -> Result<(), DataDirError> {
        let mut secret = Zeroizing::new([0; 32]);
        random.fill(&mut *secret)?;
        self.write(CHALLENGE_KEY, &*secret)
    }

    /// The TLS server's certificate and key.
    pub fn server(&self) -> Result<ServerIdentity, DataDirError> {
        let path = self.path(TLS);
        let malformed = |e: rustls::pki_types::pem::Error| DataDirError::Malformed(path.clone(), e.to_string());
        let certificate = CertificateDer::from_pem_file(&path).map_err(malformed)?;
        let key = PrivateKeyDer::from_pem_file(&path).map_err(malformed)?;
        Ok(ServerIdentity { certificate: certificate.to_vec(), key: key.secret_der().to_vec().into() })
    }

    /// Replaces the TLS server's certificate and key.
    pub fn write_server(&self, server: &ServerIdentity) -> Result<(), DataDirError> {
        let text = Zeroizing::new(pem::private_key(&server.key) + &pem::certificate(&server.certificate));
        self.write(TLS, text.as_bytes())
    }

    /// The store.
    pub fn store(&self) -> Result<SqliteStore, DataDirError> {
        Ok(SqliteStore::open(&self.path(DATABASE))?)
    }

    /// Where the operator's socket is.
    pub fn socket(&self) -> PathBuf {
        self.path(SOCKET)
    }

    /// Opens it; fails where others than root and this process's user may write in it.
    pub(super) fn open(&self) -> Result<Dir, DataDirError> {
        Dir::open(&self.0).map_err(|e| DataDirError::Io(self.0.clone(), e))
    }

    /// Keeps every other server away from this directory while the result lives.
    pub fn lock(&self) -> Result<File, DataDirError> {
        let path = self.path(LOCK);
        let io_error = |e| DataDirError::Io(path.clone(), e);
        // Another user who may write here could put other keys and records in place.
        let file = self.open()?.write_or_make(LOCK, durable::PRIVATE_FILE).map_err(io_error)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => Err(DataDirError::InUse(self.0.clone())),
            Err(std::fs::TryLockError::Error(e)) => Err(io_error(e)),
        }
    }

    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), DataDirError> {
        let path = self.path(name);
        durable::replace(&path, content, durable::PRIVATE_FILE).map_err(|e| DataDirError::Io(path, e))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.0).join(name)
    }
}
