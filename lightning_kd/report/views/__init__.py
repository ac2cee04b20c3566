"""The sections of a run's page, each made of a record alone: progress, classes, networks."""
