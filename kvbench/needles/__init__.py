"""Facts hidden in a long text: what is hidden and asked for, where it stands, how an answer is scored. No torch."""
