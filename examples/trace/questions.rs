//! The queries: each one in SQL, and beside it the answer that plain Rust gives.

use core::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use rusqlite::types::Value;

use crate::model::{CITIES, CUSTOMERS, DAYS, Model, WORDS};
use crate::random::Random;

/// A query and the rows that it must return, in this order.
pub struct Question {
    pub sql: &'static str,
    pub parameters: Vec<Value>,
    pub answer: Vec<Vec<Value>>,
}

/// Makes a row of anything that SQLite has a type for.
macro_rules! row {
    ($($value:expr),* $(,)?) => { vec![$(Value::from($value)),*] };
}
pub(crate) use row;

/// Every kind of question but [`lookup`], which is asked more often.
pub const KINDS: [fn(&Model, &mut Random) -> Question; 17] = [
    history,
    cities,
    running_total,
    ranking,
    profiles,
    popular_tags,
    members,
    like,
    text_functions,
    diary,
    calendar,
    months,
    lost_customers,
    frugal,
    search,
    rectangle,
    classes,
];

/// One purchase by its primary key; some ids do not exist.
pub fn lookup(model: &Model, random: &mut Random) -> Question {
    let id = model.any_purchase(random);
    let found = model.purchases.get(&id);
    Question {
        sql: "SELECT customer, day, amount, note FROM purchase WHERE id = ?1",
        parameters: row![id],
        answer: found
            .map(|p| row![p.customer, p.day, p.amount, p.note.clone()])
            .into_iter()
            .collect(),
    }
}

/// A range of an index with two columns, backwards.
fn history(model: &Model, random: &mut Random) -> Question {
    let customer = random.between(1, CUSTOMERS + 1);
    let (first, last) = (random.between(0, DAYS / 2), random.between(DAYS / 2, DAYS));
    let mut found: Vec<_> =
        model.purchases_of(customer).filter(|(_, p)| (first..=last).contains(&p.day)).collect();
    found.sort_by_key(|(id, p)| (Reverse(p.day), *id));
    Question {
        sql: "SELECT id, day, amount FROM purchase
              WHERE customer = ?1 AND day BETWEEN ?2 AND ?3 ORDER BY day DESC, id",
        parameters: row![customer, first, last],
        answer: found.into_iter().map(|(id, p)| row![id, p.day, p.amount]).collect(),
    }
}

/// A join with aggregates.
fn cities(model: &Model, random: &mut Random) -> Question {
    let least = random.between(1, 160);
    let mut amounts: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for purchase in model.purchases.values() {
        amounts.entry(model.customers[&purchase.customer].city).or_default().push(purchase.amount);
    }
    let answer = amounts.into_iter().filter(|(_, a)| a.len() as i64 >= least).map(|(city, a)| {
        let (count, sum) = (a.len() as i64, a.iter().sum::<i64>());
        row![
            city.to_owned(),
            count,
            sum,
            a.iter().min().copied(),
            a.iter().max().copied(),
            sum as f64 / count as f64
        ]
    });
    Question {
        sql: "SELECT city, count(*), sum(amount), min(amount), max(amount), avg(amount)
              FROM purchase JOIN customer ON customer.id = purchase.customer
              GROUP BY city HAVING count(*) >= ?1 ORDER BY city",
        parameters: row![least],
        answer: answer.collect(),
    }
}

/// Window functions over one partition.
fn running_total(model: &Model, random: &mut Random) -> Question {
    let customer = random.between(1, CUSTOMERS + 1);
    let mut found: Vec<_> = model.purchases_of(customer).collect();
    found.sort_by_key(|(id, p)| (p.day, *id));
    let (mut sum, mut before) = (0, 0);
    let rows = found.into_iter().zip(1_i64..).map(|((id, p), number)| {
        sum += p.amount;
        row![id, number, sum, core::mem::replace(&mut before, p.amount)]
    });
    Question {
        sql: "SELECT id, row_number() OVER w, sum(amount) OVER w, lag(amount, 1, 0) OVER w
              FROM purchase WHERE customer = ?1 WINDOW w AS (ORDER BY day, id) ORDER BY day, id",
        parameters: row![customer],
        answer: rows.collect(),
    }
}

/// A window function with many partitions, in a subquery.
fn ranking(model: &Model, random: &mut Random) -> Question {
    let day = random.between(DAYS / 2, DAYS);
    let mut amounts: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for purchase in model.purchases.values().filter(|p| p.day >= day) {
        amounts.entry(purchase.customer).or_default().push(purchase.amount);
    }
    let rows = amounts.into_iter().flat_map(|(customer, mut amounts)| {
        amounts.sort_by_key(|amount| Reverse(*amount));
        let best = amounts[0];
        let ties = amounts.into_iter().take_while(move |amount| *amount == best);
        ties.map(move |amount| row![customer, amount])
    });
    Question {
        sql: "SELECT customer, amount FROM (
                  SELECT customer, amount, rank() OVER (PARTITION BY customer ORDER BY amount DESC) AS place
                  FROM purchase WHERE day >= ?1)
              WHERE place = 1 ORDER BY customer",
        parameters: row![day],
        answer: rows.collect(),
    }
}

/// Values taken out of JSON.
fn profiles(model: &Model, random: &mut Random) -> Question {
    let city = random.pick(&CITIES);
    let rows = model
        .customers_of(city)
        .map(|(id, c)| row![id, c.name.clone(), c.score, c.tags[0], c.tags.len() as i64]);
    Question {
        sql: "SELECT id, name, profile ->> '$.score', json_extract(profile, '$.tags[0]'),
                     json_array_length(profile, '$.tags')
              FROM customer WHERE city = ?1 ORDER BY id",
        parameters: row![city.to_owned()],
        answer: rows.collect(),
    }
}

/// JSON arrays as tables.
fn popular_tags(model: &Model, random: &mut Random) -> Question {
    let score = random.between(0, 100);
    let mut counts: BTreeMap<i64, i64> = BTreeMap::new();
    for customer in model.customers.values().filter(|c| c.score >= score) {
        for tag in &customer.tags {
            *counts.entry(*tag).or_default() += 1;
        }
    }
    Question {
        sql: "SELECT tag.value, count(*) FROM customer, json_each(profile, '$.tags') AS tag
              WHERE profile ->> '$.score' >= ?1 GROUP BY tag.value ORDER BY tag.value",
        parameters: row![score],
        answer: counts.into_iter().map(|(tag, count)| row![tag, count]).collect(),
    }
}

/// Rows gathered into JSON.
fn members(model: &Model, random: &mut Random) -> Question {
    let highest = random.between(1, CUSTOMERS + 1);
    let mut ids: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (id, customer) in model.customers.range(..=highest) {
        ids.entry(customer.city).or_default().push(id.to_string());
    }
    let rows = ids
        .into_iter()
        .map(|(city, ids)| row![format!(r#"{{"city":"{city}","ids":[{}]}}"#, ids.join(","))]);
    Question {
        sql: "SELECT json_object('city', city, 'ids', json_group_array(id ORDER BY id))
              FROM customer WHERE id <= ?1 GROUP BY city ORDER BY city",
        parameters: row![highest],
        answer: rows.collect(),
    }
}

/// A pattern over every note, ignoring case.
fn like(model: &Model, random: &mut Random) -> Question {
    let word = random.pick(&WORDS).to_ascii_lowercase();
    let notes = model.purchases.values().filter(|p| p.mentions(&word)).map(|p| &p.note);
    let (count, length) =
        notes.fold((0_i64, 0), |(n, l), note| (n + 1, l + note.chars().count() as i64));
    Question {
        sql: "SELECT count(*), coalesce(sum(length(note)), 0) FROM purchase WHERE note LIKE ?1",
        parameters: row![format!("%{word}%")],
        answer: vec![row![count, length]],
    }
}

/// Functions on text.
fn text_functions(model: &Model, random: &mut Random) -> Question {
    let first = model.any_purchase(random);
    let rows = model.purchases.range(first..first + 10).map(|(id, p)| {
        let start: String = p.note.chars().take(5).collect();
        let space = p.note.chars().position(|c| c == ' ').map_or(0, |at| at as i64 + 1);
        row![
            *id,
            start.to_ascii_uppercase(),
            space,
            p.note.replace(' ', "--"),
            format!("{:05}|{:x}", p.day, p.day)
        ]
    });
    Question {
        sql: "SELECT id, upper(substr(note, 1, 5)), instr(note, ' '), replace(note, ' ', '--'),
                     printf('%05d|%x', day, day)
              FROM purchase WHERE id >= ?1 AND id < ?1 + 10 ORDER BY id",
        parameters: row![first],
        answer: rows.collect(),
    }
}

/// Text gathered from many rows.
fn diary(model: &Model, random: &mut Random) -> Question {
    let customer = random.between(1, CUSTOMERS + 1);
    let notes: Vec<&str> = model.purchases_of(customer).map(|(_, p)| p.note.as_str()).collect();
    let joined = (!notes.is_empty()).then(|| notes.join("; "));
    Question {
        sql: "SELECT group_concat(note, '; ' ORDER BY id) FROM purchase WHERE customer = ?1",
        parameters: row![customer],
        answer: vec![row![joined]],
    }
}

/// A recursive query, joined from the left: days on which nobody bought count too.
fn calendar(model: &Model, random: &mut Random) -> Question {
    let first = random.between(0, DAYS - 20);
    let mut sums: BTreeMap<i64, i64> = (first..first + 20).map(|day| (day, 0)).collect();
    for purchase in model.purchases.values() {
        if let Some(sum) = sums.get_mut(&purchase.day) {
            *sum += purchase.amount;
        }
    }
    Question {
        sql: "WITH RECURSIVE calendar (day) AS
                  (VALUES (?1) UNION ALL SELECT day + 1 FROM calendar WHERE day < ?1 + 19)
              SELECT day, coalesce(sum(amount), 0) FROM calendar LEFT JOIN purchase USING (day)
              GROUP BY day ORDER BY day",
        parameters: row![first],
        answer: sums.into_iter().map(|(day, sum)| row![day, sum]).collect(),
    }
}

/// Dates.
fn months(model: &Model, _: &mut Random) -> Question {
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    for purchase in model.purchases.values() {
        *counts.entry(month(purchase.day)).or_default() += 1;
    }
    Question {
        sql: "SELECT strftime('%Y-%m', day * 86400, 'unixepoch') AS month, count(*)
              FROM purchase GROUP BY month ORDER BY month",
        parameters: row![],
        answer: counts.into_iter().map(|(month, count)| row![month, count]).collect(),
    }
}

/// Year and month of a day counted from 1970-01-01; right until the year 2099.
fn month(mut day: i64) -> String {
    for year in 1970.. {
        let february = if year % 4 == 0 { 29 } else { 28 };
        for (length, month) in
            [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31].into_iter().zip(1..)
        {
            if day < length {
                return format!("{year}-{month:02}");
            }
            day -= length;
        }
    }
    String::new()
}

/// One set less another.
fn lost_customers(model: &Model, random: &mut Random) -> Question {
    let day = random.between(DAYS / 3, DAYS);
    let buyers = |early: bool| -> BTreeSet<i64> {
        model.purchases.values().filter(|p| (p.day < day) == early).map(|p| p.customer).collect()
    };
    Question {
        sql: "SELECT customer FROM purchase WHERE day < ?1
              EXCEPT SELECT customer FROM purchase WHERE day >= ?1 ORDER BY customer",
        parameters: row![day],
        answer: buyers(true).difference(&buyers(false)).map(|customer| row![*customer]).collect(),
    }
}

/// A subquery for each row.
fn frugal(model: &Model, random: &mut Random) -> Question {
    let limit = random.between(300, 1000);
    let spenders: BTreeSet<i64> =
        model.purchases.values().filter(|p| p.amount > limit).map(|p| p.customer).collect();
    let rows = model
        .customers
        .keys()
        .filter(|id| !spenders.contains(id))
        .map(|id| row![*id, model.visits.get(id).copied().unwrap_or(0)]);
    Question {
        sql: "SELECT id, coalesce((SELECT times FROM visit WHERE visit.customer = c.id), 0)
              FROM customer AS c
              WHERE NOT EXISTS (SELECT 1 FROM purchase WHERE customer = c.id AND amount > ?1)
              ORDER BY id",
        parameters: row![limit],
        answer: rows.collect(),
    }
}

/// Full-text search.
fn search(model: &Model, random: &mut Random) -> Question {
    let mut word = || random.pick(&["amber", "delta", "harbor", "islet", "kelp"]);
    let (with, without) = (word(), word());
    let found = model.purchases.iter().filter(|(_, p)| p.mentions(with) && !p.mentions(without));
    Question {
        sql: "SELECT rowid FROM word WHERE word MATCH ?1 ORDER BY rowid",
        parameters: row![format!("{with} NOT {without}")],
        answer: found.map(|(id, _)| row![*id]).collect(),
    }
}

/// A rectangle of the tree.
fn rectangle(model: &Model, random: &mut Random) -> Question {
    let (day, amount) = (random.between(0, DAYS), random.between(0, 900));
    let inside = model.purchases.iter().filter(|(_, p)| {
        (day..=day + 60).contains(&p.day) && (amount..=amount + 200).contains(&p.amount)
    });
    Question {
        sql: "SELECT id FROM place WHERE day0 >= ?1 AND day1 <= ?1 + 60
                  AND amount0 >= ?2 AND amount1 <= ?2 + 200 ORDER BY id",
        parameters: row![day, amount],
        answer: inside.map(|(id, _)| row![*id]).collect(),
    }
}

/// Expressions on every row, and floating point.
fn classes(model: &Model, random: &mut Random) -> Question {
    let limit = random.between(0, 900);
    let class = |amount: i64| {
        if amount < 0 {
            "refund"
        } else if amount < limit {
            "small"
        } else {
            "large"
        }
    };
    let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
    for purchase in model.purchases.values() {
        *sums.entry(class(purchase.amount)).or_default() += purchase.amount.abs();
    }
    Question {
        sql: "SELECT CASE WHEN amount < 0 THEN 'refund' WHEN amount < ?1 THEN 'small' ELSE 'large' END AS class,
                     sum(abs(amount)) / 4.0
              FROM purchase GROUP BY class ORDER BY class",
        parameters: row![limit],
        answer: sums.into_iter().map(|(class, sum)| row![class.to_owned(), sum as f64 / 4.0]).collect(),
    }
}
