"""What the driver's event loop costs, measured once for all runs: see docs/capacity-planning.md for how."""

from alphadrive.planning.measured import DriverCosts

MEASURED_DRIVER = DriverCosts(group_s=90e-6, call_s=250e-6, sync_engine_s=1e-3, watch_engine_s=60e-6)
