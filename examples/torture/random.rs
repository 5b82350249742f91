//! Chance that is the same in every run, as far as threads allow.

/// A splitmix64 generator.
#[derive(Clone, Copy)]
pub struct Random(u64);

impl Random {
    /// A generator that always continues in the same way from `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Any number below `bound`; 0 if that is 0.
    pub const fn below(&mut self, bound: usize) -> usize {
        (self.next() % if bound == 0 { 1 } else { bound as u64 }) as usize
    }
}
