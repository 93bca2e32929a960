"""From a checkpoint to a robot, by evidence: gates, trials, registry, server, report."""
