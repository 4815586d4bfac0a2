"""The recipe: its typed sections (`recipe`), reading them (`load`), the rules between them (`rules`), DeepSpeed's JSON
(`deepspeed_json`), its parameters (`parameters`), what a run costs (`costs`) and the page that lists every key (`reference`).
"""
