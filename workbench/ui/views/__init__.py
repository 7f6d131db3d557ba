"""How the app looks: one file a view, each a function from state to widgets."""
