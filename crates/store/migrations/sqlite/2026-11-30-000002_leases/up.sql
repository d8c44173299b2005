-- Who pulls the users: until when, by the clock of the machine, in seconds since 1970. A new holder has a new term.
-- And what is known of the last complete pull: when it was, by the same clock, and the validators of the feed.
-- Each batch of a pull by hand raises the generation: the table is then as no version of the feed is.
CREATE TABLE leases (
    name text NOT NULL PRIMARY KEY,
    holder text NOT NULL,
    until real NOT NULL,
    term integer NOT NULL,
    pulled_at real NOT NULL DEFAULT 0,
    generation integer NOT NULL DEFAULT 0,
    feed text,
    etag text,
    last_modified text
) STRICT, WITHOUT ROWID;
