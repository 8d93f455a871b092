"""A real JupyterLab in a real Chromium for the tests, and a notebook in it, used as a person uses it.

Where no Chromium is found the tests that ask for `lab` are skipped, and with TINKER_UTILS_BROWSER=required they fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, ViewportSize
    from support.local_service import Running

ROOT = Path(__file__).parents[2]
DEADLINE = 180.0  # seconds, for what should take a few; two busy cores and a cold disk are slow
_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SWITCHES = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
WINDOW: ViewportSize = {"width": 1300, "height": 1250}
_TOKEN = "of-the-tests"
# https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio, of each text, which may be translucent, against the first opaque
# ground behind it. A canvas turns colours of every notation into bytes.
_ILLEGIBLE = """(view, contrast) => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const bytes = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = channels => {
    const [r, g, b] = channels.map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (bytes(colour)[3] === 255) return colour;
    }
    return 'white';
  };
  const opacity = element => element ? Number(getComputedStyle(element).opacity) * opacity(element.parentElement) : 1;
  const found = [];
  const judge = (element, text) => {
    if (!text.trim() || element.closest('style, :disabled')) return;
    const style = getComputedStyle(element);
    const behind = bytes(ground(element)), ink = bytes(element.closest('svg') ? style.fill : style.color);
    const share = ink[3] / 255 * opacity(element);
    const light = [luminance(behind), luminance(behind.map((x, i) => share * ink[i] + (1 - share) * x))];
    const ratio = (Math.max(...light) + 0.05) / (Math.min(...light) + 0.05);
    if (ratio < contrast) found.push(`${ratio.toFixed(2)}: ${text.trim()}`);
  };
  const walker = document.createTreeWalker(view, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) judge(walker.currentNode.parentElement, walker.currentNode.textContent);
  for (const field of view.querySelectorAll('input, select')) judge(field, field.value);
  return found;
}"""


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition` gives something true, and return that."""
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {DEADLINE:.0f} s for {what}")
        time.sleep(0.05)
    return value


class Lab:
    """A running JupyterLab whose files are in `folder`, and a browser window on it."""

    def __init__(self, url: str, folder: Path, page: Page, environment: dict[str, str]) -> None:
        self.url = url
        self.folder = folder
        self.page = page
        self.environment = environment

    def open(self, notebook: Path) -> Notebook:
        """Open a notebook of `folder` in a fresh workspace; no kernel is started for one that has no open session."""
        # What an earlier notebook left unsaved must not ask whether to leave.
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}/lab/tree/{notebook.relative_to(self.folder)}?token={_TOKEN}&reset")
        self.page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        return Notebook(self, notebook)

    def menu(self, menu: str, item: str) -> None:
        """Choose an item of a menu in the menu bar."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=menu).click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()

    def theme(self, name: str) -> None:
        """Switch to a theme, `light` or `dark`."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text="Settings").click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text("Theme", exact=True).hover()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(f"JupyterLab {name.title()}", exact=True).click()
        light = str(name == "light").lower()
        self.page.locator(f"body[data-jp-theme-light='{light}']").wait_for(state="attached")


class Notebook:
    """A notebook that is open in the browser, and the live view in it."""

    def __init__(self, lab: Lab, file: Path) -> None:
        self.lab = lab
        self.page = lab.page
        self.file = file

    # What a person does

    def run_all(self) -> None:
        until(self._connected, "the notebook to have its kernel")
        self.lab.menu("Run", "Run All Cells")

    def restart_and_run_all(self) -> None:
        self.lab.menu("Kernel", "Restart Kernel and Run All Cells…")
        self.page.locator(".jp-Dialog button.jp-mod-accept").click()

    def interrupt(self) -> None:
        self.lab.menu("Kernel", "Interrupt Kernel")

    def shut_down_kernel(self) -> None:
        self.lab.menu("Kernel", "Shut Down Kernel")
        until(lambda: self.kernel() is None, "the kernel to go")

    def save(self) -> nbformat.NotebookNode:
        """Save the notebook and return what the file holds."""
        before = self.file.stat().st_mtime_ns
        self.lab.menu("File", "Save Notebook")
        until(lambda: self.file.stat().st_mtime_ns != before, "the file to be saved")
        until(lambda: _json(self.file), "the whole file")
        return nbformat.read(self.file, as_version=4)

    def press(self, button: str) -> None:
        self.button(button).click()

    def photograph(self, file: Path) -> None:
        """A picture of the cell that has the live view, as it looks now."""
        self.page.locator(".jp-CodeCell", has=self.view).screenshot(path=file)

    # What a person sees

    @property
    def view(self) -> Locator:
        """The live view: the output that has its buttons, its sentence and its picture."""
        return self.page.locator(".jp-OutputArea-output:has(.tinker-controls)")

    @property
    def form(self) -> Locator:
        """The form with the settings: the output that has the figures that follow from them."""
        return self.page.locator(".jp-OutputArea-output:has([aria-label='Effect of these settings'])")

    def button(self, name: str) -> Locator:
        """A button of the live view, by its accessible name."""
        return self.view.get_by_role("button", name=name, exact=True)

    @property
    def sentence(self) -> Locator:
        """The line that says what the run does."""
        return self.view.locator(".head [role=status]")

    @property
    def picture(self) -> Locator:
        """The live picture."""
        return self.view.locator(".tinker-run[role=img]")

    def wait_for_sentence(self, beginning: str) -> str:
        """Wait until the line that says what the run does begins so, and return it."""
        begins = re.compile(f"^{re.escape(beginning)}")
        self.view.locator(".head [role=status]", has_text=begins).wait_for()
        return self.sentence.inner_text()

    def wait_for_change(self, picture: str) -> str:
        """Wait for another picture than this one, and return it."""
        self.page.wait_for_function(
            "old => { const now = document.querySelector('.tinker-run[role=img] svg')?.outerHTML;"
            " return now && now !== old; }",
            arg=picture,
        )
        return self.svg()

    def svg(self) -> str:
        return self.picture.locator("svg").evaluate("svg => svg.outerHTML")

    def kernel(self) -> dict[str, Any] | None:
        """Return what the server says of this notebook's kernel; None if there is none."""
        with urllib.request.urlopen(f"{self.lab.url}/api/sessions?token={_TOKEN}", timeout=DEADLINE) as response:
            kernels = {session["path"]: session["kernel"] for session in json.load(response)}
        return kernels.get(str(self.file.relative_to(self.lab.folder)))

    def _connected(self) -> bool:
        kernel = self.kernel()
        return kernel is not None and kernel["connections"] > 0 and kernel["execution_state"] == "idle"

    @property
    def _idle(self) -> Locator:
        return self.page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")

    def illegible(self, part: Locator, contrast: float) -> list[str]:
        """The texts in a part of the page that stand out less than `contrast` (WCAG's ratio), as ratio and text."""
        return part.evaluate(_ILLEGIBLE, contrast)

    def still_is_seen(self) -> bool:
        """Return whether a picture of some size stands in the outputs."""
        pictures = self.page.locator(".jp-OutputArea-output img")
        pictures.first.wait_for()
        return any(box and box["height"] > 100 for box in (picture.bounding_box() for picture in pictures.all()))

    def errors_seen(self) -> list[str]:
        """Return what JupyterLab says in the place of each widget that is not there, where a person can read it."""
        missing = self.page.locator(".jp-OutputArea-output", has_text="Error displaying widget")
        missing.first.wait_for(state="attached")
        sizes = missing.evaluate_all("all => all.map(one => [one.textContent, getComputedStyle(one).fontSize])")
        return [text for text, size in sizes if size != "0px"]

    def wait_until_free(self) -> None:
        """Wait until the kernel is idle and no cell waits for it."""
        self._idle.wait_for()
        self.page.wait_for_function(
            "() => ![...document.querySelectorAll('.jp-InputPrompt')].some(prompt => prompt.textContent.includes('*'))"
        )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # half of it is written
        return None


def _environment(own: Path) -> dict[str, str]:
    """For JupyterLab and what runs in it: its own files (settings, sessions, trust) are in `own`."""
    places = {f"JUPYTER_{name}_DIR": str(own / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **places, "IPYTHONDIR": str(own / "ipython"), "PYTHONPATH": path}


@contextlib.contextmanager
def _server(folder: Path, own: Path, environment: dict[str, str]) -> Iterator[str]:
    """A JupyterLab on `folder`; gives its address."""
    settings = own / "config" / "labconfig" / "page_config.json"
    settings.parent.mkdir(parents=True)
    # A dialog that offers news would stand in the way.
    settings.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    # A person scrolls to what is to be seen; here all cells are in the page, wherever it is scrolled to.
    whole = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
    settings.with_name("default_setting_overrides.json").write_text(json.dumps(whole))
    options = ("--no-browser", "--allow-root", "--ServerApp.port=0", f"--ServerApp.root_dir={folder}")
    log = own / "server.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "jupyterlab", *options, f"--IdentityProvider.token={_TOKEN}"]
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        about = own / "runtime" / f"jpserver-{server.pid}.json"
        until(lambda: server.poll() is not None or (about.exists() and _json(about)), "JupyterLab to start")
        assert server.poll() is None, log.read_text(encoding="utf-8")
        yield _json(about)["url"].rstrip("/")
    finally:
        server.terminate()  # which ends its kernels, too
        server.wait(DEADLINE)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, local_service: Running) -> Iterator[Lab]:
    """One JupyterLab and one browser window for a module's tests; its kernels have the embedded service's key."""
    chromium = next(filter(None, map(shutil.which, _CHROMIUMS)), None)
    if chromium is None:
        message = f"no browser to test in: none of {', '.join(_CHROMIUMS)} is installed"
        if os.environ.get("TINKER_UTILS_BROWSER") == "required":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("lab")
    own = tmp_path_factory.mktemp("jupyter")
    environment = {**_environment(own), "TINKER_UTILS_SERVICE_KEY": local_service.api_key}
    with _server(folder, own, environment) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_SWITCHES)
        page = browser.new_page(viewport=WINDOW)
        page.set_default_timeout(DEADLINE * 1000)
        yield Lab(url, folder, page, environment)
        browser.close()
