//! The paths by which one thread came to its calls: a tree whose nodes are a function each, as
//! called by the function of the node above.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Nodes that there is room for.
const NODES: usize = 1 << 16;
/// Where a node is looked for: at most half of the places are taken, so that few are looked at.
const PLACES: usize = 2 * NODES;

/// The node above all.
pub const ROOT: u32 = 0;

/// A function on one path. All zero where there is none yet.
#[derive(Default)]
struct Node {
    above: AtomicU32,
    function: AtomicU32,
    entries: AtomicU64,
    exits: AtomicU64,
    /// From entry to exit, of all its calls.
    ticks: AtomicU64,
}

/// The tree. Its thread writes; others may read.
pub struct Paths {
    nodes: Box<[Node]>,
    /// Nodes that there are.
    used: AtomicU32,
    /// Numbers of nodes, found from what the node stands for; 0 where there is none.
    places: Box<[AtomicU32]>,
}

impl Paths {
    pub fn new() -> Self {
        Self {
            nodes: (0..NODES).map(|_| Node::default()).collect(),
            used: AtomicU32::new(ROOT + 1),
            places: (0..PLACES).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    fn node(&self, number: u32) -> Option<&Node> {
        self.nodes.get(number as usize)
    }

    /// Counts an entry of `function`, called from the node `above`, and returns its node; `None`
    /// when there is no room for it.
    pub fn enter(&self, above: u32, function: u32) -> Option<u32> {
        let wanted = u64::from(above) << 32 | u64::from(function);
        // Multiplied by a constant of about 2^64 divided by the golden ratio, the upper bits
        // depend on all bits.
        let hash = wanted.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - PLACES.ilog2());
        for at in hash as usize.. {
            let place = &self.places[at % PLACES];
            let found = match place.load(Relaxed) {
                0 => self.add(place, above, function)?,
                found => found,
            };
            let node = self.node(found)?;
            if node.above.load(Relaxed) == above && node.function.load(Relaxed) == function {
                node.entries.store(node.entries.load(Relaxed) + 1, Relaxed);
                return Some(found);
            }
        }
        None
    }

    fn add(&self, place: &AtomicU32, above: u32, function: u32) -> Option<u32> {
        let number = self.used.load(Relaxed);
        let node = self.node(number)?;
        node.above.store(above, Relaxed);
        node.function.store(function, Relaxed);
        self.used.store(number + 1, Relaxed);
        place.store(number, Relaxed);
        Some(number)
    }

    /// Counts an exit of `function`, whose node is `at` or above it: functions between them were
    /// left without a return. Returns the node above it.
    pub fn leave(&self, mut at: u32, function: u32, ticks: u64) -> u32 {
        while at != ROOT
            && let Some(node) = self.node(at)
        {
            at = node.above.load(Relaxed);
            if node.function.load(Relaxed) == function {
                node.exits.store(node.exits.load(Relaxed) + 1, Relaxed);
                node.ticks.store(node.ticks.load(Relaxed) + ticks, Relaxed);
                break;
            }
        }
        at
    }

    /// Every path, with what was counted there.
    pub fn walk(&self) -> Vec<Path> {
        let used = self.used.load(Relaxed) as usize;
        let mut paths: Vec<Path> = Vec::with_capacity(used);
        for node in &self.nodes[..used] {
            let above = node.above.load(Relaxed) as usize;
            let ticks = node.ticks.load(Relaxed);
            // What stands above was made earlier.
            if let Some(above) = paths.get_mut(above) {
                above.own_ticks = above.own_ticks.saturating_sub(ticks);
            }
            paths.push(Path {
                above,
                function: node.function.load(Relaxed) as usize,
                entries: node.entries.load(Relaxed),
                exits: node.exits.load(Relaxed),
                own_ticks: ticks,
            });
        }
        paths
    }
}

/// A function, as called on one path. The first of a walk is above all and no function.
pub struct Path {
    /// Where its caller is in the walk.
    pub above: usize,
    /// The function's position in the selection.
    pub function: usize,
    pub entries: u64,
    pub exits: u64,
    /// Time in the function itself: in no other hooked function that it called.
    pub own_ticks: u64,
}
