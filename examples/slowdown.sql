-- Shows how the duration of connections to each server changes from second to second: the median, in milliseconds.
--
--   duckdb -csv -f slowdown.sql
--
-- prints for tests/data/incident.jsonl.zst:
--
--   server,second,closed,median_ms
--   checkout,03:19:38,10,3.7
--   checkout,03:19:39,18,3.6
--   checkout,03:19:40,12,3.6
--   checkout,03:19:41,6,151.6
--   checkout,03:19:42,4,151.6
--   checkout,03:19:43,5,151.5
--   checkout,03:19:44,5,151.5

SELECT dst.workload AS server,
       (time::VARCHAR)[12:19] AS second,
       count(*) AS closed,
       round(median(duration_ns) / 1e6, 1) AS median_ms
FROM read_json('incident.jsonl.zst')
WHERE type = 'conn' AND event = 'close' AND direction = 'outbound' AND server = 'checkout'
GROUP BY ALL
ORDER BY server, second;
