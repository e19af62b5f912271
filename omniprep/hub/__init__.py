"""Sharing datasets on the Hugging Face Hub: the card, a preview that its viewer shows, uploads that resume."""
