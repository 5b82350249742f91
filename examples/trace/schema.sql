CREATE TABLE customer (
    id      INTEGER PRIMARY KEY,
    name    TEXT NOT NULL,
    city    TEXT NOT NULL,
    profile TEXT NOT NULL CHECK (json_valid(profile))
);
CREATE INDEX customer_city ON customer (city);

CREATE TABLE purchase (
    id       INTEGER PRIMARY KEY,
    customer INTEGER NOT NULL REFERENCES customer,
    day      INTEGER NOT NULL,
    amount   INTEGER NOT NULL,
    note     TEXT NOT NULL
);
CREATE INDEX purchase_customer ON purchase (customer, day);

CREATE TABLE visit (customer INTEGER PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID;

-- Full-text search over the notes and a tree of rectangles over (day, amount), both
-- kept up to date by triggers.
CREATE VIRTUAL TABLE word USING fts5 (note);
CREATE VIRTUAL TABLE place USING rtree_i32 (id, day0, day1, amount0, amount1);

CREATE TRIGGER bought AFTER INSERT ON purchase BEGIN
    INSERT INTO word (rowid, note) VALUES (new.id, new.note);
    INSERT INTO place VALUES (new.id, new.day, new.day, new.amount, new.amount);
END;
CREATE TRIGGER corrected AFTER UPDATE OF amount ON purchase BEGIN
    UPDATE place SET amount0 = new.amount, amount1 = new.amount WHERE id = new.id;
END;
CREATE TRIGGER forgotten AFTER DELETE ON purchase BEGIN
    DELETE FROM word WHERE rowid = old.id;
    DELETE FROM place WHERE id = old.id;
END;
