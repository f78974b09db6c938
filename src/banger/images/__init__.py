"""Images: recipes, builds, catalog."""
