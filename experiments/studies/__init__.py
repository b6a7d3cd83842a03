"""What the commands of studies share.

- `parts`: sweeps within a budget of processor time.
- `contests`: who attacks which defence, with `contest_tables` and `contest_figures`.
- `published`: what the paper prints.
- `json_lines`: results that are added to, line by line.
- `generator_guesses`: what a generator gives without a gradient.
"""
