"""Run the command line as ``python -m vita_ckpt``."""

from vita_ckpt.entry import main

if __name__ == "__main__":
    main()
