//! Key pairs on a token: two objects, private and public half, with one `CKA_ID`.
//!
//! The id is the prefix and the key's name as ASCII; it alone says which key it is. The label says the same to people,
//! who may change it. A public half without its private half is no key: a power cut while a pair was made leaves one.

use std::borrow::ToOwned as _;
use std::vec::Vec;

use cryptoki::error::Error as Cause;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use ring::digest::{SHA256, digest};

use super::module::{Failure, failed};
use crate::{Algorithm, Error, ErrorKind, PublicKey, Signature, verify};

/// `secp256r1` as a DER object identifier (RFC 5480 section 2.1.1.1).
const P256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
/// `id-Ed25519` as a DER object identifier (RFC 8410 section 3).
const ED25519: &[u8] = &[6, 3, 0x2b, 0x65, 0x70];
/// `edwards25519` as a DER PrintableString, the other form that PKCS#11 3.0 allows.
const ED25519_NAME: &[u8] = b"\x13\x0cedwards25519";
/// Signed by every new key before anybody relies on it.
const PROBE: &[u8] = b"boundkey: does this key work?";

/// Both halves of a key on a token.
pub(super) struct Pair {
    private: ObjectHandle,
    public: ObjectHandle,
    pub(super) public_key: PublicKey,
}

/// Mechanisms that `algorithm` needs: to make a pair, and to sign.
pub(super) fn mechanisms(algorithm: Algorithm) -> [MechanismType; 2] {
    match algorithm {
        Algorithm::EcdsaP256 => [MechanismType::ECC_KEY_PAIR_GEN, MechanismType::ECDSA],
        Algorithm::Ed25519 => [MechanismType::ECC_EDWARDS_KEY_PAIR_GEN, MechanismType::EDDSA],
    }
}

/// The key `name`: exactly one private and one public half, or an error.
pub(super) fn find(session: &Session, name: &str) -> Result<Pair, Failure> {
    let private = match halves(session, ObjectClass::PRIVATE_KEY, name)?[..] {
        [] => return Err(Error::new(ErrorKind::NotFound, format_args!("the token has no key {name}")).into()),
        [one] => one,
        ref many => return Err(ambiguous(many.len(), "private", name).into()),
    };
    let public = match halves(session, ObjectClass::PUBLIC_KEY, name)?[..] {
        [] => {
            let advice = "delete it and make it anew";
            return Err(Error::new(ErrorKind::Corrupt, format_args!("the key {name} has lost its public half: {advice}")).into());
        }
        [one] => one,
        ref many => return Err(ambiguous(many.len(), "public", name).into()),
    };
    Ok(Pair { private, public, public_key: read_public(session, public, name)? })
}

fn ambiguous(n: usize, half: &str, name: &str) -> Error {
    let advice = "it must be one, so none is used: delete the others on the token";
    Error::new(ErrorKind::Corrupt, format_args!("the token has {n} {half} keys with the id {name}: {advice}"))
}

/// Every object of `class` that has the id of the key `name`.
pub(super) fn halves(session: &Session, class: ObjectClass, name: &str) -> Result<Vec<ObjectHandle>, Failure> {
    let template = [Attribute::Token(true), Attribute::Class(class), Attribute::Id(name.as_bytes().to_owned())];
    session.find_objects(&template).map_err(|e| failed(format_args!("look for the key {name}"), &e))
}

/// The ids of all private keys.
pub(super) fn ids(session: &Session) -> Result<Vec<Vec<u8>>, Failure> {
    let listing = |e: Cause| failed("list the keys", &e);
    let template = [Attribute::Token(true), Attribute::Class(ObjectClass::PRIVATE_KEY)];
    let mut ids = Vec::new();
    for object in session.find_objects(&template).map_err(listing)? {
        ids.extend(session.get_attributes(object, &[AttributeType::Id]).map_err(listing)?.into_iter().filter_map(|a| match a {
            Attribute::Id(id) => Some(id),
            _ => None,
        }));
    }
    Ok(ids)
}

/// Makes the pair `name` and returns it once it has proven that it works. What does not work is removed again.
pub(super) fn generate(session: &Session, name: &str, algorithm: Algorithm) -> Result<Pair, Failure> {
    if !halves(session, ObjectClass::PRIVATE_KEY, name)?.is_empty() {
        return Err(Error::new(ErrorKind::Exists, format_args!("the token has a key {name} already; it was left alone")).into());
    }
    for leftover in halves(session, ObjectClass::PUBLIC_KEY, name)? {
        session.destroy_object(leftover).map_err(|e| failed(format_args!("remove what is left of a key {name}"), &e))?;
    }
    let (mechanism, curve) = match algorithm {
        Algorithm::EcdsaP256 => (Mechanism::EccKeyPairGen, P256),
        Algorithm::Ed25519 => (Mechanism::EccEdwardsKeyPairGen, ED25519),
    };
    let named =
        || [Attribute::Label(name.as_bytes().to_owned()), Attribute::Id(name.as_bytes().to_owned()), Attribute::Token(true)];
    let mut public = named().to_vec();
    public.extend([Attribute::Private(false), Attribute::Verify(true), Attribute::EcParams(curve.to_owned())]);
    let mut private = named().to_vec();
    private.extend([Attribute::Private(true), Attribute::Sensitive(true), Attribute::Extractable(false), Attribute::Sign(true)]);
    // From here on something has changed, so nothing is done twice.
    let (public, private) = session
        .generate_key_pair(&mechanism, &public, &private)
        .map_err(|e| failed(format_args!("make a {algorithm} key {name}"), &e).last())?;
    confirm(session, private, name, algorithm).map_err(|failure| {
        for half in [private, public] {
            // The failure is reported; a half that cannot be removed shows as such at the next call.
            let _ = session.destroy_object(half);
        }
        failure.last()
    })
}

/// That the pair just made is the only one of its name, that it stays inside, and that it signs.
fn confirm(session: &Session, made: ObjectHandle, name: &str, algorithm: Algorithm) -> Result<Pair, Failure> {
    if halves(session, ObjectClass::PRIVATE_KEY, name)?.len() > 1 {
        let why = "another program made it at the same time; try again";
        return Err(Error::new(ErrorKind::Exists, format_args!("the key {name} is there twice: {why}")).into());
    }
    let kept = session
        .get_attributes(made, &[AttributeType::Sensitive, AttributeType::Extractable])
        .map_err(|e| failed(format_args!("look at the new key {name}"), &e))?;
    if !kept.contains(&Attribute::Sensitive(true)) || !kept.contains(&Attribute::Extractable(false)) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the token does not promise to keep private keys inside, so it is not used",
        )
        .into());
    }
    let pair = find(session, name)?;
    if pair.public_key.algorithm() != algorithm {
        return Err(
            Error::new(ErrorKind::Corrupt, format_args!("the token made {name} another kind of key than {algorithm}")).into()
        );
    }
    sign(session, &pair, PROBE)?;
    Ok(pair)
}

/// Signs `message`; the signature is known to fit the public half.
pub(super) fn sign(session: &Session, pair: &Pair, message: &[u8]) -> Result<Signature, Failure> {
    let signing = |e: Cause| failed("sign", &e);
    let signature = match pair.public_key.algorithm() {
        // Not every token hashes (CKM_ECDSA_SHA256), and none checks the digest's length: so we do both.
        Algorithm::EcdsaP256 => session.sign(&Mechanism::Ecdsa, pair.private, digest(&SHA256, message).as_ref()),
        Algorithm::Ed25519 => {
            session.sign(&Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure)), pair.private, message)
        }
    };
    let signature = <[u8; 64]>::try_from(signature.map_err(signing)?).map_err(|bytes| {
        Error::new(ErrorKind::Corrupt, format_args!("the token returned a signature of {} bytes", bytes.len()))
    })?;
    Ok(verify::checked(&pair.public_key, message, Signature::new(signature))?)
}

/// Destroys the pair. The private half goes first: what a power cut leaves then is no key.
pub(super) fn destroy(session: &Session, pair: &Pair) -> Result<(), Failure> {
    let destroying = |e: Cause| failed("delete the key", &e).last();
    session.destroy_object(pair.private).map_err(destroying)?;
    session.destroy_object(pair.public).map_err(destroying)
}

fn read_public(session: &Session, object: ObjectHandle, name: &str) -> Result<PublicKey, Failure> {
    let wanted = [AttributeType::KeyType, AttributeType::EcParams, AttributeType::EcPoint];
    let attributes =
        session.get_attributes(object, &wanted).map_err(|e| failed(format_args!("read the public half of {name}"), &e))?;
    let corrupt = |why| Error::new(ErrorKind::Corrupt, format_args!("the public half of {name} on the token is {why}"));
    let (mut kind, mut curve, mut point) = (None, None, None);
    for attribute in &attributes {
        match attribute {
            Attribute::KeyType(k) => kind = Some(*k),
            Attribute::EcParams(p) => curve = Some(&p[..]),
            Attribute::EcPoint(p) => point = Some(&p[..]),
            _ => {}
        }
    }
    let algorithm = match (kind, curve) {
        (Some(KeyType::EC), Some(P256)) => Algorithm::EcdsaP256,
        (Some(KeyType::EC_EDWARDS), Some(ED25519 | ED25519_NAME)) => Algorithm::Ed25519,
        _ => return Err(corrupt("neither P-256 nor Ed25519").into()),
    };
    let point = point.and_then(|p| unwrap_point(p, algorithm)).ok_or_else(|| corrupt("not a point of the expected length"))?;
    Ok(PublicKey::new(algorithm, point).map_err(|e| corrupt(e.0))?)
}

/// `CKA_EC_POINT` is a DER OCTET STRING; some tokens leave out the wrapping. The length tells which.
fn unwrap_point(point: &[u8], algorithm: Algorithm) -> Option<&[u8]> {
    let len = algorithm.public_key_len();
    match point {
        [4, n, inner @ ..] if usize::from(*n) == len && inner.len() == len => Some(inner),
        bare if bare.len() == len => Some(bare),
        _ => None,
    }
}
