"""Runs the SQL of docs/at-scale.md with a real engine, and compares the results with those that the page shows.

Usage: at_scale.py duckdb|chdb PAGE CAPTURE LINES. LINES are the capture's lines as JSON.
"""

import re
import sys

engine, page, capture, lines = sys.argv[1:]
blocks = re.findall(r"```(sql|text)\n(.*?)```", open(page).read(), re.DOTALL)
tables = [text for kind, text in blocks if kind == "sql" and text.startswith("-- ")]
queries = [text for kind, text in blocks if kind == "sql" and not text.startswith("-- ")]
results = [text for kind, text in blocks if kind == "text"]
assert len(queries) == len(results) == 5 and len(tables) == 2, (len(queries), len(results), len(tables))


def table(name):
    return next(text for text in tables if text.startswith(f"-- {name}\n")).strip().rstrip(";")


def with_duckdb():
    import duckdb

    database = duckdb.connect()
    database.execute("SET TimeZone = 'UTC'")
    database.execute(table("DuckDB").replace("capture.jsonl.zst", capture))
    for query in queries:
        # Times without their zone, as the other engine prints them.
        yield [[str(value).removesuffix("+00:00") for value in row] for row in database.execute(query).fetchall()]


def with_chdb():
    from chdb import session

    database = session.Session()
    database.query("CREATE DATABASE nodes")
    database.query("USE nodes")
    database.query(table("ClickHouse"))
    settings = "input_format_skip_unknown_fields = 1, date_time_input_format = 'best_effort'"
    conns = f"{lines}.conns"
    with open(conns, "w") as out:
        out.writelines(line for line in open(lines) if line.startswith('{"type":"conn"'))
    database.query(f"INSERT INTO tcp FROM INFILE '{conns}' SETTINGS {settings} FORMAT JSONEachRow")
    for query in queries:
        text = str(database.query(query.strip().rstrip(";"), "CSV"))
        yield [line.replace('"', "").split(",") for line in text.splitlines()]


found = with_duckdb() if engine == "duckdb" else with_chdb()
for query, expected, rows in zip(queries, results, found):
    expected = [line.split(",") for line in expected.splitlines()]
    assert rows == expected, f"{query}\nfound {rows}\nexpected {expected}"
print("5 queries")
