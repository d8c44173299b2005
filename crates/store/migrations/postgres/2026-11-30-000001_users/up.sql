-- Texts are compared byte by byte, as SQLite and programs do: the order of pages is the same everywhere.
-- Members are of the type json, not jsonb: they stay as they came, large numbers too.
-- Times are microseconds since 1970.
CREATE TABLE users (
    id text COLLATE "C" NOT NULL CONSTRAINT users_id PRIMARY KEY,
    name text,
    email text,
    members json NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL
);
