//! Turns for work of which only so much may be under way: who came last goes first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Waiters whose task may be gone by now are looked through when there are so many.
const MANY: usize = 2048;

/// A limited number of turns, given to the newest waiter first. Under overload the oldest waiting connections are closed, so
/// first-in, first-out order would spend every turn on a connection that is about to be closed. In last-in, first-out order a
/// newcomer has the best chance, however many wait.
#[derive(Debug)]
pub(super) struct Turns(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    waiting: Vec<oneshot::Sender<Turn>>,
}

/// A turn, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Option<Arc<Turns>>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.release();
        }
    }
}

impl Turns {
    pub(super) fn new(free: usize) -> Arc<Self> {
        let waiting = Vec::new();
        Arc::new(Self(Mutex::new(State { free, waiting })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn.
    pub(super) async fn take(self: &Arc<Self>) -> Turn {
        let given = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(self.clone()));
            }
            if state.waiting.len() >= MANY {
                state.waiting.retain(|w| !w.is_closed());
            }
            let (give, given) = oneshot::channel();
            state.waiting.push(give);
            given
        };
        // Waiters are never dropped while they wait.
        given.await.unwrap_or(Turn(None))
    }

    /// Gives a turn to whoever came last and still waits.
    fn release(self: Arc<Self>) {
        loop {
            let mut state = self.lock();
            let Some(last) = state.waiting.pop() else {
                state.free += 1;
                return;
            };
            drop(state);
            match last.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // It is gone: not given back, but given to the next.
                Err(mut turn) => drop(turn.0.take()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use std::pin::pin;

    #[tokio::test]
    async fn the_last_to_come_goes_first_and_no_turn_is_lost() {
        let turns = Turns::new(1);
        let first = turns.take().await;
        let mut second = pin!(turns.take());
        assert!(poll!(&mut second).is_pending());
        let mut third = Box::pin(turns.take());
        assert!(poll!(&mut third).is_pending());
        let mut fourth = Box::pin(turns.take());
        assert!(poll!(&mut fourth).is_pending());
        // One that is gone is passed over.
        drop(fourth);
        drop(first);
        assert!(poll!(&mut second).is_pending());
        // One that was given its turn and goes without having taken it gives it back.
        drop(third);
        let turn = second.await;
        drop(turn);
        assert_eq!(turns.lock().free, 1);
    }

    #[tokio::test]
    async fn waiters_that_are_gone_do_not_pile_up() {
        let turns = Turns::new(0);
        for _ in 0..3 * MANY {
            assert!(poll!(pin!(turns.take())).is_pending());
        }
        assert!(turns.lock().waiting.len() <= MANY);
    }
}
