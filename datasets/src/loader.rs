//! In which order examples are used, and how the next batch is made while the present one trains.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use runtime::seeds::{key, permutation};

/// An endless stream over the examples of a dataset, one permutation per epoch.
///
/// The example at a position is a pure function of (seed, purpose, position), so a run's cursor is
/// its step and nothing else. Windows (row groups of a cache) are permuted, then the examples
/// within each window, so that a dataset larger than memory is read almost sequentially.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    purpose: &'static str,
    len: usize,
    window: usize,
    recent: Mutex<Recent>,
}

/// Permutations that were asked for last, the newest first: what is kept does not grow with the dataset but
/// by its windows.
#[derive(Debug, Default)]
struct Recent {
    /// Of the windows, by epoch.
    windows: Kept<u64>,
    /// Within a window, by epoch and window.
    within: Kept<(u64, usize)>,
}

/// Permutations and what they are of.
type Kept<K> = Vec<(K, Arc<Vec<usize>>)>;

impl Order {
    /// The order of `len` examples in windows of `window`; `purpose` tells streams of one seed
    /// apart.
    ///
    /// # Panics
    /// When there is no example or the window is empty.
    pub fn new(seed: u64, purpose: &'static str, len: usize, window: usize) -> Self {
        assert!(
            len > 0 && window > 0,
            "an order needs examples and a window, not {len} and {window}"
        );
        Self {
            seed,
            purpose,
            len,
            window,
            recent: Mutex::default(),
        }
    }

    /// The epoch, and the example's index, at a position of the stream.
    pub fn epoch_and_index(&self, position: u64) -> (u64, usize) {
        let len = self.len as u64;
        let epoch = position / len;
        (epoch, self.index(epoch, (position % len) as usize))
    }

    /// Indices of the `batch` examples of step `step`, counted from 0.
    pub fn batch(&self, step: u64, batch: usize) -> Vec<usize> {
        let first = step * batch as u64;
        (first..first + batch as u64)
            .map(|position| self.epoch_and_index(position).1)
            .collect()
    }

    /// The example at a place of an epoch: windows in random order, and each in random order within itself.
    fn index(&self, epoch: u64, place: usize) -> usize {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let windows = found_or(&mut recent.windows, epoch, || {
            permutation(
                self.seed,
                self.purpose,
                epoch,
                self.len.div_ceil(self.window),
            )
        });
        let (slot, offset) = self.slot(&windows, place);
        let window = windows[slot];
        let start = window * self.window;
        let within = found_or(&mut recent.within, (epoch, window), || {
            let seed = key(self.seed, self.purpose, epoch, u64::MAX);
            let len = self.window.min(self.len - start);
            permutation(seed, self.purpose, window as u64, len)
        });
        start + within[offset]
    }

    /// Which of the windows in their order a place lies in, and how far. The dataset's last window may be
    /// shorter than the others.
    fn slot(&self, windows: &[usize], place: usize) -> (usize, usize) {
        let short = self.len % self.window;
        let is_last = |window: &usize| window + 1 == windows.len();
        let rank = if short > 0 {
            windows.iter().position(is_last)
        } else {
            None
        };
        match rank {
            Some(rank) if place >= rank * self.window => match place - rank * self.window {
                offset if offset < short => (rank, offset),
                beyond => {
                    let beyond = beyond - short;
                    (rank + 1 + beyond / self.window, beyond % self.window)
                }
            },
            _ => (place / self.window, place % self.window),
        }
    }
}

/// What is kept under a key, or made and kept; the oldest of three goes.
fn found_or<K: Copy + PartialEq>(
    kept: &mut Kept<K>,
    key: K,
    make: impl FnOnce() -> Vec<usize>,
) -> Arc<Vec<usize>> {
    if let Some((_, found)) = kept.iter().find(|(known, _)| *known == key) {
        return found.clone();
    }
    let made = Arc::new(make());
    kept.insert(0, (key, made.clone()));
    kept.truncate(2);
    made
}

/// Makes the item of the next step on another thread while the present one is in use.
///
/// What comes out is what `make(step)` returns; the thread only makes it earlier.
#[derive(Debug)]
pub struct Prefetch<T> {
    /// `None` only while dropping: a closed channel ends the thread.
    wanted: Option<Sender<u64>>,
    made: Receiver<(u64, T)>,
    /// Steps asked for and not yet received, in order.
    pending: Vec<u64>,
    worker: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// A prefetcher of `make(step)`.
    pub fn new(make: impl Fn(u64) -> T + Send + 'static) -> Self {
        let (wanted, orders) = channel::<u64>();
        let (finished, made) = channel();
        let worker = thread::spawn(move || {
            for step in orders {
                if finished.send((step, make(step))).is_err() {
                    break;
                }
            }
        });
        Self {
            wanted: Some(wanted),
            made,
            pending: Vec::new(),
            worker: Some(worker),
        }
    }

    /// The item of `step`; the item of `step + 1` is begun.
    ///
    /// # Panics
    /// When making an item panicked.
    pub fn next(&mut self, step: u64) -> T {
        self.request(step);
        self.request(step + 1);
        loop {
            let Ok((made, item)) = self.made.recv() else {
                self.rethrow()
            };
            self.pending.retain(|&pending| pending != made);
            if made == step {
                return item;
            }
        }
    }

    fn request(&mut self, step: u64) {
        if self.pending.contains(&step) {
            return;
        }
        self.pending.push(step);
        let sent = self
            .wanted
            .as_ref()
            .is_some_and(|wanted| wanted.send(step).is_ok());
        if !sent {
            self.rethrow();
        }
    }

    /// The thread is gone, so it has panicked; this thread goes on with its panic.
    fn rethrow(&mut self) -> ! {
        match self.worker.take().map(JoinHandle::join) {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            _ => panic!("the prefetching thread ended"),
        }
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.wanted = None;
        if let Some(worker) = self.worker.take() {
            // A panic there has been rethrown by `next`, or concerns an item nobody wants.
            drop(worker.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_a_permutation_and_epochs_differ() {
        let order = Order::new(1, "test", 103, 16);
        let mut epochs = Vec::new();
        for epoch in 0..3_u64 {
            let indices: Vec<usize> = (0..103)
                .map(|i| order.epoch_and_index(epoch * 103 + i))
                .inspect(|&(found, _)| assert_eq!(found, epoch))
                .map(|(_, index)| index)
                .collect();
            let mut sorted = indices.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..103).collect::<Vec<_>>());
            epochs.push(indices);
        }
        assert_ne!(epochs[0], epochs[1]);
        assert_ne!(epochs[1], epochs[2]);
    }

    #[test]
    fn the_order_does_not_depend_on_what_was_asked_before() {
        let walked = Order::new(7, "test", 10, 4);
        let steps: Vec<_> = (0..20).map(|step| walked.batch(step, 3)).collect();
        for step in (0..20).rev() {
            let fresh = Order::new(7, "test", 10, 4);
            assert_eq!(fresh.batch(step, 3), steps[step as usize]);
        }
        assert_ne!(
            Order::new(8, "test", 10, 4).batch(0, 10),
            Order::new(7, "test", 10, 4).batch(0, 10)
        );
        assert_ne!(
            Order::new(7, "else", 10, 4).batch(0, 10),
            Order::new(7, "test", 10, 4).batch(0, 10)
        );
    }

    /// The order, written down whole.
    fn whole(epoch: u64, len: usize, window: usize) -> Vec<usize> {
        let within_seed = key(1, "order", epoch, u64::MAX);
        permutation(1, "order", epoch, len.div_ceil(window))
            .into_iter()
            .flat_map(|index| {
                let start = index * window;
                let len = window.min(len - start);
                permutation(within_seed, "order", index as u64, len)
                    .into_iter()
                    .map(move |offset| start + offset)
            })
            .collect()
    }

    #[test]
    fn places_are_those_of_the_order_written_down_whole() {
        for (len, window) in [
            (1050, 100),
            (1000, 100),
            (7, 10),
            (10, 10),
            (11, 10),
            (5, 1),
        ] {
            let order = Order::new(1, "order", len, window);
            for epoch in 0..4 {
                assert_eq!(
                    order.batch(epoch, len),
                    whole(epoch, len, window),
                    "{len} by {window}"
                );
            }
        }
        let windows: Vec<usize> = whole(0, 1050, 100).iter().map(|i| i / 100).collect();
        assert!(!windows.is_sorted());
    }

    #[test]
    fn a_window_is_used_up_before_the_next_one() {
        let order = Order::new(3, "test", 64, 8);
        let indices = order.batch(0, 64);
        for window in indices.chunks(8) {
            assert!(
                window.iter().all(|index| index / 8 == window[0] / 8),
                "{window:?}"
            );
        }
    }

    #[test]
    fn prefetched_items_are_those_of_their_step() {
        let mut prefetch = Prefetch::new(|step| step * step);
        let items: Vec<u64> = (0..5).map(|step| prefetch.next(step)).collect();
        assert_eq!(items, [0, 1, 4, 9, 16]);
        assert_eq!(prefetch.next(20), 400, "a jump after a resume");
        assert_eq!(prefetch.next(20), 400, "the same step again");
    }

    #[test]
    #[should_panic(expected = "step 2 is bad")]
    fn a_panic_while_prefetching_reaches_the_caller() {
        let mut prefetch = Prefetch::new(|step| assert!(step < 2, "step {step} is bad"));
        (0..4).for_each(|step| prefetch.next(step));
    }
}
