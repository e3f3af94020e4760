"""Looking at the fleet and steering it: one set of operations behind the HTTP admin API and the command line."""
