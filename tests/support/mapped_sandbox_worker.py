"""The screening process as a real model's reference has it: V stays mapped, and its files open, however small it is."""

from app.sandbox import worker
from app.screen.reference.open import open_reference

if __name__ == "__main__":
    defaults = open_reference.__kwdefaults__
    assert defaults is not None
    defaults["hold_bytes"] = 0
    worker.main()
