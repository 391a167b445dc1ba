//! Something that answers where the auth endpoint should: with the right certificate or another, and with what a test says.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What it says after a request was read, as bytes; the connection ends after that.
pub type Answer = Arc<dyn Fn(&str) -> Vec<u8> + Send + Sync>;

/// The imposter. Devices connect to [`Imposter::addr`].
pub struct Imposter {
    /// Where it listens.
    pub addr: String,
    closed: Arc<AtomicBool>,
}

impl Imposter {
    /// Speaks TLS with the key and certificates of PEM text, and answers the head of each request with `answer`.
    pub fn with_tls(key_and_certificates: &str, answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::with_identities(&[key_and_certificates], answer)
    }

    /// The same with another of these keys and certificates for each connection, and the last one from then on.
    pub fn with_identities(identities: &[&str], answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let configs: Vec<_> = identities.iter().map(|identity| tls_config(identity)).collect();
        let next = AtomicUsize::new(0);
        Self::listen(move |stream| {
            let config = &configs[next.fetch_add(1, Ordering::Relaxed).min(configs.len() - 1)];
            let connection = ServerConnection::new(config.clone()).expect("a connection");
            serve(&mut StreamOwned::new(connection, stream), &answer);
        })
    }

    /// The same without TLS.
    pub fn plain(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::listen(move |mut stream| serve(&mut stream, &answer))
    }

    fn listen(each: impl Fn(TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("address").to_string();
        let closed = Arc::new(AtomicBool::new(false));
        let ends = closed.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                stream.set_read_timeout(Some(super::PATIENCE)).expect("timeout");
                each(stream);
            }
        });
        Self { addr, closed }
    }
}

impl Drop for Imposter {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.addr); // wakes the listener, which then ends
    }
}

fn tls_config(key_and_certificates: &str) -> Arc<ServerConfig> {
    let pem = key_and_certificates.as_bytes();
    let key = PrivateKeyDer::from_pem_slice(pem).expect("a key");
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().expect("certificates");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a key that fits");
    Arc::new(config)
}

/// Reads one request, head and body, and answers it.
fn serve(stream: &mut (impl Read + Write), answer: &dyn Fn(&str) -> Vec<u8>) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !is_whole(&request) {
        match stream.read(&mut buffer) {
            Ok(read @ 1..) => request.extend(&buffer[..read]),
            // A client that does not go on: it knows by now that this is not its server.
            _ => return,
        }
    }
    let _ = stream.write_all(&answer(&String::from_utf8_lossy(&request))); // a client that left needs no answer
    let _ = stream.flush();
}

/// Whether the head is there, and as much of a body as it says. What is no HTTP is taken as whole.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    if request.first() == Some(&0x16) {
        return true;
    }
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    body.len() >= length.unwrap_or(0)
}
