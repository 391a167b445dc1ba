//! A device on the bus between libtss2 and a software TPM: it listens, and it can answer itself, alter and cut answers.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use boundkey_hal::tpm::Tcti;

use super::port::Port;
use super::swtpm::{Swtpm, tcti};

pub(crate) mod command {
    //! Command codes (TPM 2.0 part 2, section 6.5.2).
    pub(crate) const CREATE: u32 = 0x153;
    pub(crate) const CREATE_PRIMARY: u32 = 0x131;
    pub(crate) const GET_CAPABILITY: u32 = 0x17a;
    pub(crate) const LOAD: u32 = 0x157;
    pub(crate) const NV_READ: u32 = 0x14e;
    pub(crate) const SIGN: u32 = 0x15d;
    pub(crate) const START_AUTH_SESSION: u32 = 0x176;
}

/// What to do to one answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The command never reaches the TPM; this is its answer.
    Answer(u32),
    /// Flips the lowest bit of the byte this far from the end.
    Flip(usize),
    /// Flips the lowest bit of this byte.
    FlipAt(usize),
    /// Takes this many bytes from the end, and closes the line.
    Truncate(usize),
}

/// A fault for the next `times` commands with the code `command`.
struct Rule {
    command: u32,
    times: usize,
    fault: Fault,
}

#[derive(Default)]
struct Shared {
    rules: Vec<Rule>,
    commands: Vec<Vec<u8>>,
    bytes: Vec<u8>,
}

pub(crate) struct TpmProxy {
    port: u16,
    shared: Arc<Mutex<Shared>>,
}

impl TpmProxy {
    /// A proxy in front of `tpm`. Its threads end with the test program.
    pub(crate) fn start(tpm: &Swtpm) -> Self {
        let (port, ports) = Port::two();
        let [data, control] =
            [port, port + 1].map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a port of our own"));
        drop(ports); // taken from here on
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (behind, state) = (tpm.port(), Arc::clone(&shared));
        serve(data, behind, move |client, tpm| {
            // A broken line ends the conversation, as it should.
            let _ = relay_commands(client, tpm, &state);
        });
        serve(control, behind + 1, |client, tpm| {
            let (from, to) = (client.try_clone().expect("clone"), tpm.try_clone().expect("clone"));
            let back = thread::spawn(move || relay_until_closed(tpm, client));
            relay_until_closed(from, to);
            let _ = back.join();
        });
        Self { port, shared }
    }

    pub(crate) fn tcti(&self) -> Tcti {
        Tcti::parse(&tcti(self.port)).expect("a TCTI")
    }

    /// `fault` for the next `times` commands with the code `command`.
    pub(crate) fn inject(&self, command: u32, times: usize, fault: Fault) {
        self.lock().rules.push(Rule { command, times, fault });
    }

    /// No more faults, and nothing recorded.
    pub(crate) fn reset(&self) {
        *self.lock() = Shared::default();
    }

    /// All commands since the last reset.
    pub(crate) fn commands(&self) -> Vec<Vec<u8>> {
        self.lock().commands.clone()
    }

    /// How many of them have this code.
    pub(crate) fn count(&self, command: u32) -> usize {
        self.commands().iter().filter(|c| code(c) == command).count()
    }

    /// Whether these bytes crossed the bus, either way.
    pub(crate) fn saw(&self, bytes: &[u8]) -> bool {
        self.lock().bytes.windows(bytes.len()).any(|w| w == bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("lock")
    }
}

/// The code of a command.
pub(crate) fn code(command: &[u8]) -> u32 {
    u32::from_be_bytes(command[6..10].try_into().expect("a whole header"))
}

/// One connection after the other, each closed before the next is opened, as swtpm serves them: with more on the way its
/// queue of one overflows, and TCP tries again only after seconds.
fn serve(listener: TcpListener, behind: u16, relay: impl Fn(TcpStream, TcpStream) + Send + 'static) {
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // With no TPM behind it, the line closes at once.
            if let Ok(tpm) = TcpStream::connect((Ipv4Addr::LOCALHOST, behind)) {
                relay(client, tpm);
            }
        }
    });
}

/// Either end closing closes both.
fn relay_until_closed(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}

fn relay_commands(mut client: TcpStream, mut tpm: TcpStream, shared: &Mutex<Shared>) -> io::Result<()> {
    loop {
        let command = message(&mut client)?;
        let fault = {
            let mut shared = shared.lock().expect("lock");
            shared.bytes.extend(&command);
            shared.commands.push(command.clone());
            let rule = shared.rules.iter_mut().find(|r| r.command == code(&command) && r.times > 0);
            rule.map(|rule| {
                rule.times -= 1;
                rule.fault
            })
        };
        let mut answer = if let Some(Fault::Answer(code)) = fault {
            [&[0x80, 0x01, 0, 0, 0, 10][..], &code.to_be_bytes()].concat()
        } else {
            tpm.write_all(&command)?;
            message(&mut tpm)?
        };
        shared.lock().expect("lock").bytes.extend(&answer);
        match fault {
            Some(Fault::Flip(from_end)) => {
                let at = answer.len().checked_sub(from_end + 1).expect("an answer as long as that");
                answer[at] ^= 1;
            }
            Some(Fault::FlipAt(at)) => answer[at] ^= 1,
            Some(Fault::Truncate(bytes)) => {
                client.write_all(&answer[..answer.len() - bytes])?;
                return Ok(());
            }
            _ => {}
        }
        client.write_all(&answer)?;
    }
}

/// One command or answer: a header with the length in it, and the rest.
fn message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 10];
    stream.read_exact(&mut message)?;
    let len = u32::from_be_bytes([message[2], message[3], message[4], message[5]]);
    message.resize(usize::try_from(len).expect("a short message"), 0);
    stream.read_exact(&mut message[10..])?;
    Ok(message)
}
