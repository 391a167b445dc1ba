//! Ports that stay a test's own also while what listens there is down: else another test, or the near end of any connection, gets
//! them meanwhile.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A port on loopback. Who connects there while nobody listens is refused.
pub(crate) struct Port {
    pub(crate) number: u16,
    /// Bound, and does not listen.
    _socket: Socket,
}

impl Port {
    /// One of the kernel's choice.
    pub(crate) fn any() -> Self {
        Self::at(0).expect("a free port")
    }

    /// Two in a row; the number of the first.
    pub(crate) fn two() -> (u16, [Self; 2]) {
        // Below those that the kernel gives to connections, which keep them for a minute after their end.
        let random = || 10_000 + 2 * u16::try_from(RandomState::new().hash_one(()) % 10_000).expect("below 10000");
        for first in std::iter::repeat_with(random).take(1000) {
            if let (Ok(a), Ok(b)) = (Self::at(first), Self::at(first + 1)) {
                return (first, [a, b]);
            }
        }
        panic!("no two free ports in a row");
    }

    fn at(number: u16) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, number)).into())?;
        // After the bind, which so succeeds for one alone. From here on who has this option too may listen there, if it knows the
        // number: servers have it, so as to start again at once.
        socket.set_reuse_address(true)?;
        let number = socket.local_addr()?.as_socket().expect("an IP address").port();
        Ok(Self { number, _socket: socket })
    }
}
