use boundkey_hal::Algorithm;
use boundkey_hal::file::PrivateKey;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose, SerialNumber};

use super::*;
use boundkey_credential::certify::{Signer, Subject};

/// A CA with its own certificate.
struct Ca {
    name: &'static str,
    key: PrivateKey,
    certificate: Vec<u8>,
}

fn params(name: &str, is_ca: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(7_u64));
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    }
    params
}

impl Ca {
    fn new(name: &'static str) -> Self {
        let key = PrivateKey::generate(Algorithm::EcdsaP256).unwrap();
        let signer = Signer::new(key.public_key().unwrap(), |message: &[u8]| key.sign(message));
        let certificate = params(name, true).self_signed(&signer).unwrap().der().to_vec();
        Self { name, key, certificate }
    }

    fn public(&self) -> PublicKey {
        self.key.public_key().unwrap()
    }

    fn pin(&self) -> Pin {
        CaCertificate::read(&self.certificate).unwrap().pin()
    }

    /// A certificate for the key of another by this one.
    fn certifies(&self, other: &Ca, is_ca: bool) -> Vec<u8> {
        let signer = Signer::new(self.public(), |message: &[u8]| self.key.sign(message));
        let issuer = params(self.name, true);
        let issuer = Issuer::new(issuer, signer);
        params(other.name, is_ca).signed_by(&Subject(other.public()), &issuer).unwrap().der().to_vec()
    }

    fn signs(&self, sequence: u64, roots: &[&Ca]) -> String {
        let chains: Vec<_> = roots.iter().map(|root| vec![root.certificate.clone()]).collect();
        self.signs_chains("c", sequence, &chains)
    }

    fn signs_chains(&self, cluster: &str, sequence: u64, roots: &[Vec<Vec<u8>>]) -> String {
        let contents = Contents { cluster, sequence, roots, ssh_host: &[] };
        TrustBundle::sign(contents, &self.public(), |message| self.key.sign(message)).unwrap()
    }
}

#[test]
fn trust_goes_from_root_to_root_and_a_device_that_was_off_follows() {
    let (one, two, three) = (Ca::new("1"), Ca::new("2"), Ca::new("3"));
    let line = [
        one.signs(1, &[&one]),
        one.signs(5, &[&one, &two]),
        two.signs(6, &[&two]),
        two.signs(9, &[&two, &three]),
        three.signs(11, &[&three]),
    ];
    let first = Trusted::begin(&[one.pin()], &line[..1]).unwrap();
    assert_eq!((first.bundle.sequence(), first.anchor), (1, one.pin()));
    let last = first.follow(&line[1..]).unwrap();
    assert_eq!((last.bundle.sequence(), last.bundle.roots().len(), last.anchor), (11, 1, one.pin()));
    // Without those in between that it does not need.
    assert_eq!(first.follow(&[line[1].clone(), line[3].clone(), line[4].clone()]).unwrap(), last);
    // New devices, whichever root they pin.
    for (root, pins) in [(&one, [one.pin()]), (&two, [two.pin()]), (&three, [three.pin()])] {
        let begun = Trusted::begin(&pins, &line).unwrap();
        assert_eq!((begun.bundle, begun.anchor), (last.bundle.clone(), root.pin()));
    }
}

#[test]
fn what_no_trusted_root_signed_is_refused() {
    let (one, two, other) = (Ca::new("1"), Ca::new("2"), Ca::new("1"));
    let first = Trusted::begin(&[one.pin()], &[one.signs(1, &[&one])]).unwrap();
    let both = first.follow(&[one.signs(2, &[&one, &two])]).unwrap();
    let retired = both.follow(&[two.signs(3, &[&two])]).unwrap();
    // A stranger, with our root beside its own; one that is announced by nobody; one that was retired.
    assert_eq!(first.follow(&[other.signs(2, &[&other, &one])]), Err(TrustError::Untrusted));
    assert_eq!(first.follow(&[two.signs(2, &[&one, &two])]), Err(TrustError::Untrusted));
    assert_eq!(retired.follow(&[one.signs(4, &[&one])]), Err(TrustError::Untrusted));
    assert_eq!(Trusted::begin(&[one.pin()], &[two.signs(2, &[&one, &two])]), Err(TrustError::Untrusted));
    assert_eq!(Trusted::begin(&[one.pin()], &[]), Err(TrustError::Missing));
    // The last one has to be taken.
    assert_eq!(first.follow(&[one.signs(2, &[&one]), other.signs(3, &[&other])]), Err(TrustError::Untrusted));
    // A root that is named signs, but with the key of another.
    let forged = TrustBundle::sign(
        Contents { cluster: "c", sequence: 2, roots: &[vec![one.certificate.clone()]], ssh_host: &[] },
        &one.public(),
        |message| other.key.sign(message),
    );
    assert_eq!(first.follow(&[forged.unwrap()]), Err(TrustError::Form("its signature does not verify")));
}

#[test]
fn sequence_numbers_rise_and_the_cluster_stays() {
    let one = Ca::new("1");
    let held = Trusted::begin(&[one.pin()], &[one.signs(7, &[&one])]).unwrap();
    for came in [0, 6, 7] {
        assert_eq!(held.follow(&[one.signs(came, &[&one])]), Err(TrustError::Sequence { held: 7, came }));
    }
    assert_eq!(held.follow(&[one.signs(9, &[&one]), one.signs(9, &[&one])]), Err(TrustError::Sequence { held: 9, came: 9 }));
    let elsewhere = one.signs_chains("d", 8, &[vec![one.certificate.clone()]]);
    assert_eq!(held.follow(&[elsewhere]), Err(TrustError::Cluster("d".into())));
}

#[test]
fn a_pin_of_a_company_s_root_vouches_for_the_ca_below_it() {
    let (company, issuing, other) = (Ca::new("company"), Ca::new("issuing"), Ca::new("other"));
    let chain = vec![company.certifies(&issuing, true), company.certificate.clone()];
    let begun = Trusted::begin(&[company.pin()], &[issuing.signs_chains("c", 1, std::slice::from_ref(&chain))]).unwrap();
    assert_eq!(begun.bundle.roots()[0].key, issuing.public());
    assert_eq!(begun.bundle.certificates(), chain);
    // Its own CA is trusted from then on, and no other of the company's.
    let sibling = vec![company.certifies(&other, true), company.certificate.clone()];
    assert_eq!(begun.follow(&[other.signs_chains("c", 2, &[sibling])]), Err(TrustError::Untrusted));
    // The company's certificate for a server is no CA, and a chain that does not hold is none.
    let leaf = vec![company.certifies(&issuing, false), company.certificate.clone()];
    let loose = vec![issuing.certificate.clone(), company.certificate.clone()];
    for (chain, why) in [(leaf, "a certificate is not that of a CA"), (loose, "a certificate was not issued by the next one")] {
        let refused = Trusted::begin(&[company.pin()], &[issuing.signs_chains("c", 1, &[chain])]);
        assert_eq!(refused, Err(TrustError::Form(why)));
    }
}

#[test]
fn limits_hold() {
    let one = Ca::new("1");
    let many = vec![vec![one.certificate.clone()]; MAX_ROOTS + 1];
    let long = vec![vec![one.certificate.clone(); MAX_CHAIN + 1]];
    let huge = one.signs_chains(&"c".repeat(MAX_BUNDLE), 1, &many[..1]);
    for text in [one.signs_chains("c", 1, &many), one.signs_chains("c", 1, &long), one.signs_chains("c", 1, &[]), huge] {
        assert!(matches!(TrustBundle::open(&text), Err(TrustError::Form(_))));
    }
    let held = Trusted::begin(&[one.pin()], &[one.signs(1, &[&one])]).unwrap();
    let flood: Vec<_> = (0..=MAX_BUNDLES as u64).map(|n| one.signs(n + 2, &[&one])).collect();
    assert_eq!(held.follow(&flood), Err(TrustError::Form("there are too many")));
    held.follow(&flood[1..]).unwrap();
}

#[test]
fn every_altered_byte_is_refused() {
    let one = Ca::new("1");
    let text = one.signs(1, &[&one]);
    let bundle = TrustBundle::open(&text).unwrap();
    for at in 0..text.len() {
        let mut altered = text.clone().into_bytes();
        altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
        let altered = String::from_utf8(altered).unwrap();
        assert!(altered == text || TrustBundle::open(&altered).ok().is_none_or(|opened| opened == bundle), "altered at {at}");
    }
    // A join state and a bundle are both compact JWSs.
    let claims = Jws::sign(&Header::by_thumbprint(&one.public()), &"claims", |message| one.key.sign(message)).unwrap();
    assert_eq!(TrustBundle::open(&claims.to_compact()), Err(TrustError::Form("it is a JWS of another type")));
}
