"""What `--help` says of promotion."""

from __future__ import annotations

CODES = """exit codes:
  0    promote
  2    input that cannot be used, or a file that was tampered with; one line says what
  3    hold: not shown to be good enough
  4    reject: shown to be worse or unsafe"""

DONE = """exit codes:
  0    done
  2    input that cannot be used, or a file that was tampered with; one line says what, and nothing changed"""

PROMOTE = f"""\
May a policy drive a robot? Evidence in simulation, gates with statistics, blinded trials, a registry with a way back.

  candidate -> simulation-passed -> shadow -> canary -> promoted -> retired

examples:
  rl-finetune promote                                            evidence and verdict: configs/promote.yaml
  rl-finetune promote judge candidate.adapter=runs/seed1/adapter folder=runs/promote-1
  rl-finetune promote status                                     who acts, and where every bundle stands
  rl-finetune promote advance 3f2a9c shadow                      the next stage
  rl-finetune promote trials begin 'trials.tasks=[{{name: carrot}}]'
  rl-finetune promote record 1 A success                         how the first trial went
  rl-finetune promote advance 3f2a9c promoted --grounds runs/promote/trials/decision.json
  rl-finetune promote rollback                                   who acted before acts again
  rl-finetune show-config promote --describe                     every setting with its meaning

`rl-finetune promote ACTION --help` says more of each.

{CODES}"""

JUDGE = f"""\
Compare a candidate with the incumbent in simulation, ask every gate, and put the candidate into the registry.

The candidate is sealed into a bundle first: what is judged is what would be served. Both play the same held-out
episodes, unperturbed and under every suite; the candidate's motion is held against its limits, inference is timed,
and the bundle's actions are compared with those of the policy that it was made of. `promote` brings it to
simulation-passed; `hold` and `reject` are recorded, and it stays a candidate. An interrupted run goes on when it is
started again.

results, in `folder` (by default runs/promote):
  bundle/        weights, limits, provenance, hashes
  evidence.json  every number that was measured
  verdict.json   every question that a gate asked, with its number, interval, bound and reason
  report.html    one page; opens in any browser
  config.yaml    the resolved settings
  played/        episodes, so that nothing is played twice

examples:
  rl-finetune promote
  rl-finetune promote --config promote-everyone
  rl-finetune promote candidate.adapter=runs/seed1/adapter folder=runs/promote-1 --by ana --note 'seed 1'
  rl-finetune promote candidate.path=runs/old/bundle candidate.adapter= incumbent.path=checkpoints/qwen-vla-tiny
  rl-finetune promote gates.tasks.margin=3 gates.plan.suite_episodes=900

{CODES}"""

BUNDLE = f"""\
Seal the candidate that the settings name into `folder`/bundle, without judging it: to serve it, or to submit it.

examples:
  rl-finetune promote bundle candidate.adapter= folder=runs/first bundle.name=first
  rl-finetune promote bundle bundle.sign_with=keys/ana folder=runs/signed

{DONE}"""

REPORT = f"""\
Write the page of a candidate again, with what ledger and trials say by now. Episodes are filmed anew.

examples:
  rl-finetune promote report
  rl-finetune promote report folder=runs/promote-1 clips=12

{DONE}"""

STATUS = f"""\
Who acts, whom a rollback would bring back, and where every bundle of the registry stands.

examples:
  rl-finetune promote status
  rl-finetune promote status registry=/srv/policies

{DONE}"""

HISTORY = f"""\
The registry's ledger, oldest entry first: what happened, when, by whom and why. The hash chain is verified.

examples:
  rl-finetune promote history
  rl-finetune promote history --bundle 3f2a9c

{DONE}"""

VERIFY = f"""\
Verify every byte: the ledger's hash chain, every bundle, every verdict and decision that a step rests on.

examples:
  rl-finetune promote verify
  rl-finetune promote verify --bundle runs/promote/bundle
  rl-finetune promote verify 'trusted=[keys/ana.pub]' require_signature=true

{DONE}"""

SUBMIT = f"""\
Copy a bundle into the registry, as a candidate. `promote judge` does so itself.

examples:
  rl-finetune promote submit runs/first/bundle --note 'what acted before there was a registry'

{DONE}"""

ADVANCE = f"""\
Bring a bundle to the next stage: simulation-passed, shadow, canary, promoted. The first digits of its digest will do.

simulation-passed needs a verdict, promoted the decision of trials; each must say `promote`, be about this bundle,
and compare it with whoever is promoted now. Only the trials can be waived, and the ledger keeps why. Whoever was
promoted is retired by the same step; a server that follows the registry swaps at once.

examples:
  rl-finetune promote advance 3f2a9c shadow
  rl-finetune promote advance 3f2a9c canary --by ana --note 'robot 2, supervised'
  rl-finetune promote advance 3f2a9c promoted --grounds runs/promote/trials/decision.json
  rl-finetune promote advance 3f2a9c promoted --waiver 'simulation only: there is no robot'

{DONE}"""

ROLLBACK = f"""\
Whoever was promoted before acts again, once every byte of it has been verified; who acts now is retired. One step
of the ledger; a server that follows the registry swaps at once.

examples:
  rl-finetune promote rollback --note 'drops things'

{DONE}"""

RETIRE = f"""\
Take a bundle out of service for good: no rollback leads to it any more, and a server on which it acts holds every
robot until another one is promoted.

examples:
  rl-finetune promote retire 3f2a9c --note 'trained on wrong labels'

{DONE}"""

KEYS = f"""\
Draw an Ed25519 key pair: FILE for whoever makes bundles (mode 0600), FILE.pub for whoever trusts them. Needs the
extra `sign`: pip install 'rl-finetune[sign]'.

examples:
  rl-finetune promote keys keys/ana
  rl-finetune promote bundle.sign_with=keys/ana
  rl-finetune serve runs/promote/bundle 'trusted=[keys/ana.pub]' require_signature=true

{DONE}"""

TRIALS = f"""\
Blinded trials of a candidate against the incumbent on the robot, in pairs, until the evidence suffices. Nothing
that was recorded can be edited; it can be corrected by a further entry.

examples:
  rl-finetune promote trials begin 'trials.tasks=[{{name: carrot, instruction: put the carrot on the plate}}]'
  rl-finetune promote trials next
  rl-finetune promote trials record 1 A success --seconds 14
  rl-finetune promote trials decide

{DONE}"""

BEGIN = f"""\
Plan the trials of the candidate in `folder`, which must be in canary, against whoever is promoted (before anybody is:
against the incumbent of its verdict). Prints the commitment to the letters: keep it elsewhere.

examples:
  rl-finetune promote trials begin 'trials.tasks=[{{name: carrot, conditions: [left, right]}}, {{name: spoon}}]'
  rl-finetune promote trials begin folder=runs/promote-1 trials.gain=30 'trials.tasks=[{{name: carrot}}]'

{DONE}"""

NEXT = f"""\
The trial to play now. With --server the policy behind its letter acts there from now on, and is not named here: the
server must have been given an operator's key (RL_FINETUNE_ADMIN_KEY, here as well) and serve from the registry, whose
ledger keeps who acts.

examples:
  rl-finetune promote trials next
  rl-finetune promote trials next --server ws://127.0.0.1:8000

{DONE}"""

SHEET = f"""\
All trials in their order, by letter, with what is recorded so far.

examples:
  rl-finetune promote trials sheet > trials.md
  rl-finetune promote trials sheet --form csv > trials.csv

{DONE}"""

RECORD = f"""\
Write down how the trial went that is to be played now. The letter guards against a mix-up of trials.

outcome: success | failure | intervention (somebody stopped or helped the policy) | abort (for a reason that has
nothing to do with the policy: it is played again)

examples:
  rl-finetune promote record 1 A success
  rl-finetune promote record 2 B intervention --by ana --seconds 31 --note 'gripper caught the cable'
  rl-finetune promote trials record 3 A abort --note 'lamp failed' folder=runs/promote-1

{DONE}"""

CORRECT = f"""\
Overrule a result by a further entry; the earlier one stays in the book. `promote trials results` tells entries.

examples:
  rl-finetune promote trials correct 7 failure --reason 'the film shows that it fell'

{DONE}"""

RESULTS = f"""\
Every attempt in the order of trials, with the number of its entry in the book.

examples:
  rl-finetune promote trials results folder=runs/promote-1

{DONE}"""

TRIALS_STATUS = f"""\
How far the trials are. Says nothing of who leads, nor who is who.

examples:
  rl-finetune promote trials status

{DONE}"""

DECIDE = f"""\
Open the letters and say what follows; no result is taken afterwards. The decision is written to
`folder`/trials/decision.json and noted in the registry.

examples:
  rl-finetune promote trials decide
  rl-finetune promote trials decide --early --note 'the robot is needed elsewhere'

{CODES}"""
