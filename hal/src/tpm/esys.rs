//! The TPM through tpm2-tss (libtss2-esys).
//!
//! Which key a session is salted to decides what a probe on the bus can do. libtss2 takes the public half of a persistent
//! key from an answer that nothing authenticates, and does not check it against the Name in the same answer: an attacker
//! on the bus can put in another key, and the Name we compare stays right. So where a secret crosses the bus, or an
//! answer must be believed, sessions are salted to a key that was just derived from the owner seed; there libtss2 (and
//! we) recompute the Name from the public half that it uses. A signature without an auth value has no secret and is
//! verified in software, so there the persistent key, which costs no derivation, is good enough, and the
//! session authenticates without encrypting, for encryption costs libtss2 milliseconds. A counter with an auth value is
//! read and bumped so too, but for the encryption: the auth value is a key of the HMAC.

use std::str::FromStr as _;
use std::string::{String, ToString as _};
use std::vec::Vec;

use tss_esapi::attributes::{NvIndexAttributesBuilder, SessionAttributesBuilder};
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::constants::{CapabilityType, NvIndexType, PropertyTag, SessionType};
use tss_esapi::handles::{KeyHandle, NvIndexHandle, NvIndexTpmHandle, ObjectHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Auth, CapabilityData, Digest, HashScheme, HashcheckTicket, NvPublic, Private, Public, Signature, SignatureScheme,
    SymmetricDefinition,
};
use tss_esapi::traits::{Marshall as _, UnMarshall as _};
use tss_esapi::tss2_esys::{TPM2B_DIGEST, TPMT_TK_HASHCHECK};
use tss_esapi::{Context, TctiNameConf};

use super::config::Config;
use super::device::{About, Lockout, Tpm};
use super::fault::{self, Fault};
use super::key_file::{OWNER, PERSISTENT, WrappedKey};
use super::public_area::{self, Name};
use crate::ErrorKind;

/// Bit of TPMA_PERMANENT (part 2, section 8.6): in lockout.
const IN_LOCKOUT: u32 = 1 << 9;
/// First handles of the two kinds that fill a TPM.
const TRANSIENT_OBJECTS: u32 = 0x8000_0000;
const LOADED_SESSIONS: u32 = 0x0200_0000;

/// One conversation. Dropping it flushes all its objects and sessions ([`Context`] keeps the list).
pub(super) struct Esys {
    context: Context,
    pinned: Option<Name>,
    derives: bool,
    persist: bool,
}

/// A storage key that sessions can be salted to.
#[derive(Clone, Copy)]
struct StorageKey {
    handle: KeyHandle,
    name: Name,
    /// [`PERSISTENT`] or [`OWNER`], as key files say it.
    place: u32,
}

impl Esys {
    pub(super) fn open(config: &Config) -> Result<Self, Fault> {
        fault::check_node(&config.tcti)?;
        let context = Context::new(TctiNameConf::from_str(&config.tcti.to_string())?)?;
        Ok(Self { context, pinned: config.storage_key, derives: config.derive_storage_key, persist: config.persist_storage_key })
    }

    /// The storage key to trust. No way round a refused derivation: that answer could be put in as well.
    fn storage_key(&mut self) -> Result<StorageKey, Fault> {
        let key = if self.derives {
            self.derive()?
        } else {
            self.persistent()?.ok_or_else(|| {
                Fault::told(
                    ErrorKind::Denied,
                    "no storage key at 0x81000001: have the TPM's owner make one (tpm2_createprimary, tpm2_evictcontrol)",
                )
            })?
        };
        match self.pinned {
            Some(pinned) if pinned != key.name => Err(Fault::told(
                ErrorKind::Corrupt,
                "the storage key has another Name than at enrolment: TPM cleared, another TPM or a device on the bus; re-enrol if that was you",
            )),
            _ => Ok(key),
        }
    }

    /// The storage key to use where nothing depends on it: see the module's text.
    fn quick_storage_key(&mut self) -> Result<StorageKey, Fault> {
        match self.persistent()? {
            Some(key) if self.pinned.is_none_or(|pinned| pinned == key.name) => Ok(key),
            _ => self.storage_key(),
        }
    }

    fn derive(&mut self) -> Result<StorageKey, Fault> {
        let template = Public::unmarshall(&public_area::storage_template())?;
        let made = self.context.execute_with_session(Some(AuthSession::Password), |c| {
            c.create_primary(Hierarchy::Owner, template, None, None, None, None)
        });
        let made = made.map_err(owner_refused)?;
        Ok(StorageKey { handle: made.key_handle, name: Name::of(&made.out_public.marshall()?), place: OWNER })
    }

    /// The key at 0x81000001, if there is one that has a Name by SHA-256.
    fn persistent(&mut self) -> Result<Option<StorageKey>, Fault> {
        let place = TpmHandle::Persistent(PersistentTpmHandle::new(PERSISTENT)?);
        let Some(object) = found(self.context.execute_without_session(|c| c.tr_from_tpm_public(place)))? else { return Ok(None) };
        let name = Name::from_bytes(self.context.tr_get_name(object)?.value());
        Ok(name.map(|name| StorageKey { handle: object.into(), name, place: PERSISTENT }))
    }

    /// Where a new key goes: under the key at 0x81000001, which is made if there is none, else under the derived one.
    fn parent_for_new(&mut self, storage: StorageKey, session: AuthSession) -> Result<StorageKey, Fault> {
        if storage.place == PERSISTENT {
            return Ok(storage);
        }
        if let Some(key) = self.persistent()? {
            let public = self.context.execute_with_session(Some(session), |c| c.read_public(key.handle))?.0;
            return Ok(if public_area::is_fit_storage_key(&public.marshall()?) { key } else { storage });
        }
        if !self.persist {
            return Ok(storage);
        }
        let place = Persistent::Persistent(PersistentTpmHandle::new(PERSISTENT)?);
        let owner = Some(AuthSession::Password);
        let made = self.context.execute_with_session(owner, |c| c.evict_control(Provision::Owner, storage.handle.into(), place));
        match made.map_err(Fault::from) {
            Ok(object) => Ok(StorageKey { handle: object.into(), place: PERSISTENT, ..storage }),
            // Not permitted, no room, or somebody else was quicker: the derived key is the same, only slower.
            Err(fault) if fault.is_from_tpm() && !fault.is_try_again() && !fault.is_out_of_slots() => Ok(storage),
            Err(fault) => Err(fault),
        }
    }

    /// The parent that a key file names. A persistent one that is gone is derived again: the same key, if the TPM is the same.
    fn parent_of(&mut self, key: &WrappedKey, storage: StorageKey) -> Result<StorageKey, Fault> {
        if key.parent == storage.place {
            return Ok(storage);
        }
        if key.parent == PERSISTENT {
            return Ok(self.persistent()?.unwrap_or(storage));
        }
        self.derive()
    }

    /// An HMAC session that encrypts the first parameter of each command and answer where it can be.
    fn session(&mut self, salted_to: StorageKey) -> Result<AuthSession, Fault> {
        let session = self.open_session(salted_to)?;
        let (attributes, mask) = SessionAttributesBuilder::new().with_decrypt(true).with_encrypt(true).build();
        self.context.tr_sess_set_attributes(session, attributes, mask)?;
        Ok(session)
    }

    /// An HMAC session: what it is used with is authenticated, and not secret.
    fn open_session(&mut self, salted_to: StorageKey) -> Result<AuthSession, Fault> {
        let (symmetric, hash) = (SymmetricDefinition::AES_128_CFB, HashingAlgorithm::Sha256);
        let opened = self.context.execute_without_session(|c| {
            c.start_auth_session(Some(salted_to.handle), None, None, SessionType::Hmac, symmetric, hash)
        })?;
        opened.ok_or_else(|| Fault::told(ErrorKind::Other, "the TPM opened no session"))
    }

    /// The NV index `index`, if there is one.
    fn nv_index(&mut self, index: u32) -> Result<Option<NvIndexHandle>, Fault> {
        let place = TpmHandle::NvIndex(NvIndexTpmHandle::new(index)?);
        Ok(found(self.context.execute_without_session(|c| c.tr_from_tpm_public(place)))?.map(NvIndexHandle::from))
    }

    /// The NV counter `index` and a session to use it with.
    fn counter(&mut self, index: u32, auth: &[u8]) -> Result<(NvIndexHandle, AuthSession), Fault> {
        // A random auth value keys the HMAC of commands and answers, and does not cross the bus: the key that the session is
        // salted to is then of no consequence, and the owner's password, which a derivation takes, is not needed.
        let storage = if auth.is_empty() { self.storage_key()? } else { self.quick_storage_key()? };
        let session = self.session(storage)?;
        let counter = self.nv_index(index)?.ok_or_else(|| {
            Fault::told(
                ErrorKind::NotFound,
                format_args!("the TPM has no NV counter {index:#x}: never made, deleted, or TPM cleared"),
            )
        })?;
        let (public, _) = self.context.execute_with_session(Some(session), |c| c.nv_read_public(counter))?;
        // Anything but a counter can be written, backwards too.
        if public.attributes().index_type()? != NvIndexType::Counter || public.data_size() != 8 {
            return Err(Fault::told(ErrorKind::Exists, format_args!("the TPM's NV index {index:#x} is not a counter")));
        }
        if !auth.is_empty() {
            self.context.tr_set_auth(counter.into(), Auth::try_from(auth)?)?;
        }
        Ok((counter, session))
    }

    fn property(&mut self, tag: PropertyTag) -> Result<u32, Fault> {
        Ok(self.context.get_tpm_property(tag)?.unwrap_or(0))
    }

    fn handles(&mut self, first: u32) -> Result<Vec<u32>, Fault> {
        let (data, _) = self.context.execute_without_session(|c| c.get_capability(CapabilityType::Handles, first, 254))?;
        match data {
            CapabilityData::Handles(list) => Ok(list.into_inner().into_iter().map(u32::from).collect()),
            _ => Err(Fault::told(ErrorKind::Corrupt, "the TPM answered another question than it was asked")),
        }
    }
}

impl Tpm for Esys {
    fn about(&mut self) -> Result<About, Fault> {
        let mut manufacturer = printable(self.property(PropertyTag::Manufacturer)?);
        let vendor =
            [PropertyTag::VendorString1, PropertyTag::VendorString2, PropertyTag::VendorString3, PropertyTag::VendorString4];
        let mut model = String::new();
        for tag in vendor {
            model += &printable(self.property(tag)?);
        }
        // Fields of four characters each, filled with spaces.
        for word in model.split_whitespace() {
            manufacturer = std::format!("{} {word}", manufacturer.trim());
        }
        let firmware = [self.property(PropertyTag::FirmwareVersion1)?, self.property(PropertyTag::FirmwareVersion2)?];
        Ok(About { manufacturer: manufacturer.trim().to_string(), firmware })
    }

    fn storage_key_name(&mut self) -> Result<Name, Fault> {
        Ok(self.storage_key()?.name)
    }

    fn create(&mut self, auth: &[u8]) -> Result<WrappedKey, Fault> {
        let storage = self.storage_key()?;
        let session = self.session(storage)?;
        let parent = self.parent_for_new(storage, session)?;
        let template = Public::unmarshall(&public_area::signing_template())?;
        let secret = if auth.is_empty() { None } else { Some(Auth::try_from(auth)?) };
        let made =
            self.context.execute_with_session(Some(session), |c| c.create(parent.handle, template, secret, None, None, None))?;
        Ok(WrappedKey {
            parent: parent.place,
            empty_auth: auth.is_empty(),
            public: made.out_public.marshall()?,
            private: made.out_private.value().to_vec(),
        })
    }

    fn sign(&mut self, key: &WrappedKey, auth: &[u8], digest: &[u8; 32]) -> Result<[u8; 64], Fault> {
        let quick = auth.is_empty() && key.parent == PERSISTENT;
        let storage = if quick { self.quick_storage_key()? } else { self.storage_key()? };
        let session = if quick { self.open_session(storage)? } else { self.session(storage)? };
        let parent = self.parent_of(key, storage)?;
        let (private, public) = (Private::try_from(key.private.as_slice())?, Public::unmarshall(&key.public)?);
        let loaded = self.context.execute_with_session(Some(session), |c| c.load(parent.handle, private, public))?;
        if !auth.is_empty() {
            self.context.tr_set_auth(loaded.into(), Auth::try_from(auth)?)?;
        }
        let (digest, ticket) = (Digest::try_from(&digest[..])?, no_ticket()?);
        let scheme = SignatureScheme::EcDsa { hash_scheme: HashScheme::new(HashingAlgorithm::Sha256) };
        match self.context.execute_with_session(Some(session), |c| c.sign(loaded, digest, scheme, ticket))? {
            Signature::EcDsa(ecc) => joined(ecc.signature_r().value(), ecc.signature_s().value()),
            _ => Err(not_a_signature()),
        }
    }

    fn define_counter(&mut self, index: u32, auth: &[u8]) -> Result<(), Fault> {
        let storage = self.storage_key()?;
        let session = self.session(storage)?;
        // Usable without the owner's password, which may be set later; noDA, for neither power cuts nor who guesses may lock it.
        let attributes = NvIndexAttributesBuilder::new()
            .with_nv_index_type(NvIndexType::Counter)
            .with_auth_read(true)
            .with_auth_write(true)
            .with_owner_read(true)
            .with_no_da(true)
            .build()?;
        let public = NvPublic::builder()
            .with_nv_index(NvIndexTpmHandle::new(index)?)
            .with_index_name_algorithm(HashingAlgorithm::Sha256)
            .with_index_attributes(attributes)
            .with_data_area_size(8)
            .build()?;
        let secret = if auth.is_empty() { None } else { Some(Auth::try_from(auth)?) };
        let made = self.context.execute_with_session(Some(session), |c| c.nv_define_space(Provision::Owner, secret, public));
        match made.map_err(Fault::from) {
            Ok(_) | Err(Fault::Code(fault::NV_DEFINED)) => Ok(()),
            Err(fault) => Err(owner_refused(fault)),
        }
    }

    fn remove_counter(&mut self, index: u32) -> Result<(), Fault> {
        let Some(counter) = self.nv_index(index)? else { return Ok(()) };
        let storage = self.storage_key()?;
        let session = self.session(storage)?;
        let removed = self.context.execute_with_session(Some(session), |c| c.nv_undefine_space(Provision::Owner, counter));
        removed.map_err(owner_refused)
    }

    fn increment_counter(&mut self, index: u32, auth: &[u8]) -> Result<(), Fault> {
        let (counter, session) = self.counter(index, auth)?;
        let counted = self.context.execute_with_session(Some(session), |c| c.nv_increment(NvAuth::NvIndex(counter), counter));
        counted.map_err(|e| not_ours(index, e))
    }

    fn read_counter(&mut self, index: u32, auth: &[u8]) -> Result<Option<u64>, Fault> {
        let (counter, session) = self.counter(index, auth)?;
        let read = self.context.execute_with_session(Some(session), |c| c.nv_read(NvAuth::NvIndex(counter), counter, 8, 0));
        match read.map_err(Fault::from) {
            Err(Fault::Code(fault::NV_UNWRITTEN)) => Ok(None),
            Err(fault) => Err(not_ours(index, fault)),
            Ok(value) => match value.value().try_into() {
                Ok(bytes) => Ok(Some(u64::from_be_bytes(bytes))),
                Err(_) => Err(Fault::told(ErrorKind::Corrupt, format_args!("the TPM's NV counter {index:#x} is not 8 bytes"))),
            },
        }
    }

    fn lockout(&mut self) -> Result<Lockout, Fault> {
        Ok(Lockout {
            is_locked: self.property(PropertyTag::Permanent)? & IN_LOCKOUT != 0,
            failed_tries: self.property(PropertyTag::LockoutCounter)?,
            allowed_tries: self.property(PropertyTag::MaxAuthFail)?,
            forgets_one_in: self.property(PropertyTag::LockoutInterval)?,
        })
    }

    fn lockout_interval(&mut self) -> Option<u32> {
        self.property(PropertyTag::LockoutInterval).ok().filter(|seconds| *seconds > 0)
    }

    fn loaded(&mut self) -> Result<Vec<u32>, Fault> {
        let mut handles = self.handles(TRANSIENT_OBJECTS)?;
        handles.extend(self.handles(LOADED_SESSIONS)?);
        Ok(handles)
    }

    fn flush(&mut self, handles: &[u32]) {
        for handle in handles {
            let object =
                TpmHandle::try_from(*handle).and_then(|h| self.context.execute_without_session(|c| c.tr_from_tpm_public(h)));
            // One that is gone by now needs no flushing; for policy sessions tss-esapi reports an error though libtss2 did flush.
            if let Ok(object) = object {
                let _ = self.context.flush_context(object);
            }
        }
    }
}

impl From<tss_esapi::Error> for Fault {
    fn from(error: tss_esapi::Error) -> Self {
        use tss_esapi::constants::response_code::Tss2ResponseCode::{FormatOne, FormatZero, Success};
        match error {
            tss_esapi::Error::Tss2Error(FormatZero(code)) => Self::Code(code.0),
            tss_esapi::Error::Tss2Error(FormatOne(code)) => Self::Code(code.0),
            tss_esapi::Error::Tss2Error(Success) => Self::told(ErrorKind::Other, "the TPM failed with the code of success"),
            tss_esapi::Error::WrapperError(kind) => {
                Self::told(ErrorKind::Corrupt, format_args!("the TPM's answer or a key file makes no sense ({kind})"))
            }
        }
    }
}

/// `None` where the TPM says that there is nothing at the handle.
fn found(object: tss_esapi::Result<ObjectHandle>) -> Result<Option<ObjectHandle>, Fault> {
    match object.map_err(Fault::from) {
        Ok(object) => Ok(Some(object)),
        Err(Fault::Code(fault::NO_SUCH_HANDLE)) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Says of a refusal that it is the owner's, not one of a key's auth value.
fn owner_refused(fault: impl Into<Fault>) -> Fault {
    let fault = fault.into();
    if fault.is_refusal() {
        return Fault::told(
            ErrorKind::Denied,
            "the TPM's owner password is set or its owner hierarchy off: clear that, or use the storage key at 0x81000001 as it is",
        );
    }
    fault
}

/// Says of a refusal that it is a counter's, which somebody else has made.
fn not_ours(index: u32, fault: impl Into<Fault>) -> Fault {
    let fault = fault.into();
    if fault.is_refusal() || fault.is_refused_by_index() {
        let what = format_args!("the TPM's NV counter {index:#x} does not take our auth value: somebody else made it");
        return Fault::told(ErrorKind::Exists, what);
    }
    fault
}

/// The ticket for a digest that the TPM did not compute, which an unrestricted key signs.
fn no_ticket() -> Result<HashcheckTicket, Fault> {
    Ok(TPMT_TK_HASHCHECK { tag: TPM2_ST_HASHCHECK, hierarchy: TPM2_RH_NULL, digest: TPM2B_DIGEST::default() }.try_into()?)
}

/// TPMs leave out leading zeros of `r` and `s`.
fn joined(r: &[u8], s: &[u8]) -> Result<[u8; 64], Fault> {
    let (r, s) = (public_area::coordinate(r), public_area::coordinate(s));
    let (r, s) = r.zip(s).ok_or_else(not_a_signature)?;
    let mut both = [0; 64];
    both[..32].copy_from_slice(&r);
    both[32..].copy_from_slice(&s);
    Ok(both)
}

fn not_a_signature() -> Fault {
    Fault::told(ErrorKind::Corrupt, "the TPM's answer is not a P-256 signature")
}

/// Four characters that a TPM packs into a number, without what is not printable.
fn printable(packed: u32) -> String {
    packed.to_be_bytes().into_iter().map(char::from).filter(|c| c.is_ascii_graphic() || *c == ' ').collect()
}
