"""Files that are copied into exports. They run inside `transformers`, without this project: nothing here imports it, or the reverse."""
