"""What the driver's event loop costs, measured once for all runs: see docs/capacity-planning.md for how."""

from alphadrive.planning.measured import DriverCosts

MEASURED_DRIVER = DriverCosts(group_s=73e-6, call_s=299e-6, sync_engine_s=475e-6, watch_engine_s=39e-6)
