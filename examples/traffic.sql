-- Adds up connections, failures and payload bytes of each pair of client and server.
--
--   duckdb -csv -f traffic.sql
--
-- prints for tests/data/incident.jsonl.zst:
--
--   client,server,port,connections,failed,bytes
--   storefront,checkout,8080,60,0,124170
--   checkout,database,5432,80,40,32800
--   checkout,payments,8443,60,6,7482
--   storefront,stock,9000,6,5,10

-- One end of each connection, so that a connection within the node counts once.
SELECT src.workload AS client,
       dst.workload AS server,
       dst.port AS port,
       count(*) AS connections,
       count(*) FILTER (outcome <> 'ok') AS failed,
       sum(sent_bytes + received_bytes)::BIGINT AS bytes
FROM read_json('incident.jsonl.zst')
WHERE type = 'conn' AND event = 'close' AND direction = 'outbound'
GROUP BY ALL
ORDER BY bytes DESC, client, server;
