"""What leaves the workbench: a variant for a server, a study for another machine, and what other tools measured."""
