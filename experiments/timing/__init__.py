"""What the commands that time kljax share.

- `entries`: what is timed, and beside whom.
- `peers`: the driver's side of the peers, and `workers`: what runs in their processes.
- Beside them: lines of the table, the machine's peak, memory, and checks of results.

A new entry is a module of `entries` with its rows `ENTRIES`, and a row of `catalogue`.
"""
