"""Build the data plane, ``fastpump._core``, what makes load, ``fastpump.bench._packets``, and the
man pages of docs/.

Everything else about the package is in pyproject.toml. Two libraries give the data plane its
ciphers: OpenSSL's libcrypto (always) and intel-ipsec-mb (x86-64, when its
header is there; the library is loaded at run time, if it is there then).
FASTPUMP_AEAD chooses at run time.

Environment:
  FASTPUMP_BUILD_DEBUG=1         assertions, symbols, no optimisation
  FASTPUMP_BUILD_PROFILE=1       symbols and frame pointers, optimised
  FASTPUMP_BUILD_NO_IPSEC_MB=1   leave intel-ipsec-mb out
  FASTPUMP_BUILD_NULL_CIPHER=1   encrypt nothing: to measure what the ciphers cost
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

from distutils.command.install_data import install_data  # isort: skip (setuptools provides it)

HERE = Path(__file__).parent

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
}
WARNINGS = ["-Wall", "-Wsign-compare", "-Wno-unused-function"]


def environment_flag(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def header_compiles(header: str, flags: list[str]) -> bool:
    """Whether the C compiler finds `header`."""
    compiler = os.environ.get("CC", "cc").split()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(f"#include <{header}>\nint main(void) {{ return 0; }}\n")
        command = [*compiler, *flags, "-fsyntax-only", str(source)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def pkg_config(option: str, package: str) -> list[str]:
    if shutil.which("pkg-config") is None:
        sys.exit("fastpump: pkg-config is missing; install it (Debian: apt install pkg-config)")
    result = subprocess.run(["pkg-config", option, package], capture_output=True, text=True,
                            check=False)
    if result.returncode != 0:
        sys.exit("fastpump: the headers of OpenSSL are missing; install them "
                 "(Debian: apt install libssl-dev)")
    return result.stdout.split()


def enum_names(hot: Path) -> str:
    """Cython: for every enum of hot/ whose last member is X_COUNT, a dict X_NAMES {value: name}. So
    a verdict, a counter, an event is written down once."""
    lines = ["# Made by setup.py from the enums of hot/."]
    for path in sorted(hot.glob("*.pxd")):
        for enum in re.findall(r"^cdef enum:\n((?:    .*\n|\n)+)", path.read_text(), re.MULTILINE):
            *members, last = re.findall(r"^    ([A-Z]\w*)", enum, re.MULTILINE)
            if last.endswith("_COUNT"):
                lines += ["", f"from fastpump.hot cimport {path.stem} as _{path.stem}", "",
                          f"{last.removesuffix('_COUNT')}_NAMES = {{",
                          *(f'    _{path.stem}.{name}: "{name}",' for name in members), "}"]
    return "\n".join(lines) + "\n"


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class BuildExt(build_ext):
    """Probe the headers first, so that what is missing is said in one sentence."""

    def build_extensions(self) -> None:
        if shutil.which(os.environ.get("CC", "cc").split()[0]) is None:
            sys.exit("fastpump: no C compiler; install one (Debian: apt install build-essential)")
        include = [f"-I{path}" for path in self.compiler.include_dirs]
        if not header_compiles("Python.h", include):
            sys.exit("fastpump: the headers of Python are missing; install them "
                     "(Debian: apt install python3-dev)")
        crypto_cflags = pkg_config("--cflags", "libcrypto")
        if not header_compiles("openssl/evp.h", crypto_cflags):
            sys.exit("fastpump: the headers of OpenSSL are missing; install them "
                     "(Debian: apt install libssl-dev)")
        core, load = self.extensions
        core.extra_compile_args += crypto_cflags
        core.extra_link_args += pkg_config("--libs", "libcrypto")
        if self.has_ipsec_mb():
            core.define_macros.append(("FASTPUMP_IPSEC_MB", "1"))
            core.libraries.append("dl")                 # of its own before glibc 2.34
        for extension in (core, load):
            extension.sources = translated(extension)
        super().build_extensions()

    @staticmethod
    def has_ipsec_mb() -> bool:
        if platform.machine() != "x86_64" or environment_flag("FASTPUMP_BUILD_NO_IPSEC_MB"):
            return False
        if header_compiles("intel-ipsec-mb.h", []):
            return True
        print("fastpump: building without intel-ipsec-mb, which is about twice as fast as "
              "OpenSSL here (Debian: apt install libipsec-mb-dev)", file=sys.stderr)
        return False


class InstallData(install_data):
    """What pyproject.toml lists, and the manuals as man pages."""

    def run(self) -> None:
        pages = HERE / "build" / "man"
        for manual in sorted((HERE / "docs").glob("*.[1-9].md")):
            page = pages / manual.stem
            write_if_changed(page, man_page(manual.read_text()))
            self.data_files = [*self.data_files, (f"share/man/man{page.suffix[1:]}", [str(page)])]
        super().run()


def man_page(manual: str) -> str:
    """The man page of a manual in Markdown: its title is NAME(SECTION), and "## NAME" comes first.
    The writer makes that section by itself, of title and subtitle."""
    from docutils import core, nodes
    from docutils.writers.manpage import Writer
    from myst_parser.docutils_ import Parser

    head = re.match(r"# (.+)\((\d)\)\n\n## NAME\n\n\1 - (.+)\n", manual)
    assert head is not None
    name, section, summary = head.groups()
    body = re.sub(r"^##", "###", manual[head.end():], flags=re.MULTILINE)
    document = core.publish_doctree(
        f"# {name}\n## {summary}\n{body}", parser=Parser(), settings_overrides={
            "myst_enable_extensions": ["deflist"], "doctitle_xform": True, "halt_level": 2})
    document.insert(2, nodes.docinfo("", nodes.field(    # behind title and subtitle
        "", nodes.field_name("", "manual_section"),
        nodes.field_body("", nodes.paragraph("", section)))))
    text = core.publish_from_doctree(document, writer=Writer(), settings_overrides={
        "output_encoding": "unicode", "datestamp": None})
    assert isinstance(text, str)
    return text


def compile_args() -> list[str]:
    # -fno-strict-aliasing: headers are read in place, out of byte buffers.
    args = [*WARNINGS, "-fno-strict-aliasing"]
    if environment_flag("FASTPUMP_BUILD_DEBUG"):
        args += ["-O0", "-g", "-UNDEBUG", "-DFASTPUMP_DEBUG=1"]
    else:
        args += ["-O3"]
    if environment_flag("FASTPUMP_BUILD_PROFILE"):
        args += ["-g", "-fno-omit-frame-pointer"]
    return args


def core_extension() -> Extension:
    macros: list[tuple[str, str | None]] = [("_GNU_SOURCE", "1")]
    if environment_flag("FASTPUMP_BUILD_NULL_CIPHER"):
        macros.append(("FASTPUMP_NULL_CIPHER", "1"))
    return Extension(
        "fastpump._core",
        ["fastpump/_core.pyx"],
        extra_compile_args=compile_args(),
        define_macros=macros,
        include_dirs=["fastpump/hot"],
        depends=sorted(str(path.relative_to(HERE)) for folder in ("hot", "core_parts")
                       for path in HERE.glob(f"fastpump/{folder}/*.*")),
    )


def load_extension() -> Extension:
    return Extension(
        "fastpump.bench._packets",
        ["fastpump/bench/_packets.pyx"],
        extra_compile_args=compile_args(),
        define_macros=[("_GNU_SOURCE", "1")],
        depends=["fastpump/hot/linux.pxd"],
    )


def translated(extension: Extension) -> list[str]:
    """The C source that Cython makes of an extension's."""
    from Cython.Build import cythonize

    generated = HERE / "build" / "cython" / "generated"
    write_if_changed(generated / "enum_names.pxi", enum_names(HERE / "fastpump" / "hot"))
    (made,) = cythonize([extension], compiler_directives=DIRECTIVES, build_dir="build/cython",
                        include_path=[str(HERE), str(generated)])
    return list(made.sources)


setup(ext_modules=[core_extension(), load_extension()],
      cmdclass={"build_ext": BuildExt, "install_data": InstallData})
