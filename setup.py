"""Supply the fields that pyproject.toml declares dynamic, from settings.ini and the package's `__version__`."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="], interpolation=None)
cfg.read(here / "settings.ini", encoding="utf-8")
needs = cfg["DEFAULT"]


def lines(key):
    return [line.strip() for line in needs.get(key, "").splitlines() if line.strip()]


class WithPages(build_py):
    """The pages of the course travel with the package: `hfflow course` copies them."""
    def run(self):
        super().run()
        if self.editable_mode: return
        for page in [*(here / "nbs").glob("[0-9]*.ipynb"), *(here / "nbs/images").glob("*.png")]:
            to = Path(self.build_lib) / "hfflow/pages" / page.relative_to(here / "nbs")
            self.mkpath(str(to.parent))
            self.copy_file(str(page), str(to))


setup(
    cmdclass={"build_py": WithPages},
    version=re.search(r'__version__ = "([^"]+)"', (here / "hfflow/__init__.py").read_text(encoding="utf-8"))[1],
    python_requires=f">={needs['min_python']}",
    install_requires=lines("requirements"),
    extras_require={key.removesuffix("_requirements"): lines(key) for key in needs if key.endswith("_requirements")},
    entry_points={"console_scripts": lines("console_scripts"), "nbdev": ["hfflow = hfflow._modidx:d"]},
    packages=find_packages(include=["hfflow", "hfflow.*"]),
    include_package_data=True,
    package_data={"hfflow": ["plots.mplstyle", "assets/**/*", "templates/**/*", "localhub/templates/**/*", "localhub/static/**/*"]},
)
