"""Prints the table of differences to diffusers that the parity tests wrote while they ran.

    python tests/parity_table.py [--all]

One line for each group of tests; with --all, one for each quantity that was compared.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

TABLE = Path(__file__).resolve().parent.parent / "target/parity/table.jsonl"


def main() -> None:
    if not TABLE.exists():
        raise SystemExit("no results yet: run `make test`")
    groups = defaultdict(list)
    for line in TABLE.read_text().splitlines():
        row = json.loads(line)
        name = row["group"].replace("_", " ")
        groups[f"{name}: {row['quantity']}" if "--all" in sys.argv else name].append(row)
    print("| compared with diffusers | cases | comparisons | equal to the bit | largest difference |")
    print("|---|---|---|---|---|")
    for name, rows in sorted(groups.items()):
        equal = sum(row["difference"] == 0 for row in rows)
        worst = max(row["difference"] for row in rows)
        cases = len({row["case"] for row in rows})
        print(f"| {name} | {cases} | {len(rows)} | {equal} | {worst:.1e} |".replace("0.0e+00", "0"))


if __name__ == "__main__":
    main()
