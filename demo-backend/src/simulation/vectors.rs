//! Embeddings that depend on nothing but the text.

use crate::rng::{Rng, hash};

/// How many places of the vector each word moves.
const PLACES: usize = 8;

/// A vector of length 1 for a text: texts that share words point in similar directions (feature hashing, Weinberger 2009).
///
/// ```text
/// embed("red apple", n) . embed("green apple", n)  >  embed("red apple", n) . embed("tax law", n)
/// ```
pub(crate) fn embed(text: &str, dimensions: u32) -> Vec<f32> {
    let mut vector = vec![0.0_f32; dimensions as usize];
    let words = text.split(|c: char| !c.is_alphanumeric());
    let mut empty = true;
    for word in words.filter(|word| !word.is_empty()) {
        empty = false;
        add(&mut vector, hash(word.to_lowercase().as_bytes()));
    }
    if empty {
        add(&mut vector, hash(text.as_bytes()));
    }
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        for x in &mut vector {
            *x /= length;
        }
    } else if let Some(first) = vector.first_mut() {
        // Words that cancel out still need a direction.
        *first = 1.0;
    }
    vector
}

fn add(vector: &mut [f32], word: u64) {
    let mut rng = Rng::of(word, 0);
    for _ in 0..PLACES {
        let place = rng.below(vector.len() as u32) as usize;
        let sign = if rng.next() & 1 == 0 { 1.0 } else { -1.0 };
        vector[place] += sign;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn vectors_have_length_one_and_depend_on_the_text_alone() {
        for text in ["Where is the train?", "...", "ä", "x"] {
            for dimensions in [1, 8, 256] {
                let vector = embed(text, dimensions);
                assert_eq!(vector.len(), dimensions as usize);
                assert!((product(&vector, &vector) - 1.0).abs() < 1e-5, "{text}");
                assert_eq!(vector, embed(text, dimensions));
            }
        }
    }

    #[test]
    fn texts_that_share_words_are_closer() {
        let [a, b, c] = ["a red apple", "A green apple!", "tax law of 1913"].map(|t| embed(t, 512));
        assert!(product(&a, &b) > 0.4, "{}", product(&a, &b));
        assert!(product(&a, &c) < 0.2, "{}", product(&a, &c));
    }
}
