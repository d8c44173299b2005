-- Members are a JSON object as it came. Times are microseconds since 1970.
CREATE TABLE users (
    id text NOT NULL PRIMARY KEY,
    name text,
    email text,
    members text NOT NULL,
    created_at integer NOT NULL,
    updated_at integer NOT NULL
) STRICT, WITHOUT ROWID;
