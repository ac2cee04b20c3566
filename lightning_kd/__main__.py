"""``python -m lightning_kd`` is ``lightning-kd``."""

from lightning_kd.commands.main import main

if __name__ == "__main__":
    main()
