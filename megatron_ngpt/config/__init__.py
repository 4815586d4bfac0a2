"""The recipe: typed sections (`recipe`), reading them (`load`), the rules between them (`rules`), DeepSpeed's JSON (`deepspeed_json`)."""
