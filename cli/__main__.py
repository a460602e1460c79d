"""``python -m tilesmith.cli``: the command, also for ``torchrun -m``."""

from . import main

if __name__ == "__main__":
    main()
