"""Prints the table of differences to diffusers that the parity tests wrote while they ran."""

import json
from collections import defaultdict
from pathlib import Path

TABLE = Path(__file__).resolve().parent.parent / "target/parity/table.jsonl"


def main() -> None:
    if not TABLE.exists():
        raise SystemExit("no results yet: run `make test`")
    groups = defaultdict(list)
    for line in TABLE.read_text().splitlines():
        row = json.loads(line)
        groups[row["group"], row["quantity"]].append(row)
    print("| what | quantity | cases | exactly equal | largest difference | bound |")
    print("|---|---|---|---|---|---|")
    for (group, quantity), rows in sorted(groups.items()):
        equal = sum(row["difference"] == 0 for row in rows)
        worst = max(row["difference"] for row in rows)
        bound = max(row["bound"] for row in rows)
        cases = len({row["case"] for row in rows})
        print(f"| {group} | {quantity} | {cases} | {equal} of {len(rows)} | {worst:.1e} | {bound:.1e} |")


if __name__ == "__main__":
    main()
