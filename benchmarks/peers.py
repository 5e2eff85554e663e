"""Other projects' networks beside ours: the same patients, samples, core-seconds and figures. A table and a plot.

python benchmarks/peers.py --output DIR [--x2ct CHECKOUT] [--xrayto3d CHECKOUT] [--psct CHECKOUT] [--dif-net CHECKOUT]
    [--dif-gaussian CHECKOUT] [--cts DIR] [--patients PATIENT …] [--groups 4] [--folds PATIENT …] [--networks NAME …]
    [--seconds 300] [--steps 0] [--data written|endless|between] [--training 1728] [--seed 0]

A CHECKOUT is a clone that you have, of github.com/kylekma/X2CT, naamiinepal/xrayto3D-benchmark, DYDevelop/PSCT-Net,
xmed-lab/DIF-Net, xmed-lab/DIF-Gaussian. Its network is imported from there, in a process of its own; none of that code
is part of this project, and its licence, read from its licence file, is named under the table. What is not given, or
cannot be imported, is skipped, with a sentence why.

As in cascades.py: with --cts, patients are left out in --groups (0: each alone); without, variations of the sample CT
are learnt. All networks learn from the same sequence of samples, one at a time, for the same core-seconds on one
thread: each at its own learning rate and at three times that, ours too, falling by a cosine, gradients clipped to 1.
Each has its project's own optimiser and reconstruction loss. What this comparison is not: adversarial and perceptual
terms are left out, a batch is one, the grid is 64³, and a few core-minutes are less than any of them was made for.
peer_adapters.py says what each network is given and how its volume is put on our grid.

A patient's result of a network and rate stays in DIR/results, so the command goes on where it was stopped. DIR/peers.md
and peers.json hold the table, DIR/peers.png the gain over the mean volume.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cascades import COLUMNS, DATA, MEAN, VARIANTS, plot, print_table, table_rows
from claims import otherwise_claimed
from peer_checkouts import PEERS, digest, licence
from peer_training import MARK

from drr2ct.pipeline.data.sample.cts import real_cts
from drr2ct.pipeline.running.console import wide_console
from drr2ct.transforms.files import replacing, write_json

OURS = "cascade64"
RATES = {"": 1.0, "-x3": 3.0}
"""What a row's name ends in, and how many times its network's own learning rate is used."""
WORKER = Path(__file__).with_name("peer_training.py")
_SAID = 300
"""Characters of a failed process that are shown."""


def job_lines(job: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Run a job in a process of its own; what it tells, and at its end that it failed if it did."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended: its status says why
                process.stdin.write(json.dumps(job))
                process.stdin.close()
            for line in process.stdout:
                if line.startswith(MARK):
                    yield json.loads(line.removeprefix(MARK))
            status = process.wait()
        finally:
            process.kill()
        if status:
            errors.seek(0)
            last = [line.strip() for line in errors.read().splitlines() if line.strip()][-1:]
            yield {"failed": f"{job['network']}: exit status {status}: {' '.join(last)}"[:_SAID]}


def markdown(results: dict[str, dict[str, Any]], title: str) -> str:
    """The table, and below it what each network is, where it is from and its licence."""
    lines = [title, "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' + '---:|' * (len(COLUMNS) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in table_rows(results)]
    lines.append("")
    for name, folds in results.items():
        row = next(iter(folds.values()))
        if "repository" in row and not name.endswith("-x3"):
            lines.append(f"- `{name}` ({row['repository']}; {row['licence']}): {row['about']}.")
    return "\n".join(lines) + "\n"


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows → patient → figures, in the order of the table."""
    order = [MEAN] + [name + end for name in (OURS, *PEERS) for end in RATES]
    found = {row: {p.stem: json.loads(p.read_text()) for p in sorted((folder / row).glob("*.json"))} for row in order}
    return {row: patients for row, patients in found.items() if patients}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--x2ct", type=Path, help="checkout of github.com/kylekma/X2CT")
    parser.add_argument("--xrayto3d", type=Path, help="checkout of github.com/naamiinepal/xrayto3D-benchmark")
    parser.add_argument("--psct", type=Path, help="checkout of github.com/DYDevelop/PSCT-Net")
    parser.add_argument("--dif-net", type=Path, help="checkout of github.com/xmed-lab/DIF-Net")
    parser.add_argument("--dif-gaussian", type=Path, help="checkout of github.com/xmed-lab/DIF-Gaussian")
    parser.add_argument("--cts", type=Path, help="folder of real CTs: leave patients out")
    parser.add_argument("--patients", nargs="+", help="with --cts: only these take part, in training and test")
    parser.add_argument("--groups", type=int, default=4, help="with --cts: leave out so many groups; 0: each alone")
    parser.add_argument("--folds", nargs="+", help="with --cts: only the groups that these are in")
    parser.add_argument("--networks", nargs="+", choices=[OURS, *PEERS], default=[OURS, *PEERS])
    parser.add_argument("--seconds", type=float, default=300.0, help="core-seconds of training, for each")
    parser.add_argument("--steps", type=int, default=0, help="train each for so many steps instead of the seconds")
    parser.add_argument("--data", choices=DATA, default=DATA[0], help="what a step learns from")
    parser.add_argument("--training", type=int, default=1728, help="variations to train on, with one patient left out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cts = real_cts(arguments.cts) if arguments.cts else {}
    for option in ("patients", "folds"):
        if unknown := set(getattr(arguments, option) or ()) - cts.keys():
            known = ", ".join(cts) or "of --cts"
            parser.error(f"--{option}: {', '.join(sorted(unknown))} is not among the patients {known}")
    arguments.found = {patient: str(ct) for patient, ct in cts.items() if patient in (arguments.patients or cts)}
    if cts and arguments.groups != 0 and not 2 <= arguments.groups <= len(arguments.found):
        parser.error(f"--groups: {len(arguments.found)} patients cannot be left out in {arguments.groups} groups")
    if arguments.data == "between" and not cts:
        parser.error("--data between needs several patients: give --cts")
    keys = ("seconds", "steps", "data", "training", "seed", "groups")
    settings: dict[str, Any] = {key: getattr(arguments, key) for key in keys} | {"patients": list(arguments.found)}
    if other := otherwise_claimed(arguments.output, settings):
        parser.error(f"{other}; choose another folder")
    return arguments


def main() -> None:
    arguments = parse()
    console = wide_console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    kept = arguments.output / "results"
    # what is written into each result of a network
    about: dict[str, dict[str, str]] = {MEAN: {}}
    checkouts: dict[str, str] = {MEAN: "", OURS: ""}
    for name in dict.fromkeys(arguments.networks):
        if name == OURS:
            about[name] = {"digest": VARIANTS[OURS].digest()}
            continue
        peer = PEERS[name]
        checkout: Path | None = getattr(arguments, peer.option.replace("-", "_"))
        if checkout is None:
            say(f"{name}: no checkout of {peer.repository} is given (--{peer.option} CHECKOUT); skipped.")
        elif not checkout.is_dir():
            say(f"{name}: {checkout} is no folder (--{peer.option}); skipped.")
        else:
            checkouts[name] = str(checkout.resolve())
            about[name] = {
                "digest": digest(peer, checkout),
                "repository": peer.repository,
                "licence": licence(checkout, checkout / peer.root / peer.source),
                "about": peer.about,
            }
            say(f"{name}: {peer.repository}, {about[name]['licence']}: {peer.about}.")
    for name, what in about.items():
        for path in sorted(p for end in RATES for p in (kept / (name + end)).glob("*.json")):
            if json.loads(path.read_text()).get("digest") != what.get("digest"):
                raise SystemExit(f"{path} is of another {name} (code, loss or rate); delete it to train this one.")

    patients = list(arguments.found)
    count = arguments.groups or len(patients)
    groups = [patients[i::count] for i in range(count)] if patients else [["cohort"]]
    for group in groups:
        if arguments.folds and not set(arguments.folds) & set(group):
            continue
        for name in list(about):
            rows = {MEAN: 1.0} if name == MEAN else {name + end: times for end, times in RATES.items()}
            rows = {
                row: times for row, times in rows.items() if not all((kept / row / f"{p}.json").exists() for p in group)
            }
            if not rows:
                continue
            keys = ("seconds", "steps", "data", "training", "seed")
            job = {
                **{key: getattr(arguments, key) for key in keys},
                "output": str(arguments.output),
                "network": name,
                "checkout": checkouts[name],
                "cts": arguments.found,
                "group": group,
                "rows": rows,
                "kept": about[name],
            }
            for told in job_lines(job):
                if "unusable" in told:
                    say(f"{name}: {told['unusable']}; skipped.")
                    del about[name]
                else:
                    say(told.get("progress") or f"failed, and goes on without: {told['failed']}")

    results = read_results(kept)
    if MEAN not in results:
        raise SystemExit("nothing could be trained.")
    each = f"{arguments.steps} steps" if arguments.steps else f"{arguments.seconds:g} core-seconds"
    title = f"{each} of training each, on one thread, from {arguments.data} variations"
    print_table(results, console, title)
    text = markdown(results, title)
    say(text.split("\n\n", 2)[-1])
    with replacing(arguments.output / "peers.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(arguments.output / "peers.json", {"title": title, "columns": COLUMNS, "rows": list(table_rows(results))})
    if len(results) > 1:  # the mean volume's own gain is none
        plot(results, arguments.output / "peers.png", "core-seconds on 1")


if __name__ == "__main__":
    main()
