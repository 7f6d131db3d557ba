"""The workbench as an app of widgets: jobs, state and commands, views, and what wires them."""
