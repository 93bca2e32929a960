"""The book of trials: blinding, order, aborts, corrections, tampering, resuming, and what it decides."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import stat
import threading
from collections import Counter

import pytest

from rl_finetune.config.trials import TaskSection, TrialsSection
from rl_finetune.errors import UserError
from rl_finetune.promotion.records import PolicyName
from rl_finetune.promotion.registry.grounds import Grounds
from rl_finetune.promotion.registry.ledger import Ledger
from rl_finetune.promotion.trials import Book, Correction, Result, begin, plan
from rl_finetune.promotion.trials.plan import Letters

CANDIDATE, INCUMBENT = PolicyName("new", "c" * 64), PolicyName("old", "d" * 64)
TASKS = [
    TaskSection(name="cup", instruction="lift the cup", conditions=["left", "right", "far | away"]),
    TaskSection(name="door", instruction="open the door"),
]


def settings(**changes):
    return TrialsSection(**{"tasks": TASKS, "gain": 40.0, "pairs": 12, **changes})


@pytest.fixture
def book(tmp_path):
    return begin(tmp_path / "trials", CANDIDATE, INCUMBENT, settings())


def tell(book, outcome, **more):
    """Record how the next trial went."""
    trial = book.next()
    return book.record(Result(trial.number, trial.letter, outcome, "ann", **more))


def play(book, candidate, incumbent, trials=100):
    """Let both policies end as told, for so many trials or until there is enough."""
    for _ in range(trials):
        trial = book.next()
        if trial is None:
            break
        tell(book, candidate if book.bundle_for(trial.number) == CANDIDATE else incumbent)
    return book.status()


def ledger_bytes(book):
    return (book.folder / "trials.jsonl").read_bytes()


def test_every_task_and_condition_gets_its_turn():
    pairs = plan.arrange(settings(), 24)
    assert [pair.number for pair in pairs] == list(range(1, 25))
    assert all({a.task, b.task} == {"cup", "door"} for a, b in zip(pairs[::2], pairs[1::2], strict=True))
    cups = [pair.condition for pair in pairs if pair.task == "cup"]
    assert all(set(cups[i : i + 3]) == {"left", "right", "far | away"} for i in range(0, 12, 3))
    assert plan.arrange(settings(), 24) == pairs
    assert plan.arrange(settings(seed=1), 24) != pairs


def test_letters_are_balanced_in_every_task_and_differ_from_draw_to_draw():
    pairs = plan.arrange(settings(), 60)
    drawn = [plan.draw(pairs).candidates for _ in range(50)]
    for letters in drawn:
        for task in ("cup", "door"):
            first = [letter for pair, letter in zip(pairs, letters, strict=True) if pair.task == task]
            # at most half of an unfinished block of 6 is one-sided
            assert all(abs(2 * first[:n].count("A") - n) <= 3 for n in range(1, 31))
    assert len(set(drawn)) == 50
    # each place holds A in half of the draws: 25 +- 5 standard deviations
    assert all(7 < Counter(column)["A"] < 43 for column in zip(*drawn, strict=True))


def test_operators_see_letters_only_until_the_decision(tmp_path, monkeypatch):
    """Two books that differ in nothing but who is who look the same, but for the commitment and what it enters."""
    seen = []
    for candidates in ("ABAB" * 3, "BABA" * 3):
        monkeypatch.setattr(plan, "draw", lambda pairs, candidates=candidates: Letters("ab" * 32, candidates))
        book = begin(tmp_path / candidates, CANDIDATE, INCUMBENT, settings())
        for outcome in ("success", "failure", "abort", "failure", "success"):
            book.bundle_for(book.next().number)
            tell(book, outcome, note="slow")
        status, entries = book.status(), book._ledger.entries()
        bodies = [{k: v for k, v in e.body.items() if k != "commitment"} for e in entries]
        seen.append((bodies, book.next(), status.enough, book.sheet().replace(status.commitment, "")))
        for text in (ledger_bytes(book).decode(), book.sheet(), book.sheet("csv"), str(status), repr(book.results())):
            assert candidates not in text and "ab" * 32 not in text
        sealed = book.folder / "sealed.json"
        assert stat.S_IMODE(sealed.stat().st_mode) == 0o600
        assert status.commitment == hashlib.sha256(b"\xab" * 32 + candidates.encode()).hexdigest()
    assert seen[0] == seen[1]


def test_a_better_candidate_is_promoted_after_five_won_pairs(book):
    status = play(book, "success", "failure")
    assert (status.pairs, status.recorded, status.enough, status.next) == (5, 10, True, None)
    decision = book.decide("ben", "as hoped")
    grounds = Grounds.load(book.folder / "decision.json")
    assert grounds.digest == decision.grounds.digest and json.loads(grounds.data) == book.decided()
    assert (grounds.kind, grounds.candidate, grounds.incumbent) == ("decision", CANDIDATE, INCUMBENT)
    assert (grounds.outcome, grounds.detail["call"]) == ("promote", "better")
    record = grounds.detail
    assert record["tally"] == {"wins": 5, "losses": 0, "ties": 0} and record["points"] == 100
    assert record["sides"]["candidate"]["successes"] == 5 and record["sides"]["incumbent"]["successes"] == 0
    assert decision.reason == "better than the incumbent: 5 of 5 pairs won, 0 lost, 0 tied (+100.0 points)"
    # the mean of (1 + s r)^5 is 20 where ((1 + r)^6 - 1) / 6 r = 20, r = 1.332 = (1 - low) / (1 + low)
    assert decision.interval == pytest.approx((-14.2, 100), abs=0.1)
    opened = bytes.fromhex(record["letters"]["salt"]) + record["letters"]["candidates"].encode()
    assert hashlib.sha256(opened).hexdigest() == record["commitment"]
    assert book.status().decided and "decided" in str(book.status())


def test_a_worse_candidate_is_held_and_a_proven_worse_one_rejected(tmp_path):
    quick = begin(tmp_path / "quick", CANDIDATE, INCUMBENT, settings(pairs=37))
    assert play(quick, "failure", "success").pairs == 4
    held = quick.decide("ben")
    assert (held.outcome, held.call) == ("hold", "short") and held.reason.startswith("not better by 40 points")
    patient = begin(tmp_path / "patient", CANDIDATE, INCUMBENT, settings(pairs=37, prove_worse=True))
    play(patient, "failure", "success")
    assert (patient.decide("ben").outcome, patient.decided()["detail"]["call"]) == ("reject", "worse")


def test_who_wins_on_the_whole_but_loses_a_task_is_held(tmp_path):
    lopsided = begin(tmp_path / "t", CANDIDATE, INCUMBENT, settings(alpha=0.2, pairs=60, beta=1e-9))
    doors = 0
    while (trial := lopsided.next()) is not None:
        wins = trial.pair.task == "cup"
        doors += not wins
        # the candidate wins all cups; of the doors it loses the first five, then both succeed
        ahead = wins if wins or doors <= 10 else None
        who = lopsided.bundle_for(trial.number) == CANDIDATE
        tell(lopsided, "success" if ahead is None or who == ahead else "failure")
    decision = lopsided.decide("ben")
    tasks = {task.task: (task.tally.losses, task.lost) for task in decision.tasks}
    # five lost: the mean of (1 + s)^5 is (2^6 - 1) / 6 = 10.5, above 2 tasks / 0.2 = 10
    assert decision.call == "better" and tasks == {"cup": (0, False), "door": (5, True)}
    assert decision.outcome == "hold" and "worse in door" in decision.reason


def test_giving_up_early_promotes_nobody(book):
    play(book, "success", "failure", trials=8)
    with pytest.raises(UserError, match="does not suffice yet: got trial 9 is still to be played"):
        book.decide("ben")
    decision = book.decide("ben", "the robot is needed elsewhere", early=True)
    assert (decision.outcome, decision.call, decision.tally.pairs) == ("hold", None, 4)


def test_equal_policies_play_until_nothing_can_be_shown(book):
    # 12 pairs: five wins of five suffice, so that the eighth tie ends it
    assert play(book, "success", "success").pairs == 8
    assert book.decide("ben").call == "unreachable"


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (Result(3, "A", "success", "ann"), "not this trial's turn: got trial 3; expected trial 2, letter B"),
        (Result(1, "A", "success", "ann"), "a result is there already: got trial 1"),
        (Result(2, "C", "success", "ann"), "unknown letter: got C; expected B in trial 2"),
        (Result(2, "A", "success", "ann"), "the letter is another trial's: got A; expected B"),
        (Result(2, "B", "won", "ann"), "unknown outcome: got won; expected success | failure | abort | intervention"),
        (Result(2, "B", "success", "  "), "result without an operator"),
        (Result(2, "B", "success", "ann", seconds=float("nan")), "no duration: got nan"),
        (Result(2, "B", "success", "ann", note="x" * 2001), "note too long: got 2001"),
        (Result(99, "A", "success", "ann"), "not this trial's turn: got trial 99"),
        (Result(2, "B", "success", "ann", clip="no/film.mp4"), "the film is not there: got no/film.mp4"),
    ],
)
def test_a_result_that_cannot_be_is_refused_and_leaves_no_trace(book, result, says):
    tell(book, "success")
    before = ledger_bytes(book)
    with pytest.raises(UserError) as error:
        book.record(result)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert ledger_bytes(book) == before


def test_nothing_is_taken_once_there_is_enough_or_a_decision(book):
    play(book, "success", "failure")
    late = Result(13, "A", "failure", "ann")
    with pytest.raises(UserError, match="no trial is left"):
        book.record(late)
    with pytest.raises(UserError, match="no trial is left"):
        book.bundle_for(13)
    entry = book.results()[0].entry
    book.decide("ben")
    change = Correction(entry, "abort", "eve", "second thoughts")
    acts = (lambda: book.record(late), lambda: book.decide("eve"), lambda: book.bundle_for(13))
    for act in (*acts, lambda: book.correct(change)):
        with pytest.raises(UserError, match="the trials are decided"):
            act()


def test_an_aborted_trial_comes_again_before_its_pair_goes_on(book):
    tell(book, "success")
    assert tell(book, "abort", note="battery").next == book.plan().trial(2, attempt=2)
    assert tell(book, "abort").next.attempt == 3
    # the third attempt is the last: aborted as well it counts as lost
    status = tell(book, "abort")
    assert (status.next.number, status.pairs, status.aborts) == (3, 1, 3)
    assert [a.result.note for a in book.results()] == ["", "battery", "", ""]


def test_what_hangs_on_aborts_is_told(book):
    for _ in range(5):
        for _ in range(2):
            trial = book.next()
            mine = book.bundle_for(trial.number) == CANDIDATE
            if mine:
                tell(book, "abort")
            tell(book, "success" if mine else "failure")
    decision = book.decide("ben")
    assert (decision.outcome, decision.if_aborts_failed) == ("promote", "hold")
    assert (decision.sides["candidate"].aborts, decision.sides["incumbent"].aborts) == (5, 0)


@pytest.mark.parametrize(("counts", "upcoming", "attempt"), [("failure", 2, 1), ("abort", 1, 2)])
def test_interventions_count_as_the_plan_says(tmp_path, counts, upcoming, attempt):
    book = begin(tmp_path / "t", CANDIDATE, INCUMBENT, settings(interventions=counts))
    status = tell(book, "intervention")
    assert (status.next.number, status.next.attempt, status.interventions) == (upcoming, attempt, 1)


def test_a_correction_adds_and_never_edits(book):
    play(book, "success", "failure")
    before = ledger_bytes(book)
    wrong = book.results()[4]
    status = book.correct(Correction(wrong.entry, "abort", "ann", "it was the gripper's cable"))
    assert ledger_bytes(book).startswith(before)
    assert json.loads(ledger_bytes(book).splitlines()[-1])["body"]["hash"] == wrong.hash
    # trial 5 is open again, so that there is no longer enough; its second attempt closes the gap
    assert (status.next, status.enough, status.pairs) == (book.plan().trial(5, attempt=2), False, 2)
    assert tell(book, wrong.outcome).enough
    assert book.decide("ben").corrections == 1


@pytest.mark.parametrize(
    ("correction", "says"),
    [
        (Correction(0, "failure", "ann", "why not"), "no result to correct: got entry 0; expected one of [1]"),
        (Correction(1, "lost", "ann", "why not"), "unknown outcome"),
        (Correction(1, "failure", "ann", " "), "correction without a reason"),
    ],
)
def test_a_correction_names_a_result_and_a_reason(book, correction, says):
    tell(book, "success")
    with pytest.raises(UserError) as error:
        book.correct(correction)
    assert says in str(error.value)


def test_the_server_learns_only_who_plays_now_and_the_ledger_keeps_it(book):
    with pytest.raises(UserError, match="not this trial's turn: got trial 2; expected trial 1"):
        book.bundle_for(2)
    first = book.bundle_for(1)
    tell(book, "failure")
    assert {first, book.bundle_for(2)} == {CANDIDATE, INCUMBENT}
    entries = book._ledger.entries()
    assert [entry.kind for entry in entries] == ["plan", "served", "result", "served"]
    assert entries[1].body == {"trial": 1, "attempt": 1}


def test_tampering_is_noticed(book):
    tell(book, "failure")
    file, sealed = book.folder / "trials.jsonl", book.folder / "sealed.json"
    whole, secret = file.read_bytes(), sealed.read_bytes()
    for bad in (whole.replace(b'"failure","robot"', b'"success","robot"'), whole[: whole.rindex(b"\n", 0, -1) + 1]):
        assert bad != whole
        file.write_bytes(bad)
        with pytest.raises(UserError, match="is not what was written"):
            Book.open(book.folder)
    file.write_bytes(whole)
    letters = json.loads(secret)
    letters["candidates"] = letters["candidates"].translate(str.maketrans("AB", "BA"))
    for bad in (json.dumps(letters).encode(), b"{}", secret[:40]):
        sealed.write_bytes(bad)
        with pytest.raises(UserError, match="sealed letters are not those that were drawn"):
            Book.open(book.folder).status()


def test_who_is_killed_goes_on_where_the_ledger_ends(tmp_path, monkeypatch):
    """Between seal and plan: nothing has begun. Between two results, or decision and its file: nothing is lost."""
    folder = tmp_path / "trials"
    with monkeypatch.context() as dying:
        dying.setattr(Ledger, "append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            begin(folder, CANDIDATE, INCUMBENT, settings())
    with pytest.raises(UserError, match="no trials there"):
        Book.open(folder)
    play(begin(folder, CANDIDATE, INCUMBENT, settings()), "success", "failure", trials=5)
    again = Book.open(folder)
    assert again.next() == again.plan().trial(6)
    play(again, "success", "failure")
    again.decide("ben")
    kept = (folder / "decision.json").read_bytes()
    (folder / "decision.json").unlink()
    Book.open(folder)
    assert (folder / "decision.json").read_bytes() == kept


def test_trials_are_begun_once_and_with_two_policies_and_a_task(book, tmp_path):
    with pytest.raises(UserError, match="begun there already"):
        begin(book.folder, CANDIDATE, INCUMBENT, settings())
    with pytest.raises(UserError, match="the same policy"):
        begin(tmp_path / "u", CANDIDATE, PolicyName("old", "c" * 64), settings())
    with pytest.raises(UserError, match="trials without tasks"):
        begin(tmp_path / "u", CANDIDATE, INCUMBENT, settings(tasks=[]))
    with pytest.raises(UserError, match="no trials there"):
        Book.open(tmp_path / "nowhere")


def test_of_two_who_record_the_same_trial_one_is_refused(book):
    said = []

    def press(outcome):
        try:
            Book.open(book.folder).record(Result(1, "A", outcome, "ann"))
            said.append("taken")
        except UserError as error:
            said.append(error.what)

    threads = [threading.Thread(target=press, args=(outcome,)) for outcome in ("success", "failure")]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(said) == ["a result is there already", "taken"]
    assert book.status().recorded == 1


def test_the_sheet_has_a_row_for_every_attempt_and_every_open_trial(book, tmp_path):
    (clip := tmp_path / "one.mp4").write_bytes(b"film")
    tell(book, "abort", note="dark,\nvery | dark", seconds=2.5, clip=str(clip), robot="widowx-3")
    tell(book, "success")
    header, *rows = csv.reader(io.StringIO(book.sheet("csv")))
    assert header[:3] == ["trial", "pair", "letter"] and len(rows) == 25
    assert [row[0] for row in rows[:3]] == ["1", "1", "2"] and [row[2] for row in rows[:4]] == ["A", "A", "B", "A"]
    assert rows[0][6:] == ["abort", "2.5", "ann", "dark,\nvery | dark"] and rows[2][6] == ""
    table = [line for line in book.sheet().splitlines() if line.startswith("|")]
    assert len(table) == 27 and "| abort | 2.5 | ann | dark, very \\| dark |" in table[2]
    body = book._ledger.entries()[1].body
    assert body["clip_sha256"] == hashlib.sha256(b"film").hexdigest() and body["robot"] == "widowx-3"
    with pytest.raises(UserError, match=r"markdown \| csv"):
        book.sheet("pdf")
