//! Chance that can be repeated: the same seed gives the same sequence.

use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A sequence of rolls, shared by all requests.
#[derive(Debug)]
pub(crate) struct Dice {
    seed: u64,
    rolls: AtomicU64,
}

impl Dice {
    /// `None`: a different sequence in every process.
    pub(crate) fn new(seed: Option<u64>) -> Self {
        Self {
            seed: seed.unwrap_or_else(rand::random),
            rolls: AtomicU64::new(0),
        }
    }

    /// True with this probability, 0 to 1.
    pub(crate) fn roll(&self, probability: f64) -> bool {
        self.next().random_bool(probability)
    }

    /// One of the choices, all equally likely.
    pub(crate) fn pick<'a, T>(&self, choices: &'a [T]) -> Option<&'a T> {
        (!choices.is_empty()).then(|| &choices[self.next().random_range(0..choices.len())])
    }

    /// A random word of 64 bits.
    pub(crate) fn word(&self) -> u64 {
        self.next().random()
    }

    fn next(&self) -> SmallRng {
        let roll = self.rolls.fetch_add(1, Ordering::Relaxed);
        SmallRng::seed_from_u64(self.seed.wrapping_add(roll))
    }
}

/// Parses a probability for clap.
pub(crate) fn probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if (0.0..=1.0).contains(&p) => Ok(p),
        _ => Err("a probability is a number from 0 to 1, like 0.15".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Dice, probability};

    #[test]
    fn a_seed_repeats_and_the_rate_is_kept() {
        let rolls = |seed| -> Vec<bool> {
            let dice = Dice::new(Some(seed));
            (0..10_000).map(|_| dice.roll(0.15)).collect()
        };
        assert_eq!(rolls(7), rolls(7));
        let failures = rolls(7).into_iter().filter(|failed| *failed).count();
        assert!((1_300..1_700).contains(&failures), "{failures} of 10000 at 15 %");
    }

    #[test]
    fn probabilities() {
        assert_eq!(probability("0.15"), Ok(0.15));
        for wrong in ["", "1.1", "-0.1", "15%", "NaN"] {
            assert!(probability(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
