"""`alphadrive doctor`: whether this machine has what a run needs, one small check after the other."""
