#!/usr/bin/env bash
# From nothing to an nGPT that has learnt from real text: installs what is missing, makes a corpus from this machine's Python, trains
# a tokenizer and a small model on all GPUs, or else on two CPU ranks, and shows what the model learnt. What is there is used again.
set -euo pipefail
source "$(dirname "$0")/setup_env.sh"
cd "$REPOSITORY"
RECIPE=launch/recipes/quickstart.yaml
DATA=runs/quickstart-data
RUN=runs/quickstart
SEQUENCES=8   # a step, as in the recipe
BEGAN=$SECONDS

say() { printf '\n%s\n' "== $*"; }

make_data() {
  local part
  [ -e $DATA/train.jsonl ] && [ -e $DATA/valid.jsonl ] || python launch/corpus.py $DATA
  [ -e $DATA/tokenizer.model ] ||
    python -m data_tools train-tokenizer --input $DATA/train.jsonl --vocab_size 8192 --output $DATA/tokenizer
  for part in train valid; do
    [ -e $DATA/$part.meta.json ] ||
      python -m data_tools preprocess --input $DATA/$part.jsonl --tokenizer $DATA/tokenizer.model --output $DATA/$part --shuffle_seed 1
  done
}

# Ranks, and the options that share a step's sequences out evenly over them.
choose_ranks() {
  local each
  ranks=$(python -c "import torch; print(torch.cuda.device_count())")
  if [ "$ranks" = 0 ]; then
    ranks=2
    export DS_ACCELERATOR=cpu
  fi
  each=$(((SEQUENCES + ranks - 1) / ranks))
  options=(--training.micro_batch=$each --training.global_batch=$((each * ranks)))
}

say "Python environment"
set_up_environment ""
echo "$VIRTUAL_ENV"
say "Data in $DATA"
make_data
choose_ranks
launch=(deepspeed --quiet --master_port $((20000 + RANDOM % 10000)) --num_gpus "$ranks" launch/pretrain.py $RECIPE "${options[@]}")
say "Training on $ranks ranks: ${launch[*]}"
"${launch[@]}"
say "Text that the model has not seen (loss in nats a token)"
ngpt evaluate $RUN --data $DATA/valid --batches 30
say "How it goes on after 'def '"
ngpt generate $RUN --prompt "def " --max_tokens 100 --temperature 0.7 --seed 1
say "Done in $((SECONDS - BEGAN)) seconds. What next"
cat << NEXT
Activate the environment first: source $VIRTUAL_ENV/bin/activate
Curves:        tensorboard --logdir runs
Generate:      ngpt generate $RUN --prompt "import os"
Checkpoints:   ngpt checkpoint list $RUN      (verify: are they whole?)
Hand it on:    ngpt export $RUN $RUN-export   (for transformers; docs/checkpoints.md)
Go on:         ${launch[*]} --training.steps=400
               (any run that was stopped goes on from its last checkpoint when the same command is given again)
Your own text: python -m data_tools train-tokenizer --input FILE... --vocab_size 8192 --output runs/mine/tokenizer
               python -m data_tools preprocess --input FILE... --tokenizer runs/mine/tokenizer.model --output runs/mine/text
               ${launch[*]} --training.output=runs/mine/run \\
                 --data.tokenizer=runs/mine/tokenizer.model --data.train='[{prefix: runs/mine/text, split: 0.98}]' \\
                 --data.valid='[{prefix: runs/mine/text, split: 0.98}]'
NEXT
