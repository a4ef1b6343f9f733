"""Policies in the same episodes, seed by seed: files that `fewstep policy eval -o FILE` wrote.

    python -m tests.bench.bench_policy_pairs FILE FILE …

Steps saved are over the policy of the first file.
"""

import argparse
from pathlib import Path

from fewstep.policy.results import Results
from tests.bench.paired_results import table_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    print(table_of({file.stem: Results.load(file) for file in parser.parse_args().files}))


if __name__ == "__main__":
    main()
