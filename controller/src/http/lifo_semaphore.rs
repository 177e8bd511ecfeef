//! A semaphore that serves waiters in last-in, first-out order.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// If this many waiters are queued, a new waiter first removes the waiters whose task has ended. This bounds the memory
/// that ended waiters occupy, and the removal remains rare.
const SWEEP_THRESHOLD: usize = 2048;

/// A limited number of permits, which go to the newest waiter first. Under overload, [`crate::admission`] closes the
/// connections that have waited longest. If the longest waiter got the next permit, permits would be spent on
/// connections that are about to be closed.
#[derive(Debug)]
pub(super) struct LifoSemaphore(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    waiting: Vec<oneshot::Sender<Permit>>,
}

/// A permit. Dropping it releases it.
#[derive(Debug)]
pub(super) struct Permit(Option<Arc<LifoSemaphore>>);

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(semaphore) = self.0.take() {
            semaphore.release();
        }
    }
}

impl LifoSemaphore {
    /// A semaphore with `free` permits, none of which is assigned.
    pub(super) fn new(free: usize) -> Arc<Self> {
        let waiting = Vec::new();
        Arc::new(Self(Mutex::new(State { free, waiting })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a permit. Of several waiting callers, the last to come gets the next permit. Dropping the future ends
    /// the wait, and releases a permit that was assigned to it meanwhile.
    pub(super) async fn acquire(self: &Arc<Self>) -> Permit {
        let assigned = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Permit(Some(self.clone()));
            }
            if state.waiting.len() >= SWEEP_THRESHOLD {
                state.waiting.retain(|w| !w.is_closed());
            }
            let (assign, assigned) = oneshot::channel();
            state.waiting.push(assign);
            assigned
        };
        // A sender is dropped only when its receiver is gone, so the result is never the empty permit.
        assigned.await.unwrap_or(Permit(None))
    }

    /// Assigns a released permit to the newest waiter whose task still exists.
    fn release(self: Arc<Self>) {
        loop {
            let mut state = self.lock();
            let Some(last) = state.waiting.pop() else {
                state.free += 1;
                return;
            };
            drop(state);
            match last.send(Permit(Some(self.clone()))) {
                Ok(()) => return,
                // The waiter's task has ended. The permit is emptied, so that dropping it does not release it a second
                // time.
                Err(mut permit) => drop(permit.0.take()),
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
        let semaphore = LifoSemaphore::new(1);
        let first = semaphore.acquire().await;
        let mut second = pin!(semaphore.acquire());
        assert!(poll!(&mut second).is_pending());
        let mut third = Box::pin(semaphore.acquire());
        assert!(poll!(&mut third).is_pending());
        let mut fourth = Box::pin(semaphore.acquire());
        assert!(poll!(&mut fourth).is_pending());
        // A waiter whose task has ended is skipped.
        drop(fourth);
        drop(first);
        assert!(poll!(&mut second).is_pending());
        // A waiter that ends between the assignment and its next poll releases its permit.
        drop(third);
        let permit = second.await;
        drop(permit);
        assert_eq!(semaphore.lock().free, 1);
    }

    #[tokio::test]
    async fn waiters_that_are_gone_do_not_pile_up() {
        let semaphore = LifoSemaphore::new(0);
        for _ in 0..3 * SWEEP_THRESHOLD {
            assert!(poll!(pin!(semaphore.acquire())).is_pending());
        }
        assert!(semaphore.lock().waiting.len() <= SWEEP_THRESHOLD);
    }
}
