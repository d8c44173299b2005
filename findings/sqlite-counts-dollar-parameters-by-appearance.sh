#!/bin/sh
# SQLite 3.46.1 (apsw 3.46.1.0): in `SELECT $2, $1` with the values "first" and "second", $2 is "first". With `?2, ?1`, ?2 is "second".
#
# One would guess: $1 is the first value and $2 the second, as in PostgreSQL, whose statements SQLite takes otherwise without a change.
# But to SQLite a dollar begins a name, and names get their numbers in the order in which they come. A statement that names a later
# value first is taken by both, means something else, and no error says so: an UPDATE writes to other columns or finds no row.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
/usr/bin/python3 -m venv "$dir/python"
"$dir/python/bin/pip" install --quiet --disable-pip-version-check apsw==3.46.1.0
"$dir/python/bin/python" - <<'PYTHON'
import apsw

connection = apsw.Connection(":memory:")
values = ("first", "second")


def rows(statement):
    return connection.execute(statement, values).fetchall()


dollars, marks = rows("SELECT $2, $1"), rows("SELECT ?2, ?1")
print("SQLite", apsw.sqlitelibversion(), "$2, $1:", dollars, "?2, ?1:", marks)
assert apsw.sqlitelibversion() == "3.46.1"
assert dollars == [("first", "second")], "$2 is the second value now"
assert marks == [("second", "first")]

# In the order of the values, both mean the same.
assert rows("SELECT $1, $2") == rows("SELECT ?1, ?2") == [values]

# A statement that finds no row, because what was meant to be its key is the value.
connection.execute("CREATE TABLE settings (name TEXT, value TEXT)")
connection.execute("INSERT INTO settings VALUES ('first', 'before')")
connection.execute("UPDATE settings SET value = $2 WHERE name = $1", values)
after = connection.execute("SELECT value FROM settings").fetchall()
print("updated:", after)
assert after == [("before",)]
PYTHON
