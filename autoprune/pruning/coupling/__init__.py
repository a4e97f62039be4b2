"""Channel ids -> groups of coupled units and residual blocks, each verified."""
