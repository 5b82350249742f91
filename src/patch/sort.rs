//! Sorting that cannot panic. The one of `core` does, for an order that is none, and with it
//! the code of a panic would be in every kernel.

use core::cell::Cell;

/// Sorts `items` in place, the one with the smallest key first: bit by bit, from the highest in
/// which keys differ (radix exchange). Items with equal keys may come in any order.
pub(super) fn sort_by_key<T: Copy>(items: &mut [T], key: impl Fn(&T) -> u64) {
    let items = Cell::from_mut(items).as_slice_of_cells();
    let Some(first) = items.first().map(|item| key(&item.get())) else { return };
    let differ = items.iter().fold(0, |differ, item| differ | (key(&item.get()) ^ first));
    sort(items, differ.checked_ilog2().map_or(0, |highest| 1 << highest), &key);
}

/// Sorts items whose keys are the same in all bits above the one in `bit`. Calls itself once
/// for a bit, 64 deep at the most.
fn sort<T: Copy>(mut items: &[Cell<T>], mut bit: u64, key: &impl Fn(&T) -> u64) {
    while bit != 0 && items.len() > 1 {
        // Those before `zeros` have a zero there, and those from there to `item` a one: one of
        // these and `item` may change places whatever `item` has, so that nothing depends on a
        // branch, which a processor could not foresee.
        let mut zeros = 0;
        for item in items {
            let Some(first_one) = items.get(zeros) else { return };
            zeros += usize::from(key(&item.get()) & bit == 0);
            first_one.set(item.replace(first_one.get()));
        }
        let Some((zeros, ones)) = items.split_at_checked(zeros) else { return };
        bit >>= 1;
        sort(zeros, bit, key);
        items = ones;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn every_order_of_few_and_many_orders_of_many_are_sorted() {
        // All sequences of up to 6 digits below 6, with repetitions: 6^6 of them at the longest.
        for len in 0..=6_u32 {
            for number in 0..6_u32.pow(len) {
                let digit = |at| u64::from(number / 6_u32.pow(at) % 6);
                let mut items: Vec<_> = (0..len).map(digit).collect();
                let mut expected = items.clone();
                expected.sort_unstable();
                sort_by_key(&mut items, |item| *item);
                assert_eq!(items, expected);
            }
        }
        let mut state = 1_u64;
        for len in [7, 100, 1023, 1024, 1025, 20_000] {
            for shift in [0, 20, 40, 56] {
                let mut next = || {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> shift, state)
                };
                let mut items: Vec<_> = (0..len).map(|_| next()).collect();
                let mut expected = items.clone();
                expected.sort_by_key(|item| item.0);
                sort_by_key(&mut items, |item| item.0);
                assert!(items.iter().map(|item| item.0).eq(expected.iter().map(|item| item.0)));
                // Nothing was lost or doubled.
                items.sort_unstable();
                expected.sort_unstable();
                assert_eq!(items, expected);
            }
        }
    }
}
