//! How many connections, and how many requests, there may be at a time.
//!
//! What is counted is shared by all threads, in atomics. Only who has to wait for a place takes a lock, and who frees one that is waited for: it is
//! handed to the one who came first, so that nobody waits for ever.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// How many there are of something now.
#[derive(Debug, Default)]
pub struct Count {
    taken: AtomicUsize,
    waiting: AtomicUsize,
    /// Who came first is first.
    queue: Mutex<VecDeque<Waiter>>,
}

/// One that is counted, until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Count>);

/// A limit, and what it is a limit of.
#[derive(Clone, Debug)]
pub struct Bound {
    /// What is counted.
    pub count: Arc<Count>,
    /// At most.
    pub most: usize,
}

/// The places that one connection takes.
#[derive(Debug, Default)]
pub struct Held(Option<Box<[Place]>>);

#[derive(Debug)]
struct Waiter {
    most: usize,
    place: oneshot::Sender<Place>,
}

impl Count {
    /// How many there are.
    pub fn taken(&self) -> usize {
        self.taken.load(SeqCst)
    }

    /// How many wait for one to go.
    pub fn wanted(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    fn take(self: &Arc<Self>, most: usize) -> Option<Place> {
        let more = |taken| (taken < most).then_some(taken + 1);
        let taken = self.taken.fetch_update(SeqCst, SeqCst, more);
        taken.ok().map(|_| Place(Arc::clone(self)))
    }

    /// Gives what is free to those who wait, as far as it goes.
    fn hand_over(self: &Arc<Self>) {
        // Those whose waiters have gone meanwhile: they are freed when the lock is, for that may hand them over again.
        let mut left = Vec::new();
        let mut queue = self.queue.lock();
        let mut next = 0;
        while let Some(waiter) = queue.get(next) {
            let place = if waiter.place.is_closed() {
                None
            } else {
                self.take(waiter.most)
            };
            match place {
                Some(place) => left.extend(queue.remove(next).and_then(|waiter| waiter.place.send(place).err())),
                None if waiter.place.is_closed() => drop(queue.remove(next)),
                // It came when there was to be less, and who came last has a limit that is newer.
                None if queue.back().is_some_and(|last| last.most > waiter.most) => next += 1,
                None => break,
            }
        }
        drop(queue);
    }
}

impl Bound {
    /// One more. `None`: there are as many as there may be.
    pub fn take(&self) -> Option<Place> {
        self.count.take(self.most)
    }

    /// One more, whether there may be one or not.
    pub fn beyond(&self) -> Place {
        self.count.taken.fetch_add(1, SeqCst);
        Place(Arc::clone(&self.count))
    }

    /// The same as [`Bound::take`], behind those who wait.
    fn take_behind(&self) -> Option<Place> {
        if self.count.wanted() > 0 { None } else { self.take() }
    }

    /// One more, as soon as there may be one, behind those who wait.
    async fn wait(&self) -> Place {
        self.count.waiting.fetch_add(1, SeqCst);
        let _waits = Waits(&self.count);
        let (place, mine) = oneshot::channel();
        let most = self.most;
        self.count.queue.lock().push_back(Waiter { most, place });
        // Who frees one looks for who waits after it has, and so one of both sees the other.
        self.count.hand_over();
        match mine.await {
            Ok(place) => place,
            // Who is forgotten, which does not happen.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Held {
    /// One place of each.
    ///
    /// # Errors
    /// Which of them has none.
    pub fn take(bounds: &[Bound]) -> Result<Self, usize> {
        Self::each(bounds, |_, bound| bound.take())
    }

    /// The same, behind those who wait.
    ///
    /// # Errors
    /// Which of them has none.
    pub fn take_behind(bounds: &[Bound]) -> Result<Self, usize> {
        Self::each(bounds, |_, bound| bound.take_behind())
    }

    /// The same as soon as there is one of each. `make_room` is called before it waits. What is counted widest comes first in `bounds`.
    ///
    /// The place that is counted narrowest is waited for first, and held while the wider ones are waited for. So each is waited for once, behind
    /// those who came before. Nobody waits in a circle, since what is wider is never held while something narrower is waited for, which may last
    /// for days; and who wants the narrower place needs the wider one as well.
    pub async fn wait(bounds: &[Bound], make_room: impl Fn()) -> Self {
        if let Ok(held) = Self::take_behind(bounds) {
            return held;
        }
        let mut places = Vec::with_capacity(bounds.len());
        for bound in bounds.iter().rev() {
            let free = bound.take_behind();
            places.push(match free {
                Some(place) => place,
                None => {
                    make_room();
                    bound.wait().await
                }
            });
        }
        Self(Some(places.into()))
    }

    /// One place of each, whether there is one or not.
    pub fn beyond(bounds: &[Bound]) -> Self {
        let places: Box<[_]> = bounds.iter().map(Bound::beyond).collect();
        Self((!places.is_empty()).then_some(places))
    }

    fn each(bounds: &[Bound], mut take: impl FnMut(usize, &Bound) -> Option<Place>) -> Result<Self, usize> {
        if bounds.is_empty() {
            return Ok(Self::default());
        }
        let places: Result<_, _> = (0..).zip(bounds).map(|(n, bound)| take(n, bound).ok_or(n)).collect();
        places.map(|places| Self(Some(places)))
    }

    /// Whether nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, SeqCst);
        if self.0.wanted() > 0 {
            self.0.hand_over();
        }
    }
}

struct Waits<'a>(&'a Arc<Count>);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let waiting = self.0.waiting.fetch_sub(1, SeqCst) - 1;
        // Who has gone is not kept, however long the others wait.
        let mut queue = self.0.queue.lock();
        if queue.len() > 2 * waiting + 16 {
            queue.retain(|waiter| !waiter.place.is_closed());
        }
        drop(queue);
        if waiting > 0 {
            // Those behind it need not wait for what it did.
            self.0.hand_over();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Bound, Count, Held};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::time::Duration;

    fn bound(most: usize) -> Bound {
        Bound {
            count: Arc::<Count>::default(),
            most,
        }
    }

    #[test]
    fn a_place_is_taken_until_it_is_dropped() {
        let bounds = [bound(2), bound(1)];
        let first = Held::take(&bounds).unwrap();
        assert_eq!(Held::take(&bounds).unwrap_err(), 1);
        assert_eq!(bounds[0].count.taken(), 1, "what is not used is given back");
        drop(first);
        assert!(Held::take(&bounds).is_ok());
        assert_eq!(bounds.map(|b| b.count.taken()), [0, 0]);
    }

    #[tokio::test]
    async fn who_waits_by_an_older_limit_does_not_hold_up_who_has_a_newer_one() {
        let old = bound(1);
        let new = Bound { most: 3, ..old.clone() };
        let held = Held::take(std::slice::from_ref(&old)).unwrap();
        let wait = |bound: &Bound| {
            let bound = bound.clone();
            tokio::spawn(async move { Held::wait(&[bound], || {}).await })
        };
        let first = wait(&old);
        tokio::task::yield_now().await;
        let second = tokio::time::timeout(Duration::from_secs(10), wait(&new));
        let second = second.await.expect("it waits for the other").unwrap();
        assert!(!first.is_finished());
        // Who gives up leaves nothing behind.
        let gives_up = wait(&old);
        tokio::task::yield_now().await;
        gives_up.abort();
        assert!(gives_up.await.is_err());
        drop((held, second));
        drop(first.await.unwrap());
        assert_eq!((old.count.taken(), old.count.wanted()), (0, 0));
    }

    /// Who waits for one of them does not keep others from the other.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn whoever_waits_gets_one_and_there_are_never_more() {
        let all = bound(3);
        let each: [Bound; 4] = std::array::from_fn(|_| bound(1));
        let (most, served) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..400 {
            let bounds = [all.clone(), each[n % 4].clone()];
            let (most, served) = (Arc::clone(&most), Arc::clone(&served));
            tasks.spawn(async move {
                let held = Held::wait(&bounds, || {}).await;
                most.fetch_max(bounds[0].count.taken(), SeqCst);
                assert_eq!(bounds[1].count.taken(), 1);
                tokio::task::yield_now().await;
                drop(held);
                served.fetch_add(1, SeqCst);
            });
            // Some give up.
            if n % 10 == 9 {
                tasks.spawn(std::future::ready(())).abort();
            }
        }
        while let Some(ended) = tasks.join_next().await {
            assert!(ended.is_ok() || ended.unwrap_err().is_cancelled());
        }
        assert_eq!(served.load(SeqCst), 400);
        assert!(most.load(SeqCst) <= 3);
        assert_eq!(all.count.wanted(), 0);
        assert_eq!(all.count.taken(), 0);
    }

    /// Who needs two waits for each of them once, though others always want both.
    #[tokio::test]
    async fn who_waits_for_two_has_them_after_those_who_came_before() {
        let bounds = [bound(1), bound(1)];
        let served = Arc::<AtomicUsize>::default();
        let mut others = tokio::task::JoinSet::new();
        for n in 0..6 {
            let (bound, served) = (bounds[n % 2].clone(), Arc::clone(&served));
            others.spawn(async move {
                loop {
                    let held = Held::wait(std::slice::from_ref(&bound), || {}).await;
                    served.fetch_add(1, SeqCst);
                    for _ in 0..=n {
                        tokio::task::yield_now().await;
                    }
                    drop(held);
                }
            });
        }
        while served.load(SeqCst) < 20 {
            tokio::task::yield_now().await;
        }
        let victim = tokio::spawn(async move { Held::wait(&bounds, || {}).await });
        while !victim.is_finished() {
            // Three come before it at each of them, and at the other meanwhile some more.
            assert!(served.load(SeqCst) < 20 + 100, "it starves");
            tokio::task::yield_now().await;
        }
    }
}
