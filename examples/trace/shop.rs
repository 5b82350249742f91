//! One thread's database: every statement runs in SQLite and in the [`Model`], and what
//! the two say is compared.

use core::sync::atomic::{AtomicU64, Ordering};
use std::path::PathBuf;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, Result, params_from_iter};

use crate::model::{CUSTOMERS, Model, PURCHASES};
use crate::questions::{KINDS, Question, lookup, row};
use crate::random::Random;

/// Purchases that come, and go, in one transaction.
const PURCHASES_PER_ROUND: i64 = 8;

/// What one thread has done so far; on cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
pub struct Tally {
    /// Statements executed.
    pub queries: AtomicU64,
    /// Statements that failed or gave another answer than the model.
    pub wrong: AtomicU64,
}

/// A database, its model, and the chance that drives both.
pub struct Shop {
    connection: Connection,
    // After the connection: fields drop in this order, and the files go last.
    _files: Option<Files>,
    model: Model,
    random: Random,
    rounds: u64,
}

/// A database on disk; its files are deleted when this is dropped.
struct Files(PathBuf);

impl Drop for Files {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm"] {
            let mut path = self.0.clone().into_os_string();
            path.push(suffix);
            // Best effort: the log files are usually gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Shop {
    /// Opens and fills the database of thread `number`: in turn one in memory, one in a
    /// temporary file with a write-ahead log, and one in a shared cache.
    pub fn open(number: usize, seed: u64) -> Result<Self> {
        let (connection, files) = match number % 3 {
            0 => (Connection::open_in_memory()?, None),
            1 => {
                let name = format!("fentry-trace-{}-{number}.db", std::process::id());
                let files = Files(std::env::temp_dir().join(name));
                let connection = Connection::open(&files.0)?;
                connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF")?;
                (connection, Some(files))
            }
            _ => {
                let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_SHARED_CACHE;
                let uri = format!("file:shop{number}?mode=memory&cache=shared");
                (Connection::open_with_flags(uri, flags)?, None)
            }
        };
        connection.set_prepared_statement_cache_capacity(64);
        connection.execute_batch(include_str!("schema.sql"))?;
        let mut random = Random::new(seed);
        let model = Model::new(&mut random);
        let mut shop = Self { connection, _files: files, model, random, rounds: 0 };
        shop.fill()?;
        Ok(shop)
    }

    fn fill(&mut self) -> Result<()> {
        let transaction = self.connection.unchecked_transaction()?;
        for (id, customer) in &self.model.customers {
            transaction.execute(
                "INSERT INTO customer VALUES (?1, ?2, ?3, ?4)",
                (id, &customer.name, customer.city, customer.profile()),
            )?;
        }
        transaction.commit()?;
        let unseen = Tally::default();
        self.run("BEGIN", &unseen);
        for _ in 0..PURCHASES {
            self.buy(&unseen);
        }
        self.run("COMMIT", &unseen);
        Ok(())
    }

    /// One transaction, then every kind of question, then a change that is taken back.
    pub fn round(&mut self, tally: &Tally) {
        self.rounds += 1;
        self.run("BEGIN IMMEDIATE", tally);
        for _ in 0..PURCHASES_PER_ROUND {
            self.buy(tally);
        }
        self.correct_amounts(tally);
        self.set_score(tally);
        self.forget_the_oldest(tally);
        self.run("COMMIT", tally);

        for kind in KINDS {
            let question = kind(&self.model, &mut self.random);
            self.ask(&question, tally);
            let question = lookup(&self.model, &mut self.random);
            self.ask(&question, tally);
        }

        self.change_and_take_back(tally);
        if self.rounds.is_multiple_of(16) {
            self.run("ANALYZE", tally);
            let sound = vec![row!["ok".to_owned()]];
            self.ask(
                &Question { sql: "PRAGMA integrity_check", parameters: row![], answer: sound },
                tally,
            );
            // So that the parser and the planner stay part of the work.
            self.connection.flush_prepared_statement_cache();
        }
    }

    /// A new purchase, and one visit more of its customer.
    fn buy(&mut self, tally: &Tally) {
        let purchase = Model::imagine_purchase(&mut self.random);
        let id = self.model.next_purchase;
        self.model.next_purchase += 1;
        let values =
            row![id, purchase.customer, purchase.day, purchase.amount, purchase.note.clone()];
        self.change("INSERT INTO purchase VALUES (?1, ?2, ?3, ?4, ?5)", values, 1, tally);
        let times = self.model.visits.entry(purchase.customer).or_default();
        *times += 1;
        let question = Question {
            sql: "INSERT INTO visit VALUES (?1, 1)
                  ON CONFLICT (customer) DO UPDATE SET times = times + 1 RETURNING times",
            parameters: row![purchase.customer],
            answer: vec![row![*times]],
        };
        self.ask(&question, tally);
        self.model.purchases.insert(id, purchase);
    }

    fn correct_amounts(&mut self, tally: &Tally) {
        let customer = self.random.between(1, CUSTOMERS + 1);
        let by = self.random.between(-40, 41);
        let mut corrected = 0;
        for purchase in self.model.purchases.values_mut().filter(|p| p.customer == customer) {
            purchase.amount += by;
            corrected += 1;
        }
        let sql = "UPDATE purchase SET amount = amount + ?1 WHERE customer = ?2";
        self.change(sql, row![by, customer], corrected, tally);
    }

    fn set_score(&mut self, tally: &Tally) {
        let id = self.random.between(1, CUSTOMERS + 1);
        let score = self.random.between(0, 100);
        let Some(customer) = self.model.customers.get_mut(&id) else { return };
        customer.score = score;
        let question = Question {
            sql: "UPDATE customer SET profile = json_set(profile, '$.score', ?1)
                  WHERE id = ?2 RETURNING profile",
            parameters: row![score, id],
            answer: vec![row![customer.profile()]],
        };
        self.ask(&question, tally);
    }

    fn forget_the_oldest(&mut self, tally: &Tally) {
        let first_kept = self.model.next_purchase - PURCHASES;
        let kept = self.model.purchases.split_off(&first_kept);
        let forgotten = core::mem::replace(&mut self.model.purchases, kept).len();
        self.change("DELETE FROM purchase WHERE id < ?1", row![first_kept], forgotten, tally);
    }

    /// Deletes and then rolls back: the model never hears of it, so the next questions
    /// notice what was not restored.
    fn change_and_take_back(&mut self, tally: &Tally) {
        let customer = self.random.between(1, CUSTOMERS + 1);
        let theirs = self.model.purchases_of(customer).count();
        self.run("SAVEPOINT regret", tally);
        self.change("DELETE FROM purchase WHERE customer = ?1", row![customer], theirs, tally);
        self.run("ROLLBACK TO regret", tally);
        self.run("RELEASE regret", tally);
        let sum: i64 = self.model.purchases.values().map(|p| p.amount).sum();
        let question = Question {
            sql: "SELECT count(*), sum(amount) FROM purchase",
            parameters: row![],
            answer: vec![row![self.model.purchases.len() as i64, sum]],
        };
        self.ask(&question, tally);
    }

    /// Asks SQLite and compares all rows and their order.
    fn ask(&self, question: &Question, tally: &Tally) {
        let answer = self.answer(question);
        judge(question.sql, answer, &question.answer, tally);
    }

    fn answer(&self, question: &Question) -> Result<Vec<Vec<Value>>> {
        let mut statement = self.connection.prepare_cached(question.sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query(params_from_iter(&question.parameters))?;
        let mut answer = Vec::new();
        while let Some(row) = rows.next()? {
            answer.push((0..columns).map(|column| row.get(column)).collect::<Result<_>>()?);
        }
        Ok(answer)
    }

    /// Changes rows and compares how many there were.
    fn change(&self, sql: &str, parameters: Vec<Value>, expected: usize, tally: &Tally) {
        let changed = self
            .connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params_from_iter(parameters)));
        judge(sql, changed, &expected, tally);
    }

    /// A statement that has nothing to say but that it worked.
    fn run(&self, sql: &str, tally: &Tally) {
        let done = self.connection.prepare_cached(sql).and_then(|mut s| s.raw_execute());
        judge(sql, done.map(|_| ()), &(), tally);
    }
}

fn judge<T: PartialEq + core::fmt::Debug>(
    sql: &str,
    found: Result<T>,
    expected: &T,
    tally: &Tally,
) {
    tally.queries.fetch_add(1, Ordering::Relaxed);
    if !found.as_ref().is_ok_and(|found| found == expected) {
        // One report is enough; all are counted.
        if tally.wrong.fetch_add(1, Ordering::Relaxed) == 0 {
            eprintln!("wrong: {sql}\n  SQLite says {found:?}\n  it should be {expected:?}");
        }
    }
}
