"""What scripts share: command line, CPU cores, device, process group."""

import os

# The CPU threads of a layer wait for each other in a busy loop of some milliseconds before they
# sleep. If other programs use the cores too, these loops delay the very threads that they wait for.
# A loop a thirtieth as long costs 2 % of the speed on an idle machine, and is four times as fast
# next to two busy processes (2 cores). torch reads this once, when it is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
