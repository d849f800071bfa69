"""`kcache doctor`: describe this machine and installation, as text for a bug report or as JSON."""

import json
from dataclasses import asdict

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the same facts as one JSON object.")
def doctor(as_json: bool) -> int:
    """Describe this machine and installation.

    Shows the versions beside those that kcache is tested with, the devices that torch sees, which optional extras are
    present and how to get the others, and where checkpoints are kept. Nothing leaves the machine.

    \b
    Paste this into a bug report:
      kcache doctor

    \b
    Read one fact in a script:
      kcache doctor --json | python -c "import json, sys; print(json.load(sys.stdin)['devices'])"

    Exit code: 0, or 1 if something that kcache needs is missing.
    """
    from kcache.doctor import examine, render

    report = examine()
    click.echo(json.dumps(asdict(report), indent=2) if as_json else render(report))
    return 1 if report.problems else 0
