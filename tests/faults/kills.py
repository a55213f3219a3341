"""`python -m tests.faults.kills KILLS [FIRST_SEED]`; its own module, because victims import the main one again."""

from tests.faults.killing import main

if __name__ == "__main__":
    main()
