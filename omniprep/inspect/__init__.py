"""Looking into a built dataset: what the model will see of a row, in a terminal, as JSON or as pictures."""
