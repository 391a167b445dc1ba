//! An MTU black hole: long packets vanish on the way, short ones do not, and nobody tells the sender.
//!
//! Two networks of the test's own and a cable between them. An end of a cable drops in silence what is longer than its MTU; each
//! end tells the other in its SYN that it takes 1460 bytes, as hosts on Ethernet do whatever is between them.

use std::process::Command;
use std::time::Instant;

use super::support::namespace::{Kind, Namespace};
use super::support::said::said;
use super::support::{Device, Server, run};

const SERVER: &str = "192.0.2.1";
const DEVICE: &str = "192.0.2.2";

/// A device and its server at the ends of a cable.
struct Cable {
    server: Server,
    device: Device,
    near: Namespace,
    far: Namespace,
}

impl Cable {
    /// `None` where that cannot be tried.
    fn new() -> Option<Self> {
        let near = Namespace::new(&[Kind::Network])?;
        let far = near.beside();
        near.shell("ip link add name cable type veth peer name cable netns \"$1\"", &[&far.pid()]);
        for (end, address, peer) in [(&near, DEVICE, SERVER), (&far, SERVER, DEVICE)] {
            // Packets as the wire has them: none is cut or joined by the cable itself.
            end.shell("ethtool --offload cable tx off sg off tso off gso off gro off >&2", &[]);
            end.shell("ip address add \"$1\"/32 dev cable; ip link set cable up; ip link set lo up", &[address]);
            end.shell("ip route add \"$1\"/32 dev cable advmss 1460", &[peer]);
        }
        let mut server = Server::init(&[SERVER]);
        server.addr = format!("{SERVER}:3025");
        let command = far.enter(&server.command());
        assert!(server.run_as(command), "the server ended: {}", server.log());
        let device = server.device("gw", 1);
        let cable = Self { server, device, near, far };
        assert!(cable.join().status.success(), "the cable is good: {}", String::from_utf8_lossy(&cable.join().stderr));
        Some(cable)
    }

    fn command(&self) -> Command {
        self.near.enter(&self.device.command(&["start", "--oneshot"]))
    }

    fn join(&self) -> std::process::Output {
        run(&mut self.command())
    }

    /// Longer packets to this end vanish.
    fn mtu(end: &Namespace, mtu: u32) {
        end.shell("ip link set cable mtu \"$1\"", &[&mtu.to_string()]);
    }
}

/// The request vanishes: the server never hears of it.
#[test]
fn requests_that_vanish_are_given_up_in_time_and_cost_nothing() {
    let Some(cable) = Cable::new() else { return };
    Cable::mtu(&cable.far, 900);
    let start = Instant::now();
    let said = said(&cable.join());
    println!("given up after {:?}", start.elapsed());
    // The server has given up before.
    assert_eq!((said.code, &*said.error), (3, "the connection ended before the whole answer had come"), "{said:?}");
    assert_eq!(cable.server.events("gw"), ["join.first"]);
    Cable::mtu(&cable.far, 1500);
    assert!(cable.join().status.success());
    // The kernel goes on with what the agent that ended has sent: some seconds later that comes through too, and may be the first.
    let events = cable.server.events("gw");
    assert!(events[1..] == ["join.renewal"] || events[1..] == ["join.renewal", "join.replay"], "{events:?}");
    assert_eq!(cable.server.status("gw")["recovery_count"], 1);
}

/// The answer vanishes: the server made its step, and gives the answer again.
#[test]
fn answers_that_vanish_are_given_again() {
    let Some(cable) = Cable::new() else { return };
    // Room for the packets of the handshake, and not for the long ones of the answer.
    Cable::mtu(&cable.near, 1400);
    let said = said(&cable.join());
    assert_eq!((said.code, &*said.error), (3, "the server did not answer in time"), "{said:?}");
    Cable::mtu(&cable.near, 1500);
    assert!(cable.join().status.success());
    assert_eq!(cable.server.events("gw"), ["join.first", "join.renewal", "join.replay"]);
    assert_eq!(cable.server.status("gw")["recovery_count"], 1);
}

/// The remedy on a device: its kernel tries shorter packets by itself.
#[test]
fn a_kernel_that_probes_for_the_mtu_gets_through() {
    let Some(cable) = Cable::new() else { return };
    cable.near.shell("echo 1 >/proc/sys/net/ipv4/tcp_mtu_probing", &[]);
    Cable::mtu(&cable.far, 900);
    let start = Instant::now();
    let output = cable.join();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("joined after {:?}", start.elapsed());
    assert_eq!(cable.server.events("gw"), ["join.first", "join.renewal"]);
}
