"""What is read: corpora, documents cut into windows, and text as token ids."""
