//! The keys and the help page of the table.

/// The keys that the last line shows, the most important first.
pub const KEYS: &[&str] = &[
    "q quit",
    "? help",
    "p pause",
    "s/S sort",
    "g group",
    "/ filter",
    "f failures",
    "t totals",
    "[ ] windows",
    "Enter connections",
    "l listeners",
];

/// The help page. It fits 80 columns and 22 lines.
pub const HELP: &[&str] = &[
    "q, Ctrl-C  quit                       p, space   pause and resume",
    "s  S       next sort column, reverse  [  ]       window before, window after",
    "g          next grouping              t          totals since the start",
    "/          filter                     f          failures only",
    "Enter      the group's connections    l          listening sockets",
    "Esc        back                       arrows, PgUp, PgDn, Home, End  move",
    "",
    "A filter is typed as on the command line: --port 443 --failed. Quotes work as in",
    "a shell. Keys: Left, Right, Home, End, Ctrl-W, Ctrl-U; Up and Down: history.",
    "",
    "END       out: the client's end was traced; in: the server's end",
    "          + new in this window, - quiet since an earlier one, > selected",
    "CLIENT    -: the grouping has no facts about this end, or they are unknown",
    "SERVER    *:9999: any server, port 9999; no port: the group has several ports",
    "OPEN      open connections; +2: two attempts wait for an answer",
    "OPENED    established, CLOSED ended, FAILED ended with an outcome other than ok:",
    "          their number and the most frequent outcome, as --outcome accepts it;",
    "          12s ago: the last failure of a quiet group",
    "BYTES     per second: SENT and RECEIVED by the traced end; BYTES is their sum",
    "P50 P95   duration until the close; p95 of CONNECT: handshake, RESP95: --turns",
    "REASON    the kernel's main reason of dropped packets (--drops), else of resets",
    "SRTT      median round-trip time; RETRANS: segments retransmitted, LOST: lost",
];
