//! Selections of the functions that stay loaded: small and large, overlapping.

use std::sync::Arc;

use fentry::host::Functions;

use crate::random::Random;
use crate::watch::World;

/// Some of the world's functions.
pub struct Selection {
    pub functions: Functions,
    /// Their numbers in the world, in the order of `functions`.
    pub numbers: Arc<[u32]>,
}

impl Selection {
    fn new(functions: Functions, world: &World) -> Self {
        let number = |entry: u64| world.number_at(entry);
        let numbers = functions.iter().map(|function| number(function.entry().get())).collect();
        Self { functions, numbers }
    }
}

/// All of the world's functions, and `count` selections of them: in turn one function, a few
/// neighbours, many neighbours, and every second or third of many.
pub fn selections(
    world: &World,
    functions: &Functions,
    count: usize,
) -> Result<(Selection, Vec<Selection>), String> {
    let is_known = |entry: u64| (world.number_at(entry) as usize) < world.targets.len();
    let known = functions.filter(|function| is_known(function.entry().get()));
    let all = Selection::new(known, world);
    if all.numbers.len() != world.targets.len() {
        return Err(format!(
            "{} of {} functions were found: were the flags understood?",
            all.numbers.len(),
            world.targets.len()
        ));
    }
    let mut random = Random::new(count as u64);
    let mut made = Vec::with_capacity(count);
    for turn in 0..count {
        let total = all.numbers.len();
        let longest = match turn % 4 {
            0 => 1,
            1 => 32.min(total),
            2 => total / 8,
            _ => total / 2,
        };
        let length = 1 + random.below(longest);
        let start = random.below(total - length + 1);
        let step = if turn % 4 == 3 { 2 + random.below(2) } else { 1 };
        let mut position = 0..;
        let some = all.functions.filter(|_| {
            let position = position.next().unwrap_or(usize::MAX);
            position >= start
                && position < start + length
                && (position - start).is_multiple_of(step)
        });
        made.push(Selection::new(some, world));
    }
    Ok((all, made))
}
