//! Work that blocks: at the key store, at the database. Each kind has turns of its own, so that one that hangs, such as a TPM that does
//! not answer, stops nothing else.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::connections::{Connection, Phase};
use super::log_limiter::LogLimiter;
use super::turns::Turns;
use boundkey_join::{Problem, ProblemType};

/// Joins worked on at once. They wait for each other at the key store and at the database, whose commits hold what has gathered.
const JOINS: usize = 64;
/// Challenges worked on at once. They read.
const CHALLENGES: usize = 16;
/// Requests for revocation lists worked on at once. They wait for one to make the list.
const LISTS: usize = 8;
/// Longest wait of a request for its turn.
const WAIT: Duration = Duration::from_secs(10);
/// When a device that waited in vain should come again, in seconds. Agents add jitter of their own.
const RETRY_AFTER: u64 = 5;

/// What blocks.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A challenge.
    Challenge,
    /// A join.
    Join,
    /// A revocation list.
    List,
}

/// The turns of each kind.
#[derive(Debug)]
pub struct Work {
    challenges: Arc<Turns>,
    joins: Arc<Turns>,
    lists: Arc<Turns>,
    wait: Duration,
    turned_away: LogLimiter,
}

impl Default for Work {
    fn default() -> Self {
        let (challenges, joins, lists) = (Turns::new(CHALLENGES), Turns::new(JOINS), Turns::new(LISTS));
        Self { challenges, joins, lists, wait: WAIT, turned_away: LogLimiter::default() }
    }
}

impl Work {
    /// Runs `answer` to a request over `connection` on a thread that may block, at its turn. The turn ends with the work, also when the
    /// peer is gone before: who asks and leaves does not get more of it.
    pub async fn run<A: Send + 'static>(
        &self,
        kind: Kind,
        connection: &Connection,
        answer: impl FnOnce() -> Result<A, Problem> + Send + 'static,
    ) -> Result<A, Problem> {
        let turns = match kind {
            Kind::Challenge => &self.challenges,
            Kind::Join => &self.joins,
            Kind::List => &self.lists,
        };
        connection.enter(Phase::Queued);
        let turn = timeout(self.wait, turns.take(connection.network)).await.map_err(|_| self.busy())?;
        connection.enter(Phase::Working);
        let work = move || {
            let _turn = turn;
            answer()
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
            log::error!("a request died: {e}");
            Err(ProblemType::ServerError.into())
        })
    }

    fn busy(&self) -> Problem {
        let wait = self.wait.as_secs();
        if let Some(count) = self.turned_away.count() {
            log::warn!("{count} requests since this was said last waited {wait} s in vain: more come than are answered");
        }
        let detail = format!("the server is busy: the request waited {wait} s for its turn; nothing was consumed");
        Problem { retry_after: Some(RETRY_AFTER), ..Problem::new(ProblemType::Busy, detail) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::connections::Connections;
    use super::*;

    /// Work whose joins hang, all of them, until what is returned with it is dropped; those who asked for them are gone.
    async fn hanging(connection: &Arc<Connection>) -> (Arc<Work>, Vec<mpsc::Sender<()>>) {
        let work = Arc::new(Work { wait: Duration::from_millis(100), ..Work::default() });
        let (mut hold, (started, mut starts)) = (Vec::new(), tokio::sync::mpsc::unbounded_channel());
        for _ in 0..JOINS {
            let (release, held) = mpsc::channel::<()>();
            let (work, connection, started) = (work.clone(), connection.clone(), started.clone());
            let asking = tokio::spawn(async move {
                let join = move || {
                    started.send(()).map_err(|_| Problem::from(ProblemType::ServerError))?;
                    Ok(held.recv().is_err()) // the other end is dropped, and never sends
                };
                work.run(Kind::Join, &connection, join).await
            });
            starts.recv().await.unwrap();
            asking.abort();
            hold.push(release);
        }
        (work, hold)
    }

    #[tokio::test]
    async fn joins_that_hang_stop_nothing_else_and_are_no_more_than_their_turns() {
        let connection = Connections::new(8).admit(([192, 0, 2, 1], 1).into()).await;
        let (work, hold) = hanging(&connection).await;
        assert_eq!(work.run(Kind::Challenge, &connection, || Ok(1)).await.unwrap(), 1);
        assert_eq!(work.run(Kind::List, &connection, || Ok(2)).await.unwrap(), 2);
        let busy = work.run(Kind::Join, &connection, || Ok(3)).await.unwrap_err();
        assert_eq!((busy.kind, busy.retry_after), (ProblemType::Busy, Some(RETRY_AFTER)), "{busy}");
        drop(hold);
        let joined = std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            if work.joins.is_free() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        });
        joined.await;
        assert_eq!(work.run(Kind::Join, &connection, || Ok(4)).await.unwrap(), 4);
    }
}
