"""`python -m training run RECIPE --namespace ME --on HARDWARE`: the same run as a Job on the Hub.

Says what it costs and what is sent, asks, sends, starts, and follows. If the Job already runs, it is followed. If the
Hub cuts it off, another Job resumes from the newest checkpoint on the Hub.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from huggingface_hub import HfApi, JobInfo

from inference.errors import LabError
from training.finetune.run import check_options
from training.jobs.follow import check_outcome, follow_job, was_cut_off
from training.jobs.hardware import Hardware, find_hardware
from training.jobs.job import find_job, start_job
from training.jobs.price import Price, estimate_price
from training.jobs.shipment import make_shipment, send
from training.publish.account import account
from training.recipe import Recipe

JOBS = 3  # at most in one call: the first, and those that resume it after it was cut off


@dataclass(frozen=True)
class Options:
    """What the command line gives beside the recipe. With `yes` nothing is asked."""

    hardware: str
    namespace: str | None
    out: Path | None = None
    private: bool | None = None
    include_samples: bool = False
    force: bool = False
    formats: Sequence[str] = ()
    yes: bool = False

    def account(self) -> str:
        """The account that pays and gets the result. Raises LabError if the options do not fit a Job."""
        if self.namespace is None:
            raise LabError("--on needs --namespace: the account on the Hub that pays, and that gets the result.")
        if self.out is not None:
            raise LabError("--out has no use with --on: the result goes to the Hub; leave it out.")
        return self.namespace

    def arguments(self) -> list[str]:
        """The options of the command in the Job."""
        found = ["--namespace", self.account()]
        if self.private is not None:
            found.append("--private" if self.private else "--public")
        found += [
            name for name, given in (("--include-samples", self.include_samples), ("--force", self.force)) if given
        ]
        return found + [part for each in self.formats for part in ("--format", each)]


def run_on_hub(recipe: Recipe, options: Options) -> list[str]:
    """Run a recipe on rented hardware and return the addresses of the repositories that it made.

    Raises LabError for a wrong option, a refusal of the Hub or of the user, or with the last line of a failed Job.
    """
    namespace = options.account()
    api = account(namespace)
    rented = find_hardware(api, options.hardware)
    price: Price | None = None
    for _ in range(JOBS):
        job = find_job(api, namespace, recipe)
        if job is None:
            price = price or check_and_estimate(recipe, rented)
            job = start(api, recipe, price, options)
        else:
            print(f"This run is already under way: {job.url}", file=sys.stderr)
        ended, log = follow_job(api, job)
        if not was_cut_off(ended, log):
            check_outcome(ended, log)
            return log.addresses(f"{api.endpoint}/{namespace}/")
        reason = (ended.status.message or "no reason given").rstrip(".")
        print(f"The Hub ended the Job ({reason}). Another one resumes from its newest checkpoint.", file=sys.stderr)
    raise LabError(f"{JOBS} Jobs were cut off: see {ended.url}; the same command resumes from the newest checkpoint.")


def check_and_estimate(recipe: Recipe, rented: Hardware) -> Price:
    """The price of a run, whose options and data are checked here, where nobody pays for it."""
    check_options(recipe)
    return estimate_price(recipe, rented)


def start(api: HfApi, recipe: Recipe, price: Price, options: Options) -> JobInfo:
    """Show price and files, ask, send the files and start the Job. Raises LabError if the user declines."""
    shipment = make_shipment(recipe, options.account())
    for line in (*price.sentences(), *shipment.sentences()):
        print(line, file=sys.stderr)
    if not options.yes:
        if not sys.stdin.isatty():
            raise LabError("Nothing was started, because nobody could be asked: add --yes to accept this price.")
        if not typer.confirm("Start the Job?", err=True):
            raise LabError("Nothing was started.")
    job = start_job(api, recipe, price, shipment, send(api, shipment), options.arguments())
    print(f"The Job has started: {job.url}", file=sys.stderr)
    return job
