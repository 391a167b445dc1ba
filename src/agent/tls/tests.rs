//! Handshakes in memory, with certificates made for each case.

use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ClientConnection, HandshakeKind, ServerConfig, ServerConnection};

use super::*;
use boundkey_join::endpoint::AUTH_ENDPOINT;
use boundkey_platform::time::Clock;

type Ca = CertifiedIssuer<'static, KeyPair>;

const DAY: u64 = 86_400;
/// `serverAuth` and `clientAuth`, DER.
const SERVER: &[u8] = b"\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01";
const CLIENT: &[u8] = b"\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02";
/// `anyExtendedKeyUsage`, DER.
const ANY: &[u8] = b"\x06\x04\x55\x1d\x25\x00";

/// A system clock that a test sets, in seconds since 1970.
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// A device, and the CA that it trusts.
struct Device {
    ca: Ca,
    hand: Arc<Hand>,
    trust: Arc<Trust>,
    config: Arc<ClientConfig>,
}

impl Device {
    /// Its clock is right: it shows 200 days after it was last told the time.
    fn new() -> Self {
        let ca = ca("CA", None);
        let hand = Arc::new(Hand(AtomicU64::new(at(200))));
        let clock = Arc::new(DeviceClock::new(hand.clone(), Timestamp::from_secs(at(0))));
        let spki = rcgen::PublicKeyData::subject_public_key_info(ca.key());
        let trust = Trust::new(Roots::Pins(vec![sha256(&spki)]), clock);
        let config = trust.client_config().expect("a configuration");
        Self { ca, hand, trust, config }
    }

    /// One connection to `server`, from handshake to first ticket.
    fn connect(&self, server: &Arc<ServerConfig>) -> Result<HandshakeKind, Error> {
        let name = ServerName::try_from("auth.test").expect("a name");
        let mut client = ClientConnection::new(self.config.clone(), name)?;
        let mut server = ServerConnection::new(server.clone())?;
        for _ in 0..4 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).expect("memory");
            }
            let mut read = wire.as_slice();
            while !read.is_empty() {
                server.read_tls(&mut read).expect("memory");
            }
            server.process_new_packets()?;
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).expect("memory");
            }
            let mut read = wire.as_slice();
            while !read.is_empty() {
                client.read_tls(&mut read).expect("memory");
            }
            client.process_new_packets()?;
        }
        Ok(client.handshake_kind().expect("a handshake"))
    }
}

/// Seconds since 1970, so many days after this program was built.
fn at(days: u64) -> u64 {
    boundkey_platform::time::build_time().secs() + days * DAY
}

fn ca(name: &str, issuer: Option<&Ca>) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    match issuer {
        Some(issuer) => CertifiedIssuer::signed_by(params, key, issuer),
        None => CertifiedIssuer::self_signed(params, key),
    }
    .expect("a CA")
}

/// A server whose certificate has these extended key usages, lasts until `end` (days after the build), and is sent with `chain`.
fn server(issuer: &Ca, usages: &[&[u8]], end: u64, chain: &[&Ca]) -> Arc<ServerConfig> {
    let mut params = CertificateParams::new(["auth.test".to_owned()]).expect("a name");
    params.distinguished_name.push(DnType::CommonName, "boundkey-auth");
    let list = usages.concat();
    if !list.is_empty() {
        let length = u8::try_from(list.len()).expect("short");
        params.custom_extensions =
            vec![CustomExtension::from_oid_content(&[2, 5, 29, 37], [&[0x30, length], &list[..]].concat())];
    }
    params.not_before = Timestamp::from_secs(at(0) - DAY).to_system().into();
    params.not_after = Timestamp::from_secs(at(end)).to_system().into();
    let key = KeyPair::generate().expect("a key");
    let leaf = params.signed_by(&key, issuer).expect("a certificate").der().clone();
    let chain = std::iter::once(leaf).chain(chain.iter().map(|ca| ca.der().clone())).collect();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .expect("a key that fits");
    Arc::new(config)
}

fn marked() -> Vec<u8> {
    let length = u8::try_from(AUTH_ENDPOINT.len()).expect("short");
    [&[0x06, length], AUTH_ENDPOINT].concat()
}

#[test]
fn only_a_certificate_with_both_usages_is_an_auth_endpoints() {
    let (device, marked) = (Device::new(), marked());
    let judge = |usages: &[&[u8]]| device.connect(&server(&device.ca, usages, 300, &[&device.ca]));
    assert_eq!(judge(&[SERVER, &marked]), Ok(HandshakeKind::Full));
    assert_eq!(judge(&[CLIENT, &marked, SERVER]), Ok(HandshakeKind::Full));
    for usages in [&[][..], &[SERVER], &[SERVER, CLIENT], &[SERVER, ANY], &[SERVER, &marked[..marked.len() - 1], &[0]]] {
        let refused = judge(usages).expect_err("refused");
        let Error::InvalidCertificate(CertificateError::Other(other)) = &refused else { panic!("{refused}") };
        let subject = "boundkey-auth".to_owned();
        assert_eq!(other.0.downcast_ref::<NotAuthEndpoint>(), Some(&NotAuthEndpoint { subject }));
        assert_eq!(device.trust.presented(), None);
    }
    for usages in [&[&marked[..]][..], &[CLIENT, &marked], &[ANY]] {
        assert!(matches!(judge(usages), Err(Error::InvalidCertificate(_))));
    }
}

/// A CA of a company that signed an issuing CA need not know of the mark.
#[test]
fn no_certificate_between_has_to_carry_the_mark() {
    let device = Device::new();
    let issuing = ca("issuing CA", Some(&device.ca));
    let chain = [&issuing, &device.ca];
    assert_eq!(device.connect(&server(&issuing, &[SERVER, &marked()], 300, &chain)), Ok(HandshakeKind::Full));
    assert!(device.connect(&server(&issuing, &[SERVER], 300, &chain)).is_err());
}

/// Resumption takes no look at the certificate: its end, and another certificate, would go unseen.
#[test]
fn a_session_is_resumed_only_while_its_certificate_would_be_taken_again() {
    let (device, marked) = (Device::new(), marked());
    let first = server(&device.ca, &[SERVER, &marked], 201, &[&device.ca]);
    assert_eq!(device.connect(&first), Ok(HandshakeKind::Full));
    assert_eq!(device.connect(&first), Ok(HandshakeKind::Resumed));
    let second = server(&device.ca, &[SERVER, &marked], 300, &[&device.ca]);
    assert_eq!(device.connect(&second), Ok(HandshakeKind::Full));
    assert_eq!(device.connect(&first), Ok(HandshakeKind::Full), "another certificate was judged since");
    assert!(device.connect(&server(&device.ca, &[SERVER], 300, &[&device.ca])).is_err());
    assert_eq!(device.connect(&first), Ok(HandshakeKind::Full), "another certificate was refused since");
    assert_eq!(device.connect(&first), Ok(HandshakeKind::Resumed));
    // The certificate ends while the agent runs: it is judged again, and doubtful.
    device.hand.0.store(at(202), Ordering::Relaxed);
    assert!(device.connect(&first).is_err());
    device.trust.expect_time(true);
    for _ in 0..2 {
        assert_eq!(device.connect(&first), Ok(HandshakeKind::Full));
        assert!(device.trust.presented().is_some_and(|presented| presented.is_doubtful));
    }
}

#[test]
fn a_doubtful_certificate_carries_nothing_but_the_question_of_time() {
    let (device, marked) = (Device::new(), marked());
    let [doubtful, other, lasting] = [100, 101, 300].map(|end| server(&device.ca, &[SERVER, &marked], end, &[&device.ca]));
    let time = |days| Timestamp::from_secs(at(days));
    let asks = |asks, server| {
        device.trust.expect_time(asks);
        device.connect(server).is_ok()
    };
    assert!(!asks(false, &doubtful), "the join itself");
    assert!(asks(true, &doubtful));
    assert_eq!(device.trust.note_server_time(time(101)), Err(time(100)), "by the server's own clock too");
    assert!(!asks(false, &doubtful), "not vouched for");
    assert!(asks(true, &doubtful));
    assert_eq!(device.trust.note_server_time(time(99)), Ok(time(99)));
    assert!(asks(false, &doubtful), "the one that was asked");
    assert!(!asks(false, &other), "another one on the next connection");
    assert!(asks(false, &lasting), "one without doubt");
    assert_eq!(device.trust.note_server_time(time(400)), Ok(time(300)), "a clock is believed up to the end of the certificate");
    assert_eq!(device.trust.clock.floor(), time(300));
    assert!(!asks(true, &doubtful), "it has expired at the time known by now");
}
