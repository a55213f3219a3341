"""`python -m tests.faults.under_attack [ROUNDS [SECONDS]]`; its own module, because its processes import the main one."""

import sys

from tests.faults.besieged import main

if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, float(sys.argv[2]) if len(sys.argv) > 2 else 10.0)
