"""The local door of the feature browser: who may ask, where audits run, and the server itself."""

import hashlib
import json
import logging
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, request, send_from_directory

from workbench.audit import AuditReport
from workbench.dashboards import Dashboards
from workbench.errors import WorkbenchError
from workbench.hooks import Intervention
from workbench.interventions import save_edit

HOME = "127.0.0.1"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; worker-src blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)
"""What the browser may load: from this server alone."""
KEY = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Names:
    """What the models are called on the command line, for audits and live edits.

    Attributes:
        golds: models that never knew, as `load_model` takes them.
    """

    model: str
    facts: str
    target: str
    golds: tuple[str, ...] = ()


@dataclass
class Audits:
    """Quick audits of edits, each in a process of its own, so that the page stays at hand.

    An audit is the same command that a user would type; its edit and report stay in the run.
    """

    run: Path
    names: Names | None
    running: dict[str, subprocess.Popen] = field(default_factory=dict)

    def start(self, edits: Sequence[Intervention], told: Any) -> str:
        """Begins the audit of an edit, or finds the one that was made before; returns its key.

        Raises:
            WorkbenchError: an audit is running, or there is no target or model to audit.
        """
        if self.names is None:
            raise WorkbenchError("there is no model and target to audit: see `workbench browse -h`")
        if any(process.poll() is None for process in self.running.values()):
            raise WorkbenchError("an audit is running: wait until it has ended")
        key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
        folder = self.run / "audits" / key
        if not (folder / "report.json").is_file():
            save_edit(edits, self.run / "audits" / f"{key}-edit")
            log = (self.run / "audits" / f"{key}.log").open("wb")
            self.running[key] = subprocess.Popen(
                self.line(key), stdout=log, stderr=subprocess.STDOUT
            )
            log.close()
        return key

    def line(self, key: str) -> list[str]:
        """The command of an audit."""
        assert self.names is not None
        n, room = self.names, self.run / "audits"
        golds = ["--golds", *n.golds] if n.golds else []
        audit = [sys.executable, "-m", "workbench.cli", "audit", n.model, n.facts, n.target]
        where = ["--edit", str(room / f"{key}-edit"), "--out", str(room / key)]
        return [*audit, *golds, "--profile", "quick", *where]

    def told(self, key: str) -> tuple[bool, str, str]:
        """Whether an audit has ended, its verdict or latest line, and its sentence.

        Raises:
            WorkbenchError: it failed; the text is the last line that it said.
        """
        if not KEY.fullmatch(key):
            raise WorkbenchError("no such audit")
        process, log = self.running.get(key), self.run / "audits" / f"{key}.log"
        said = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
        if process is not None and process.poll() is None:
            return False, "running", said[-1][-200:] if said else ""
        folder = self.run / "audits" / key
        if not (folder / "report.json").is_file():
            raise WorkbenchError(f"the audit failed: {said[-1][-400:] if said else 'no output'}")
        verdict = AuditReport.open(folder).verdict
        return True, verdict.primary, verdict.sentence

    def stop(self) -> None:
        """Ends what is running; finished jobs of it are kept."""
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
                process.wait(10)


def guarded(server: Flask, port: int, run: Path) -> None:
    """Lets the server answer only pages that it gave out itself, and read only its own run.

    A page of another site can make a browser ask this server. Its Host is then foreign (DNS
    rebinding), or its Origin is: both are refused.
    """
    hosts = {f"{name}:{port}" for name in (HOME, "localhost")}

    @server.before_request
    def check() -> None:
        origin = request.headers.get("Origin")
        if request.host not in hosts or (origin and origin not in {f"http://{h}" for h in hosts}):
            abort(403)

    @server.after_request
    def close(response: Response) -> Response:
        response.headers.setdefault("Content-Security-Policy", POLICY)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response

    @server.get("/audits/<key>/report.html")
    def report(key: str) -> Response:
        if not KEY.fullmatch(key):
            abort(404)
        return send_from_directory((run / "audits" / key).resolve(), "report.html")


def serve(
    dashboards: Dashboards, bench: Any, names: Names | None, port: int, say: Any = print
) -> None:
    """Serves the browser on this machine alone until it is interrupted.

    Raises:
        WorkbenchError: the port is taken.
    """
    from werkzeug.serving import make_server

    from workbench.report.browser.app import make_app

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line for every request
    audits = Audits(dashboards.folder.resolve(), names if names and names.target else None)
    app = make_app(dashboards, bench, audits)
    guarded(app.server, port, audits.run)
    try:
        server = make_server(HOME, port, app.server, threaded=True)
    except (OSError, SystemExit) as error:
        raise WorkbenchError(f"port {port} is taken: give another with --port") from error
    say(f"http://{HOME}:{port}/  (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("ended")
    finally:
        audits.stop()
        if bench is not None:
            bench.wait()
