"""Media: where items lie, what their headers say, and what they hold; one file a kind."""
