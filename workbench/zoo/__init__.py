"""The small trained models and data sets that come with the workbench."""
