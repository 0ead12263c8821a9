"""Run the command line as ``python -m vita_ckpt``."""

import os
import sys

if __name__ == "__main__":
    # -m has put the working directory before all libraries: it may be that of a checkpoint.
    is_first = not (sys.flags.isolated or getattr(sys.flags, "safe_path", False))
    if is_first and sys.path[0] != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
        del sys.path[0]

    from vita_ckpt.entry import main

    main()
