//! A server or an agent that is killed in the middle of a step.

use super::support::strace::{count_calls, killed_aside_at, killed_at, was_killed};
use super::support::{Device, Server, run};
use super::{bundle, ca, phases, read_ca};

#[test]
fn announcing_and_withdrawing_survive_the_death_of_the_server() {
    kill_the_server_in([&[], &["--cancel"]], ["announced", "retired"]);
}

#[test]
fn taking_over_and_going_back_survive_the_death_of_the_server() {
    kill_the_server_in([&["--to", "active", "--yes"], &["--to", "announced", "--yes"]], ["active", "announced"]);
}

/// Kills the server before each of its calls in a step, the first of `steps` and the second in turns; `of` tells which phases of the last
/// CA they lead to. Each step was made or was not, the audit log has it if it was made, and devices join all the same.
fn kill_the_server_in(steps: [&[&str]; 2], lead_to: [&str; 2]) {
    let mut server = Server::start();
    let mut turns = Turns::default();
    turns.next(&server);
    if steps[0].len() > 1 {
        ca(&server, &["rotate"]);
    }
    let phase = |server: &Server| phases(server).pop().expect("a CA").1;
    let (mut deaths, mut made, mut undone) = (0, 0, 0);
    for call in ["fsync", "rename", "pwrite64", "fdatasync"] {
        let mut survived = 0;
        for nth in 1.. {
            assert!(nth < 80, "{call}: no end");
            let which = usize::from(phase(&server) == lead_to[0]);
            let before = read_ca(&server);
            server.kill();
            // Calls are counted by thread.
            let mut command = server.command();
            command.env("TOKIO_WORKER_THREADS", "1");
            if server.run_as(killed_aside_at(&command, call, nth)) {
                let args: Vec<_> = ["ca", "rotate"].iter().chain(steps[which]).copied().collect();
                survived += usize::from(run(&mut server.ctl_command(&args)).status.success());
            }
            deaths += usize::from(!server.is_running());
            server.kill();
            server.run();
            let after = read_ca(&server);
            if phase(&server) == lead_to[which] {
                made += 1;
                let sequence = &ca(&server, &["status"])["sequence"];
                assert!(server.audit().iter().any(|event| event["sequence"] == *sequence), "{call} {nth}: no event");
            } else {
                undone += 1;
                assert_eq!(after, before, "{call} {nth}: neither made nor not");
            }
            let device = turns.next(&server);
            device.join();
            assert_eq!(bundle(device).sequence(), ca(&server, &["status"])["sequence"].as_u64().expect("a number"));
            if survived == 2 {
                break;
            }
        }
    }
    println!("{deaths} deaths; {made} steps made, {undone} not");
    assert!(deaths >= 10 && made > 0 && undone > 0, "{deaths} deaths; {made} steps made, {undone} not");
    turns.told_only(&server, &["join.renewal"]);
}

/// The power fails before each call by which the agent stores another trust bundle, and what comes with it.
#[test]
fn taking_another_bundle_survives_the_death_of_the_agent() {
    const CALLS: [&str; 9] = ["fsync", "fdatasync", "pwrite64", "recvfrom", "rename", "sendto", "unlink", "unlinkat", "write"];
    let server = Server::start();
    let mut turns = Turns::default();
    let start = |device: &Device| device.command(&["start", "--oneshot"]);
    turns.next(&server);
    let mut announced = false;
    let mut another = || {
        ca(&server, if announced { &["rotate", "--cancel"] } else { &["rotate"] });
        announced = !announced;
    };
    another();
    let counts = count_calls(&start(turns.next(&server)), &CALLS);
    let mut deaths = 0;
    for (call, count) in counts {
        for nth in 1..=count {
            let device = turns.next(&server);
            another();
            let output = run(&mut killed_at(&start(device), &call, nth));
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(was_killed(&output) || output.status.success(), "{call} {nth}: {}: {text}", output.status);
            deaths += usize::from(was_killed(&output));
            device.join();
            assert_eq!(bundle(device).sequence(), ca(&server, &["status"])["sequence"].as_u64().expect("a number"));
        }
    }
    assert!(deaths >= 10, "{deaths} deaths");
    turns.told_only(&server, &["join.renewal", "join.replay"]);
}

/// Devices that take turns: a token makes no more than ten joins in a row.
#[derive(Default)]
struct Turns {
    made: usize,
    joins: usize,
    device: Option<Device>,
}

impl Turns {
    /// The device whose turn it is, for a join that may have to be done twice. It has joined before.
    fn next(&mut self, server: &Server) -> &Device {
        if self.joins >= 6 || self.device.is_none() {
            self.made += 1;
            let device = server.device(&format!("gw-{}", self.made), 1);
            device.join();
            (self.joins, self.device) = (0, Some(device));
        }
        self.joins += 2;
        self.device.as_ref().expect("just made")
    }

    /// That nothing but this was told of any of them, first joins apart.
    fn told_only(&self, server: &Server, events: &[&str]) {
        for device in 1..=self.made {
            let told = server.events(&format!("gw-{device}"));
            assert!(told.iter().skip(1).all(|event| events.contains(&event.as_str())), "{told:?}");
        }
    }
}
