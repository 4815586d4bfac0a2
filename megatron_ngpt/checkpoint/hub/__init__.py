"""What an export carries so that `transformers` loads it: code of the model, and the tokenizer."""
