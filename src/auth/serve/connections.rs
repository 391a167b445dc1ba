//! The connections of devices: how many there are, from which networks, what each waits for, and which one makes room when there
//! are too many.
//!
//! A newcomer always gets in. When places are short, a connection of the network that holds most is closed for it: first the one that
//! has been waiting longest for its peer, so that what moves on stays. A network that holds less than others loses nothing, and a
//! device, which is through in a second, is closed only if as many connections as there are places came after it within that second.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::log_limiter::LogLimiter;
use super::network::Network;

/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for the head of a request; also how long an idle connection is kept.
const HEAD: Duration = Duration::from_secs(15);
/// Time for the body of a request.
const BODY: Duration = Duration::from_secs(15);
/// Time for an answer to be taken, and for each [`ANSWER_BYTES`] of it one second more.
const ANSWER: Duration = Duration::from_secs(15);
/// Of an answer, what a peer has to take in a second.
const ANSWER_BYTES: u64 = 20_000;
/// Time for a whole connection.
const CONNECTION: Duration = Duration::from_secs(180);
/// Requests on one connection. A device sends two, and one for a revocation list.
const REQUESTS: u32 = 32;
/// Places that are kept free by closing in advance, so that nobody has to wait until one is.
const HEADROOM: usize = 64;

/// All connections of devices.
#[derive(Debug)]
pub struct Connections {
    limit: usize,
    table: Mutex<Table>,
    /// A connection is gone, or may be closed now.
    changed: Notify,
    made_room: LogLimiter,
}

#[derive(Debug, Default)]
struct Table {
    /// Numbers connections, and the phases that they enter.
    next: u64,
    open: usize,
    /// Those that were told to close and are not gone.
    closing: usize,
    networks: HashMap<Network, Members>,
    /// Networks with connections that may be closed; the last one is to lose one.
    ranks: BTreeSet<Rank>,
}

/// The connections of one network.
#[derive(Debug, Default)]
struct Members {
    open: usize,
    /// Those that may be closed, the one to be closed first in front.
    closable: BTreeMap<Turn, Arc<Notify>>,
}

/// When a connection is to be closed, among those of one network: by what it waits for, then by how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    class: Class,
    since: u64,
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// For its peer: handshake, request.
    Peer,
    /// For its peer to take an answer, which has cost work.
    Answer,
    /// For its turn: a whole request has come.
    Turn,
}

/// Of networks that hold as many, the one whose connection has waited longest comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    open: usize,
    oldest: Reverse<Turn>,
    network: Network,
}

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// An answer of this many bytes is being taken.
    Answer(u64),
    /// The body of a request is on its way.
    Body,
    /// TLS is not established yet.
    Handshake,
    /// The head of a request is on its way, or awaited.
    Head,
    /// A whole request waits for its turn.
    Queued,
    /// It is worked on. Nobody closes it.
    Working,
}

impl Phase {
    fn class(self) -> Option<Class> {
        match self {
            Self::Body | Self::Handshake | Self::Head => Some(Class::Peer),
            Self::Answer(_) => Some(Class::Answer),
            Self::Queued => Some(Class::Turn),
            Self::Working => None,
        }
    }

    /// How long it may last. What this server itself takes time for is bounded elsewhere.
    fn time(self) -> Duration {
        match self {
            Self::Answer(bytes) => ANSWER + Duration::from_secs(bytes / ANSWER_BYTES),
            Self::Body => BODY,
            Self::Handshake => HANDSHAKE,
            Self::Head => HEAD,
            Self::Queued | Self::Working => CONNECTION,
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Answer(_) => "the answer was not taken",
            Self::Body => "no whole body",
            Self::Handshake => "no TLS handshake",
            Self::Head => "no request",
            Self::Queued | Self::Working => "no answer",
        })
    }
}

/// One connection. Its place is free again when this is dropped.
#[derive(Debug)]
pub struct Connection {
    /// Where it comes from.
    pub from: SocketAddr,
    /// The network that it counts for.
    pub network: Network,
    connections: Arc<Connections>,
    told_to_close: Arc<Notify>,
    opened: Instant,
    now: Mutex<Now>,
}

/// What changes of a connection.
#[derive(Debug)]
struct Now {
    phase: Phase,
    deadline: Instant,
    standing: Standing,
    requests: u32,
    /// Whether all of the answer is with the stream, and only has to be flushed.
    written: bool,
}

/// Whether a connection may be closed to make room.
#[derive(Clone, Copy, Debug)]
enum Standing {
    /// At this turn.
    Closable(Turn),
    /// It was told to.
    Closing,
    /// Not now.
    Safe,
}

impl Connections {
    /// Room for `limit` connections.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, table: Mutex::default(), changed: Notify::new(), made_room: LogLimiter::default() })
    }

    /// Takes a connection in, and closes another one if there is too little room. Waits as long as no place is free.
    pub async fn admit(self: &Arc<Self>, from: SocketAddr) -> Arc<Connection> {
        loop {
            let changed = self.changed.notified();
            if let Some(connection) = self.try_admit(from) {
                return connection;
            }
            changed.await;
        }
    }

    fn try_admit(self: &Arc<Self>, from: SocketAddr) -> Option<Arc<Connection>> {
        let network = Network::from(from.ip());
        let mut table = self.table();
        let headroom = HEADROOM.min(self.limit / 8);
        let closed = if table.open - table.closing + headroom >= self.limit { table.close_one() } else { None };
        let admitted = (table.open < self.limit).then(|| {
            let told_to_close = Arc::new(Notify::new());
            table.open += 1;
            table.change(network, |members| members.open += 1);
            let (phase, opened) = (Phase::Handshake, Instant::now());
            let standing = table.enter(network, Standing::Safe, phase.class(), &told_to_close);
            let now = Mutex::new(Now { phase, deadline: opened + phase.time(), standing, requests: 0, written: false });
            Arc::new(Connection { from, network, connections: self.clone(), told_to_close, opened, now })
        });
        let open = table.open;
        drop(table);
        if let Some((network, held)) = closed
            && let Some(count) = self.made_room.count()
        {
            log::warn!(
                "{open} of {} connections are open: closed {count} since this was said last, to let others in; most are of {network}, \
                 which has {held}",
                self.limit
            );
        }
        admitted
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A thread that panicked left the table whole: what is changed in it does not fail half-way.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Tells one connection to close. Returns its network, and how many that has.
    fn close_one(&mut self) -> Option<(Network, usize)> {
        let Rank { open, network, oldest: Reverse(turn) } = *self.ranks.last()?;
        let told_to_close = self.take(network, turn)?;
        self.closing += 1;
        told_to_close.notify_one();
        Some((network, open))
    }

    /// Gives a connection of `network` a new turn of `class`, or none.
    fn enter(&mut self, network: Network, old: Standing, class: Option<Class>, told_to_close: &Arc<Notify>) -> Standing {
        let told = match old {
            Standing::Closable(turn) => self.take(network, turn).is_none(),
            Standing::Closing => true,
            Standing::Safe => false,
        };
        if told {
            return Standing::Closing;
        }
        let Some(class) = class else { return Standing::Safe };
        self.next += 1;
        let turn = Turn { class, since: self.next };
        self.change(network, |members| {
            members.closable.insert(turn, told_to_close.clone());
        });
        Standing::Closable(turn)
    }

    /// Forgets a connection.
    fn leave(&mut self, network: Network, standing: Standing) {
        let told = match standing {
            Standing::Closable(turn) => self.take(network, turn).is_none(),
            Standing::Closing => true,
            Standing::Safe => false,
        };
        self.closing -= usize::from(told);
        self.open -= 1;
        self.change(network, |members| members.open -= 1);
    }

    /// Takes a connection out of those that may be closed. `None`: it was told to close meanwhile.
    fn take(&mut self, network: Network, turn: Turn) -> Option<Arc<Notify>> {
        let mut taken = None;
        self.change(network, |members| taken = members.closable.remove(&turn));
        taken
    }

    /// Changes a network and its rank with it.
    fn change(&mut self, network: Network, change: impl FnOnce(&mut Members)) {
        let members = self.networks.entry(network).or_default();
        if let Some(rank) = members.rank(network) {
            self.ranks.remove(&rank);
        }
        change(members);
        if let Some(rank) = members.rank(network) {
            self.ranks.insert(rank);
        }
        if members.open == 0 {
            self.networks.remove(&network);
        }
    }
}

impl Members {
    fn rank(&self, network: Network) -> Option<Rank> {
        let (turn, _) = self.closable.first_key_value()?;
        Some(Rank { open: self.open, oldest: Reverse(*turn), network })
    }
}

impl Connection {
    /// Goes on to another phase, which has a time of its own.
    pub fn enter(&self, phase: Phase) {
        let mut now = self.now();
        (now.phase, now.written) = (phase, false);
        now.deadline = (Instant::now() + phase.time()).min(self.opened + CONNECTION);
        let mut table = self.connections.table();
        now.standing = table.enter(self.network, now.standing, phase.class(), &self.told_to_close);
        let full = table.open >= self.connections.limit;
        drop(table);
        if full {
            self.connections.changed.notify_one();
        }
    }

    /// What it does now.
    pub fn phase(&self) -> Phase {
        self.now().phase
    }

    /// When it is to be closed, unless its phase ends before.
    pub fn deadline(&self) -> Instant {
        self.now().deadline
    }

    /// Uses up the time of the phase.
    #[cfg(test)]
    pub fn end_phase(&self) {
        self.now().deadline = Instant::now();
    }

    /// Counts a request. Returns whether it is the last one that this connection may bring.
    pub fn count_request(&self) -> bool {
        let mut now = self.now();
        now.requests += 1;
        now.requests >= REQUESTS
    }

    /// All of an answer is with the stream.
    pub fn answer_written(&self) {
        self.now().written = true;
    }

    /// The stream has passed on all that it had: if that was the end of an answer, the next request is awaited.
    pub fn flushed(&self) {
        if std::mem::take(&mut self.now().written) {
            self.enter(Phase::Head);
        }
    }

    /// Resolves when this connection is to make room for another one.
    pub async fn told_to_close(&self) {
        self.told_to_close.notified().await;
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        // A thread that panicked left it whole.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let standing = self.now().standing;
        self.connections.table().leave(self.network, standing);
        self.connections.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(network: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, network], port))
    }

    fn is_told(connection: &Connection) -> bool {
        let waiter = std::pin::pin!(connection.told_to_close());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        waiter.poll(&mut context).is_ready()
    }

    /// As many connections of each network as are given, oldest first.
    fn admit(connections: &Arc<Connections>, of: &[u8]) -> Vec<Arc<Connection>> {
        of.iter().map(|network| connections.try_admit(address(*network, 1)).expect("a place")).collect()
    }

    #[test]
    fn a_full_server_closes_what_waits_longest_of_the_network_that_holds_most() {
        let connections = Connections::new(7); // so few have no headroom
        let open = admit(&connections, &[1, 2, 2, 2, 1, 3, 4]);
        assert!(!open.iter().any(|connection| is_told(connection)), "there was room");
        assert!(connections.try_admit(address(5, 1)).is_none(), "no place is free yet");
        let told: Vec<_> = open.iter().map(|connection| is_told(connection)).collect();
        assert_eq!(told, [false, true, false, false, false, false, false]);
        drop(open.into_iter().nth(1));
        assert!(connections.try_admit(address(5, 1)).is_some());
    }

    #[test]
    fn what_moves_on_is_closed_after_what_waits() {
        let connections = Connections::new(5);
        let open = admit(&connections, &[1, 1, 1, 1, 1]);
        open[0].enter(Phase::Working);
        open[1].enter(Phase::Queued);
        open[2].enter(Phase::Answer(0));
        open[3].enter(Phase::Head);
        for expected in [4, 3, 2, 1] {
            assert!(connections.table().close_one().is_some());
            let told: Vec<_> = open.iter().map(|connection| is_told(connection)).collect();
            assert_eq!(told.iter().position(|told| *told), Some(expected), "{told:?}");
            // It is told once; what it does then gives it no new turn.
            open[expected].enter(Phase::Head);
        }
        assert!(connections.table().close_one().is_none());
        assert!(!is_told(&open[0]), "work under way is not thrown away");
    }

    #[test]
    fn nothing_is_kept_of_connections_that_are_gone() {
        let connections = Connections::new(300);
        let open: Vec<_> = (0..200).map(|n| admit(&connections, &[n % 7])).collect();
        for (n, connection) in open.iter().flatten().enumerate() {
            connection.enter([Phase::Working, Phase::Queued, Phase::Body, Phase::Answer(100_000)][n % 4]);
        }
        drop(open);
        let table = connections.table();
        assert_eq!((table.open, table.closing, table.networks.len(), table.ranks.len()), (0, 0, 0, 0));
    }

    #[test]
    fn a_long_answer_has_more_time_but_a_connection_has_its_end() {
        let connections = Connections::new(8);
        let connection = connections.try_admit(address(1, 1)).unwrap();
        let left = || (connection.deadline() - connection.opened).as_secs();
        assert_eq!(left(), 10);
        for (phase, expected) in [(Phase::Head, 15), (Phase::Body, 15), (Phase::Answer(100), 15), (Phase::Answer(2_000_000), 115)]
        {
            connection.enter(phase);
            assert!((expected..expected + 5).contains(&left()), "{phase:?}: {} s", left());
        }
        connection.enter(Phase::Answer(u64::MAX));
        assert_eq!(left(), CONNECTION.as_secs());
    }

    #[tokio::test]
    async fn a_newcomer_gets_in_while_a_flood_stands() {
        let connections = Connections::new(256);
        let flood = {
            let connections = connections.clone();
            tokio::spawn(async move {
                for n in 0..2000_u16 {
                    let connection = connections.admit(address(u8::try_from(n % 50).unwrap(), n)).await;
                    tokio::spawn(async move { connection.told_to_close().await });
                }
            })
        };
        for n in 0..100 {
            let newcomer = connections.admit(address(200, n)).await;
            assert!(!is_told(&newcomer));
        }
        flood.await.unwrap();
        assert!(connections.table().open <= 256);
    }
}
