"""The recipe: its typed sections (`recipe`), reading them (`load`), the rules between them (`rules`), DeepSpeed's JSON
(`deepspeed_json`), its parameters (`parameters`), what the model costs (`size`) and the page that lists every key (`reference`).
"""
