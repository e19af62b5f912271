"""Looking into a built dataset: what the model will see of a row, for a terminal, as JSON or as a picture."""
