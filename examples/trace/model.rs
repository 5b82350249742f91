//! The shop that the workload keeps twice: once in SQLite, once in these plain
//! collections. Whatever SQLite answers, the collections must answer too.

use std::collections::{BTreeMap, BTreeSet};

use crate::random::Random;

/// How many customers there are; their ids are `1..=CUSTOMERS`.
pub const CUSTOMERS: i64 = 120;
/// How many purchases there are between two transactions: as many go as come.
pub const PURCHASES: i64 = 800;
/// Purchases fall on days `0..DAYS`, counted from 1970-01-01.
pub const DAYS: i64 = 500;
/// Where customers live.
pub const CITIES: [&str; 6] = ["Bergen", "Cork", "Delft", "Graz", "Lyon", "Turku"];
/// What notes are made of. No word is part of another; one is not ASCII.
pub const WORDS: [&str; 12] = [
    "amber", "birch", "café", "delta", "ember", "fjord", "grain", "Harbor", "islet", "jetty",
    "Kelp", "lumen",
];

/// One row of the table `customer`; score and tags are in its JSON column `profile`.
pub struct Customer {
    pub name: String,
    pub city: &'static str,
    pub score: i64,
    pub tags: Vec<i64>,
}

impl Customer {
    /// The text of the column `profile`, as SQLite itself would write it.
    pub fn profile(&self) -> String {
        let tags: Vec<String> = self.tags.iter().map(i64::to_string).collect();
        format!(r#"{{"score":{},"tags":[{}]}}"#, self.score, tags.join(","))
    }
}

/// One row of the table `purchase`.
pub struct Purchase {
    pub customer: i64,
    pub day: i64,
    pub amount: i64,
    pub note: String,
}

impl Purchase {
    /// Whether the note has this word, which must be lower case; the note's case is ignored.
    pub fn mentions(&self, word: &str) -> bool {
        self.note.split(' ').any(|w| w.eq_ignore_ascii_case(word))
    }
}

/// Everything that the database of one thread holds.
pub struct Model {
    pub customers: BTreeMap<i64, Customer>,
    pub purchases: BTreeMap<i64, Purchase>,
    /// How often each customer came: the table `visit`.
    pub visits: BTreeMap<i64, i64>,
    /// The id that the next purchase gets.
    pub next_purchase: i64,
}

impl Model {
    /// A shop with customers and no purchases yet.
    pub fn new(random: &mut Random) -> Self {
        let customers = (1..=CUSTOMERS).map(|id| {
            let tags: BTreeSet<i64> =
                (0..random.between(1, 5)).map(|_| random.between(0, 9)).collect();
            let customer = Customer {
                name: format!("{} {id}", random.pick(&WORDS)),
                city: random.pick(&CITIES),
                score: random.between(0, 100),
                tags: tags.into_iter().collect(),
            };
            (id, customer)
        });
        Self {
            customers: customers.collect(),
            purchases: BTreeMap::new(),
            visits: BTreeMap::new(),
            next_purchase: 1,
        }
    }

    /// A purchase that nobody has made yet.
    pub fn imagine_purchase(random: &mut Random) -> Purchase {
        let note: Vec<&str> = (0..random.between(2, 6)).map(|_| random.pick(&WORDS)).collect();
        Purchase {
            customer: random.between(1, CUSTOMERS + 1),
            day: random.between(0, DAYS),
            amount: random.between(-50, 1000),
            note: note.join(" "),
        }
    }

    /// The purchases of one customer with their ids, oldest id first.
    pub fn purchases_of(&self, customer: i64) -> impl Iterator<Item = (i64, &Purchase)> {
        self.purchases.iter().filter(move |(_, p)| p.customer == customer).map(|(id, p)| (*id, p))
    }

    /// The customers of one city with their ids, smallest id first.
    pub fn customers_of(&self, city: &str) -> impl Iterator<Item = (i64, &Customer)> {
        self.customers.iter().filter(move |(_, c)| c.city == city).map(|(id, c)| (*id, c))
    }

    /// The id of a purchase that exists, or existed, or will.
    pub fn any_purchase(&self, random: &mut Random) -> i64 {
        random.between(self.next_purchase - PURCHASES - 20, self.next_purchase + 20)
    }
}
