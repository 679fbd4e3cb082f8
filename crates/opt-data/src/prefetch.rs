//! Batches that are read ahead.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::{Batches, Error, Result, ResultExt, Tensor};

/// Batches that another thread reads ahead: [`Batches::prefetch`].
///
/// An error of the data set is the item of its batch, as without. A panic of the data set becomes
/// one of the thread that iterates, at the batch where it happened.
#[derive(Debug)]
pub struct Prefetch<'scope> {
    /// None once the iterator is done, so that a thread that waits to send gives up.
    batches: Option<Receiver<Result<Vec<Tensor>>>>,
    thread: Option<ScopedJoinHandle<'scope, ()>>,
    left: usize,
}

impl<'scope> Prefetch<'scope> {
    pub(crate) fn start<'data: 'scope>(
        batches: Batches<'data>,
        ahead: usize,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<Prefetch<'scope>> {
        if ahead == 0 {
            return Err(Error::invalid(
                "0 batches to read ahead; expected at least 1",
            ));
        }
        let left = batches.len();
        // The thread itself holds one more, which it assembles or waits to send.
        let (send, receive) = sync_channel((ahead - 1).min(left));
        let work = move || {
            for batch in batches {
                if send.send(batch).is_err() {
                    break;
                }
            }
        };
        let thread = Builder::new()
            .name("batches".into())
            .spawn_scoped(scope, work)
            .map_err(Error::from)
            .at(|| "starting a thread for batches")?;
        Ok(Prefetch {
            batches: Some(receive),
            thread: Some(thread),
            left,
        })
    }

    /// Waits for the thread to end; its panic is given back.
    fn join(&mut self) -> std::thread::Result<()> {
        self.batches = None;
        self.thread.take().map_or(Ok(()), ScopedJoinHandle::join)
    }
}

impl Iterator for Prefetch<'_> {
    type Item = Result<Vec<Tensor>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.batches.as_ref()?.recv() {
            Ok(batch) => {
                self.left -= 1;
                Some(batch)
            }
            // All have arrived, or the thread has panicked.
            Err(_) => {
                self.left = 0;
                if let Err(panic) = self.join() {
                    std::panic::resume_unwind(panic);
                }
                None
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Prefetch<'_> {}

impl Drop for Prefetch<'_> {
    fn drop(&mut self) {
        // Joined here, a panic at a batch that nobody asked for does not reach the scope.
        let _ = self.join();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::thread::{scope, sleep};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{Dataset, ErrorKind};

    /// Examples that are their index; some fail, some panic.
    struct Numbers {
        len: usize,
        fails_at: usize,
        panics_at: usize,
        read: AtomicUsize,
    }

    impl Numbers {
        fn new(len: usize) -> Numbers {
            Numbers {
                len,
                fails_at: usize::MAX,
                panics_at: usize::MAX,
                read: AtomicUsize::new(0),
            }
        }
    }

    impl Dataset for Numbers {
        fn len(&self) -> usize {
            self.len
        }

        fn get(&self, index: usize) -> Result<Vec<Tensor>> {
            assert!(index != self.panics_at, "example {index} is bad");
            if index == self.fails_at {
                return Err(Error::new(ErrorKind::Data, format!("example {index}")));
            }
            self.read.fetch_add(1, SeqCst);
            Ok(vec![Tensor::scalar(index as i64)])
        }
    }

    fn values(batch: Result<Vec<Tensor>>) -> Result<Vec<i64>> {
        batch?[0].to_vec()
    }

    #[test]
    fn order_and_content_are_the_same() {
        let data = Numbers::new(23);
        for ahead in [1, 2, 100, usize::MAX] {
            let batches = Batches::new(&data, 4).unwrap().shuffled(1, 2).skip_to(1);
            let plain: Vec<_> = batches.clone().map(|b| values(b).unwrap()).collect();
            let ahead: Vec<_> = scope(|s| {
                let mut batches = batches.prefetch(ahead, s).unwrap();
                assert_eq!(batches.len(), 5);
                let all = batches.by_ref().map(|b| values(b).unwrap()).collect();
                assert_eq!(batches.len(), 0);
                assert!(batches.next().is_none());
                all
            });
            assert_eq!(ahead, plain);
        }
        let batches = Batches::new(&data, 4).unwrap();
        scope(|s| assert!(batches.prefetch(0, s).is_err()));
    }

    #[test]
    fn no_more_is_read_than_asked_for() {
        for ahead in [1, 3] {
            let data = Numbers::new(100);
            scope(|s| {
                let batches = Batches::new(&data, 5).unwrap();
                let mut batches = batches.prefetch(ahead, s).unwrap();
                for taken in 0..4 {
                    let most = 5 * (taken + ahead);
                    let start = Instant::now();
                    while data.read.load(SeqCst) < most && start.elapsed().as_secs() < 20 {
                        sleep(Duration::from_millis(1));
                    }
                    // It got so far without being asked, and stays there.
                    sleep(Duration::from_millis(20));
                    assert_eq!(data.read.load(SeqCst), most);
                    batches.next().unwrap().unwrap();
                }
            });
        }
    }

    #[test]
    fn errors_are_items_as_without() {
        let mut data = Numbers::new(9);
        data.fails_at = 4;
        let batches = Batches::new(&data, 2).unwrap();
        let text = |b: Result<Vec<Tensor>>| values(b).map_err(|e| e.to_string());
        let plain: Vec<_> = batches.clone().map(text).collect();
        assert_eq!(plain[2], Err("example 4".to_string()));
        let ahead: Vec<_> = scope(|s| batches.prefetch(2, s).unwrap().map(text).collect());
        assert_eq!(ahead, plain);
    }

    #[test]
    fn a_panic_arrives_at_its_batch() {
        let mut data = Numbers::new(9);
        data.panics_at = 4;
        scope(|s| {
            let mut batches = Batches::new(&data, 2).unwrap().prefetch(3, s).unwrap();
            assert_eq!(values(batches.next().unwrap()).unwrap(), [0, 1]);
            assert_eq!(values(batches.next().unwrap()).unwrap(), [2, 3]);
            let panic = catch_unwind(AssertUnwindSafe(|| batches.next())).unwrap_err();
            assert_eq!(panic.downcast_ref::<String>().unwrap(), "example 4 is bad");
            assert!(batches.next().is_none());
        });
    }

    #[test]
    fn dropping_ends_the_thread() {
        let mut data = Numbers::new(1000);
        data.panics_at = 6;
        scope(|s| {
            let mut batches = Batches::new(&data, 2).unwrap().prefetch(2, s).unwrap();
            batches.next().unwrap().unwrap();
            drop(batches);
            let read = data.read.load(SeqCst);
            assert!(read <= 6);
            sleep(Duration::from_millis(20));
            assert_eq!(data.read.load(SeqCst), read);
            // The scope ends without waiting for the rest.
        });
    }
}
