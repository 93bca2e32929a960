"""What `--help` says of the jobs."""

from __future__ import annotations

EXIT_CODES = """exit codes:
  0    done
  1    the job failed; the traceback says where
  2    input that cannot be used; one line says what, and nothing was written
  130  interrupted (Ctrl-C)"""

TOP = f"""\
Fine-tune vision-language-action policies by reinforcement learning in parallel simulation.

examples:
  rl-finetune train                                   the main job: configs/train.yaml
  rl-finetune train run.seed=1 run.folder=runs/seed1  the same with another seed, elsewhere
  rl-finetune train --config control                  the control: configs/control.yaml
  rl-finetune train --resume runs/train               go on after an interruption
  rl-finetune evaluate policy.adapter=runs/train/adapter
                                                      success of a trained adapter
  rl-finetune promote                                 may the trained adapter drive a robot? configs/promote.yaml
  rl-finetune serve runs/promote/bundle               a policy server on openpi's websocket wire
  rl-finetune show-config train --describe            every setting with its meaning

Settings come from a YAML file and from key=value overrides after it; a file may extend another.

{EXIT_CODES}"""

TRAIN = f"""\
Train adapters by reinforcement learning, and judge them on held-out episodes before and after.

results, in the run folder (run.folder, by default runs/train):
  config.yaml     the resolved settings
  metrics.jsonl   one line an iteration; the same goes to wandb (offline unless run.wandb=online)
  checkpoints/    what --resume goes on from
  evaluation.json success before and after, with intervals
  report.html     one page with curves, diagnostics and clips; opens in any browser

examples:
  rl-finetune train
  rl-finetune train --config smoke
  rl-finetune train ppo.epochs=2 optimizer.actor_lr=3e-4 run.folder=runs/try
  rl-finetune train --resume runs/try
  rl-finetune train --resume runs/try run.iterations=300

{EXIT_CODES}"""

EVALUATE = f"""\
Measure the success of one policy on held-out episodes. The episodes are the same for every policy, so results pair.

results: printed, and written as JSON where `output` says.

examples:
  rl-finetune evaluate
  rl-finetune evaluate policy.adapter=runs/train/adapter output=after.json
  rl-finetune evaluate shuffle=images          must drop to chance: the policy looks
  rl-finetune evaluate shuffle=instructions    must drop to chance: the policy reads
  rl-finetune evaluate 'suites=[colour, background, lighting]'     the same episodes, out of distribution

{EXIT_CODES}"""

SFT = f"""\
Train a policy by flow matching on demonstrations of the scripted expert.

results, in `folder` (by default runs/sft): progress, a checkpoint per stage, the policy in policy/.

examples:
  rl-finetune sft
  rl-finetune sft folder=runs/mine seed=1
  rl-finetune sft folder=runs/mine resume=true
  rl-finetune sft stages.0.steps=100           settings inside of a list go by number

{EXIT_CODES}"""

SHOW = f"""\
Print the resolved settings of a job (default: train) as YAML, ready to be saved as a config file.

examples:
  rl-finetune show-config
  rl-finetune show-config evaluate evaluation.episodes=100
  rl-finetune show-config train --describe     names, types, defaults and meaning
  rl-finetune show-config promote              the gates and the plan of evidence

{EXIT_CODES}"""

CHECK = f"""\
Run the contract's checks on an environment: a few episodes with random actions and one with none.

A world is named as in env.name: a registered one, or package.module:attribute of your own. Settings that follow are its
options (env.options).

examples:
  rl-finetune check-env widowx_reach tolerance=0.02
  rl-finetune check-env my_package.my_module:WORLD
  rl-finetune check-env gymnasium id=Pendulum-v1 privileged=[obs] success=never "instruction=swing up"

{EXIT_CODES}"""
