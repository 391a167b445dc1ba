//! Turns at what is scarce: so many at once, and those who wait are served network by network, so that many requests of one do not
//! delay the few of another.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::network::Network;

/// The turns there are.
#[derive(Debug)]
pub struct Turns(Mutex<Queues>);

#[derive(Debug)]
struct Queues {
    free: usize,
    /// Numbers those who wait, and the places of networks in the round.
    next: u64,
    waiting: HashMap<Network, Queue>,
    /// The networks of `waiting`, in the order of their next turns.
    round: BTreeMap<u64, Network>,
}

/// Those of one network, in the order they came. Never empty.
#[derive(Debug)]
struct Queue {
    place: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Turn>>,
}

/// A turn, passed on when it is dropped.
#[derive(Debug)]
pub struct Turn(Option<Arc<Turns>>);

impl Turns {
    /// `count` turns at once.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Queues { free: count, next: 0, waiting: HashMap::new(), round: BTreeMap::new() })))
    }

    /// Waits for a turn. Dropping the future gives up the place in the queue.
    pub async fn take(self: &Arc<Self>, network: Network) -> Turn {
        let (number, turn) = {
            let mut queues = self.queues();
            if queues.free > 0 {
                queues.free -= 1;
                return Turn(Some(self.clone()));
            }
            let (sender, turn) = oneshot::channel();
            (queues.enqueue(network, sender), turn)
        };
        let _place = Place { turns: self, network, number };
        // The sender is kept in the queue until it has sent: it is not dropped before.
        turn.await.unwrap_or(Turn(None))
    }

    /// Whether a turn could be had at once.
    #[cfg(test)]
    pub fn is_free(&self) -> bool {
        self.queues().free > 0
    }

    fn pass_on(self: Arc<Self>) {
        let mut queues = self.queues();
        let mut turn = Turn(Some(self.clone()));
        while let Some(next) = queues.dequeue() {
            // One that has just stopped waiting hands the turn back.
            match next.send(turn) {
                Ok(()) => return,
                Err(back) => turn = back,
            }
        }
        turn.0 = None;
        queues.free += 1;
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        // A thread that panicked left the queues whole: nothing in here fails half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queues {
    fn enqueue(&mut self, network: Network, sender: oneshot::Sender<Turn>) -> u64 {
        self.next += 1;
        let number = self.next;
        let round = &mut self.round;
        let queue = self.waiting.entry(network).or_insert_with(|| {
            round.insert(number, network);
            Queue { place: number, waiting: BTreeMap::new() }
        });
        queue.waiting.insert(number, sender);
        number
    }

    /// The next one of the next network, which then goes to the end of the round.
    fn dequeue(&mut self) -> Option<oneshot::Sender<Turn>> {
        let (_, network) = self.round.pop_first()?;
        let queue = self.waiting.get_mut(&network)?;
        let (_, sender) = queue.waiting.pop_first()?;
        if queue.waiting.is_empty() {
            self.waiting.remove(&network);
        } else {
            self.next += 1;
            queue.place = self.next;
            self.round.insert(queue.place, network);
        }
        Some(sender)
    }

    fn forget(&mut self, network: Network, number: u64) {
        let Some(queue) = self.waiting.get_mut(&network) else { return };
        queue.waiting.remove(&number);
        if queue.waiting.is_empty() {
            self.round.remove(&queue.place);
            self.waiting.remove(&network);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass_on();
        }
    }
}

/// A place in the queue, left when it is dropped.
struct Place<'a> {
    turns: &'a Turns,
    network: Network,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.turns.queues().forget(self.network, self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::sync::mpsc;

    use super::*;

    fn network(n: u8) -> Network {
        IpAddr::from([192, 0, 2, n]).into()
    }

    #[tokio::test]
    async fn many_of_one_network_do_not_delay_the_one_of_another() {
        let turns = Turns::new(1);
        let held = turns.take(network(1)).await;
        let (tell, mut told) = mpsc::unbounded_channel();
        for n in [1, 1, 1, 1, 2, 1, 3, 2] {
            let (turns, tell) = (turns.clone(), tell.clone());
            tokio::spawn(async move {
                let _turn = turns.take(network(n)).await;
                tell.send(n).unwrap();
            });
            tokio::task::yield_now().await; // until it waits
        }
        drop((held, tell));
        let mut order = Vec::new();
        while let Some(n) = told.recv().await {
            order.push(n);
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 1, 1, 1]);
    }

    #[tokio::test]
    async fn those_who_stop_waiting_take_no_turn_and_leave_nothing_behind() {
        let turns = Turns::new(1);
        let held = turns.take(network(1)).await;
        let waiting: Vec<_> = (0..100_u8)
            .map(|n| {
                let turns = turns.clone();
                tokio::spawn(async move { turns.take(network(n % 9)).await })
            })
            .collect();
        tokio::task::yield_now().await;
        for waiting in &waiting {
            waiting.abort();
        }
        for waiting in waiting {
            waiting.await.unwrap_err();
        }
        {
            let queues = turns.queues();
            assert!(queues.waiting.is_empty() && queues.round.is_empty());
        }
        drop(held);
        let _again = turns.take(network(2)).await;
        assert_eq!(turns.queues().free, 0);
    }
}
