//! Requests to the auth endpoint: HTTPS through ureq, with our own trust. Bounded in size and time.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, StreamOwned};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, TcpConnector,
    Transport as Socket, TransportAdapter,
};

use super::error::AgentError;
use super::proxy;
use super::tls::{NotAuthEndpoint, PinMismatch, Presented, Roots, Trust};
use boundkey_join::message::{CHALLENGE_PATH, MAX_ANSWER, PING_PATH};
use boundkey_join::{MAX_DETAIL, PROBLEM_JSON, Problem};
use boundkey_platform::text;
use boundkey_platform::time::Timestamp;

/// Time to connect.
const CONNECT: Duration = Duration::from_secs(15);
/// Time for one request and its answer.
const REQUEST: Duration = Duration::from_secs(45);
/// Each of the four buffers of a connection: what is plain and what is encrypted, each way. Messages that are longer go through in pieces.
const BUFFER: usize = 16 * 1024;
/// Longest head of an answer. Less than [`BUFFER`], in which it has to be as a whole.
const HEAD: usize = 8 * 1024;

/// Media type of this protocol's messages.
pub const JSON: &str = "application/json";

/// Carries requests to the auth endpoint and answers back.
pub trait Transport {
    /// Posts JSON to a path; returns the answer's body.
    fn post(&mut self, path: &str, body: &[u8]) -> Result<Vec<u8>, TransportError>;

    /// Gets a path; returns the body, at most `limit` bytes of type `kind`.
    fn get(&mut self, path: &str, kind: &str, limit: usize) -> Result<Vec<u8>, TransportError>;

    /// The certificate that the server showed, see [`Trust::presented`].
    fn presented(&self) -> Option<Presented>;

    /// Whether what the server showed holds under these roots too, see [`Trust::holds_under`].
    fn holds_under(&self, roots: &Roots) -> bool;

    /// Takes note of the time that the server told, see [`Trust::note_server_time`].
    fn note_server_time(&mut self, time: Timestamp) -> Result<Timestamp, Timestamp>;
}

/// Why there is no answer, or not the one wanted.
#[derive(Debug)]
#[non_exhaustive]
pub enum TransportError {
    /// The answer is longer than this many bytes: longer than any of this protocol.
    AnswerTooLong(u64),
    /// The server's certificate expired at that time.
    CertificateExpired(Timestamp),
    /// The server's certificate is for other names.
    CertificateName(String),
    /// The certificate at that host and port is of the trusted CA, but not an auth endpoint's; the common name of its subject.
    CertificatePurpose(String, String),
    /// The connection ended before the answer did.
    CutShort,
    /// Something answered that is not an auth endpoint of this protocol version.
    NotBoundkey(String),
    /// The server's CA is not the one trusted.
    NotTrusted(String),
    /// No connection by way of the proxy that the environment names.
    Proxy {
        /// Its host and port.
        proxy: String,
        /// What went wrong.
        why: String,
    },
    /// The server's revocation list cannot be used.
    RevocationList(&'static str),
    /// The server refused.
    Refused(Problem),
    /// TLS failed otherwise.
    Tls(String),
    /// The server did not answer in time.
    TimedOut,
    /// No connection.
    Unreachable(String),
}

impl std::fmt::Display for TransportError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AnswerTooLong(limit) => write!(f, "the answer is longer than {limit} bytes"),
            Self::CertificateExpired(end) => write!(f, "the server's certificate expired at {end}"),
            Self::CertificateName(name) => write!(f, "the server's certificate is not for {name}"),
            Self::CertificatePurpose(authority, subject) => {
                write!(f, "the certificate at {authority} is not an auth endpoint's, but that of {subject:?} under the same CA")
            }
            Self::CutShort => f.write_str("the connection ended before the whole answer had come"),
            Self::NotBoundkey(what) => write!(f, "what answers is not an auth endpoint of this version: {what}"),
            Self::NotTrusted(why) => write!(f, "the server is not trusted: {why}"),
            Self::Proxy { proxy, why } => write!(f, "no connection through proxy {proxy}: {why}"),
            Self::RevocationList(why) => write!(f, "revocation list: {why}"),
            Self::Refused(problem) => problem.fmt(f),
            Self::Tls(why) => write!(f, "TLS: {why}"),
            Self::TimedOut => f.write_str("the server did not answer in time"),
            Self::Unreachable(why) => write!(f, "no connection: {why}"),
        }
    }
}

impl std::error::Error for TransportError {}

/// HTTPS. Keeps its connection until [`Https::close`], so that the requests of a join share one.
pub struct Https {
    config: ureq::config::Config,
    tls: TlsConnector,
    /// Holds the connection.
    agent: Option<ureq::Agent>,
    /// Host and port of the server.
    authority: String,
    host: String,
    /// Host and port of the proxy on the way, if there is one.
    proxy: Option<String>,
    trust: Arc<Trust>,
}

impl Https {
    /// Requests to `https://AUTHORITY`, through the proxy that the environment names, if any.
    pub fn new(authority: &str, trust: Arc<Trust>) -> Result<Self, AgentError> {
        let url = format!("https://{authority}");
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .https_only(true)
            .max_redirects(0)
            .user_agent("boundkey")
            .accept("")
            .accept_encoding("")
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(REQUEST))
            .max_idle_connections(1)
            .input_buffer_size(BUFFER)
            .output_buffer_size(BUFFER)
            .max_response_header_size(HEAD)
            .build();
        let proxy = proxy::on_the_way(config.proxy(), &url)?;
        let tls = TlsConnector(trust.client_config().map_err(|e| AgentError::Other(format!("TLS: {e}")))?);
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).to_owned();
        Ok(Self { config, tls, agent: None, authority: authority.into(), host, proxy, trust })
    }

    /// Closes the connection: after the last answer of a join nothing is asked for a long time, and the server has more use for it.
    pub fn close(&mut self) {
        self.agent = None;
    }

    fn agent(&mut self) -> &ureq::Agent {
        self.agent.get_or_insert_with(|| {
            let tls = self.tls.clone();
            let connector = ().chain(ConnectProxyConnector::default()).chain(TcpConnector::default()).chain(tls);
            ureq::Agent::with_parts(self.config.clone(), connector, DefaultResolver::default())
        })
    }

    /// The whole URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.authority)
    }

    /// The body of an answer, if it is of type `wanted`.
    fn answer(
        &self,
        sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        wanted: &str,
        limit: usize,
    ) -> Result<Vec<u8>, TransportError> {
        let mut response = sent.map_err(|e| self.explain(e))?;
        let status = response.status();
        let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        // RFC 9110 section 10.2.3: seconds. Its other form, a date, is of a clock that may not be this device's, and is passed over.
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let body = response.body_mut().with_config().limit(limit as u64).read_to_vec().map_err(|e| match self.explain(e) {
            // The head arrived: what is missing is the rest of the answer.
            TransportError::NotBoundkey(_) | TransportError::Proxy { .. } | TransportError::Unreachable(_) => {
                TransportError::CutShort
            }
            other => other,
        })?;
        if kind.starts_with(PROBLEM_JSON) {
            let problem: Problem = serde_json::from_slice(&body)
                .map_err(|e| TransportError::NotBoundkey(text::brief(&e.to_string(), MAX_DETAIL)))?;
            // It goes into the log, where a line feed begins a line of our own.
            let detail = text::brief(&problem.detail, MAX_DETAIL);
            return Err(TransportError::Refused(Problem { detail, retry_after, ..problem }));
        }
        if status == 200 && kind.starts_with(wanted) {
            return Ok(body);
        }
        let kind = if kind.is_empty() { "an answer without a type".into() } else { text::brief(&kind, MAX_DETAIL) };
        Err(TransportError::NotBoundkey(format!("status {} with {kind}", status.as_u16())))
    }

    fn explain(&self, e: ureq::Error) -> TransportError {
        let io = match e {
            ureq::Error::Timeout(_) => return TransportError::TimedOut,
            ureq::Error::HostNotFound if self.proxy.is_some() => return self.unreachable("its name cannot be resolved".into()),
            ureq::Error::HostNotFound => return self.unreachable(format!("{} cannot be resolved", self.host)),
            ureq::Error::ConnectProxyFailed(why) => return self.unreachable(why),
            ureq::Error::BodyExceedsLimit(limit) => return TransportError::AnswerTooLong(limit),
            ureq::Error::Io(io) => io,
            ureq::Error::Protocol(e) => return TransportError::NotBoundkey(e.to_string()),
            e @ ureq::Error::LargeResponseHeader(..) => return TransportError::NotBoundkey(e.to_string()),
            other => return self.unreachable(other.to_string()),
        };
        match io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(e)) => self.explain_certificate(e),
            Some(rustls::Error::PeerIncompatible(e)) => TransportError::NotBoundkey(format!("it does not speak TLS 1.3 ({e:?})")),
            Some(rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)) => {
                TransportError::NotBoundkey("it does not speak TLS 1.3".into())
            }
            Some(rustls::Error::InvalidMessage(_)) => TransportError::NotBoundkey("it does not speak TLS".into()),
            Some(e) => TransportError::Tls(e.to_string()),
            None if io.kind() == io::ErrorKind::UnexpectedEof => TransportError::CutShort,
            None if io.kind() == io::ErrorKind::TimedOut => TransportError::TimedOut,
            None => self.unreachable(io.to_string()),
        }
    }

    fn unreachable(&self, why: String) -> TransportError {
        match &self.proxy {
            Some(proxy) => TransportError::Proxy { proxy: proxy.clone(), why },
            None => TransportError::Unreachable(why),
        }
    }

    fn explain_certificate(&self, e: &CertificateError) -> TransportError {
        match e {
            CertificateError::ExpiredContext { not_after, .. } => {
                TransportError::CertificateExpired(Timestamp::from_secs(not_after.as_secs()))
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TransportError::CertificateName(self.host.clone())
            }
            CertificateError::Other(e) if e.0.downcast_ref::<PinMismatch>().is_some() => {
                TransportError::NotTrusted(PinMismatch.to_string())
            }
            CertificateError::Other(e) => match e.0.downcast_ref::<NotAuthEndpoint>() {
                Some(NotAuthEndpoint { subject }) => TransportError::CertificatePurpose(self.authority.clone(), subject.clone()),
                None => TransportError::NotTrusted(e.0.to_string()),
            },
            // A bad signature is that of another CA of the same name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                TransportError::NotTrusted("its certificate is not signed by the trusted CA".into())
            }
            other => TransportError::NotTrusted(other.to_string()),
        }
    }
}

impl Transport for Https {
    fn post(&mut self, path: &str, body: &[u8]) -> Result<Vec<u8>, TransportError> {
        self.trust.expect_time(path == CHALLENGE_PATH);
        let url = self.url(path);
        let sent = self.agent().post(url).content_type(JSON).send(body);
        self.answer(sent, JSON, MAX_ANSWER)
    }

    fn get(&mut self, path: &str, kind: &str, limit: usize) -> Result<Vec<u8>, TransportError> {
        self.trust.expect_time(path == PING_PATH);
        let url = self.url(path);
        let sent = self.agent().get(url).call();
        self.answer(sent, kind, limit)
    }

    fn presented(&self) -> Option<Presented> {
        self.trust.presented()
    }

    fn holds_under(&self, roots: &Roots) -> bool {
        self.trust.holds_under(roots)
    }

    fn note_server_time(&mut self, time: Timestamp) -> Result<Timestamp, Timestamp> {
        self.trust.note_server_time(time)
    }
}

/// Wraps a connection in TLS with our trust: ureq's own connector takes no verifier.
#[derive(Clone, Debug)]
struct TlsConnector(Arc<ClientConfig>);

impl<In: Socket> Connector<In> for TlsConnector {
    type Out = Either<In, TlsSocket>;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(socket) = chained else {
            return Err(ureq::Error::ConnectionFailed);
        };
        // The connection to a proxy itself, before it is asked to connect.
        if !details.needs_tls() || socket.is_tls() {
            return Ok(Some(Either::A(socket)));
        }
        let host = details.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|e| ureq::Error::Io(io::Error::other(e)))?;
        let mut tls = ClientConnection::new(self.0.clone(), name).map_err(|e| ureq::Error::Io(io::Error::other(e)))?;
        let mut socket = TransportAdapter::new(socket.boxed(), details.current_time.clone());
        socket.set_timeout(details.timeout);
        tls.complete_io(&mut socket).map_err(explain_handshake)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(TlsSocket { buffers, stream: StreamOwned::new(tls, socket) })))
    }
}

/// A server that is full closes connections before they cost it anything.
fn explain_handshake(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::ConnectionRefused, "it was closed before TLS was established; the server may be busy")
        }
        _ => e,
    }
}

/// A TLS connection as ureq reads and writes it.
struct TlsSocket {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl Socket for TlsSocket {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        Ok(self.stream.write_all(&self.buffers.output()[..amount])?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let read = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

impl std::fmt::Debug for TlsSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsSocket")
    }
}
