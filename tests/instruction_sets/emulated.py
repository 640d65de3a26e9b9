"""Compares the AVX-512 kernels with those for AVX2 in the emulator Bochs, for processors without AVX-512.

    PYTHONPATH=tests python -m instruction_sets.emulated [PROBLEMS]

It needs Debian's packages bochs, isolinux, syslinux-common, genisoimage and cpio. The emulated machine runs a Linux
kernel that apt downloads and that is unpacked, but not installed. The machine starts in a minute or two, and is some
thousand times slower than a real one: 200 problems take about three minutes. Bochs 3.0 emulates AVX512_BF16, so that
bfloat16 weights are multiplied in pairs; Bochs 2.7 does not.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from instruction_sets.build import FOLDER, HERE, build

TOOLS = ("bochs", "genisoimage", "cpio", "dpkg", "apt-get", "gcc")
BOOT_LOADER = (Path("/usr/lib/ISOLINUX/isolinux.bin"), Path("/usr/lib/syslinux/modules/bios/ldlinux.c32"))
PACKAGE = "linux-image-cloud-amd64"
# Bochs 2.7 and Linux do not agree on the size of the compact form of saved registers.
START = "initrd=initrd console=ttyS0 rdinit=/init mitigations=off clearcpuid=xsaves,xsavec,xsaveopt quiet"
MACHINE = """\
plugin_ctrl: unmapped=1, biosdev=1, serial=1
config_interface: textconfig
display_library: rfb, options="timeout=0"
memory: guest=1024, host=1024
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
boot: cdrom
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=machine.iso, status=inserted
cpu: model=corei7_skylake_x, count=1, ips=100000000{features}
clock: sync=none
log: bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
com1: enabled=1, mode=file, dev=console.txt
"""


def main(arguments: list[str]) -> int:
    """Run the given number of problems, or 200, and return 0 if no result differs."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None] + [str(p) for p in BOOT_LOADER if not p.exists()]
    if missing:
        print(f"not found: {', '.join(missing)}. Install bochs, isolinux, syslinux-common, genisoimage and cpio.")
        return 2
    folder = FOLDER / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    has_pairs = "sapphire_rapids" in subprocess.run(["bochs", "--help", "cpu"], capture_output=True, text=True).stderr
    problems = arguments[0] if arguments else "200"
    make_image(folder, [problems, "1", *["pairs"] * has_pairs])
    text = run_machine(folder, ', add_features="avx512bf16"' * has_pairs)
    return 0 if "ended with 0" in text else 1


def make_image(folder: Path, arguments: list[str]) -> None:
    """Make the image of a bootable disc with Linux that runs only the program, with these arguments."""
    root, disc = folder / "root", folder / "disc"
    shutil.rmtree(root, ignore_errors=True)
    shutil.rmtree(disc, ignore_errors=True)
    (root / "dev").mkdir(parents=True)
    (disc / "isolinux").mkdir(parents=True)
    shutil.copy(build("AVX2", "AVX512", static=True), root / "compare")
    quoted = ", ".join(f'"{argument}"' for argument in arguments)
    init = ["gcc", "-O1", "-static", f"-DARGUMENTS={quoted}", str(HERE / "init.c"), "-o", str(root / "init")]
    subprocess.run(init, check=True)
    files = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with (disc / "isolinux" / "initrd").open("wb") as archive:
        command = ["cpio", "-o", "-H", "newc", "--quiet"]
        subprocess.run(command, cwd=root, input=files.encode(), stdout=archive, check=True)
    shutil.copy(find_linux(folder), disc / "isolinux" / "vmlinuz")
    for path in BOOT_LOADER:
        shutil.copy(path, disc / "isolinux")
    (disc / "isolinux" / "isolinux.cfg").write_text(f"DEFAULT only\nLABEL only\n KERNEL vmlinuz\n APPEND {START}\n")
    boot = ["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot", "-boot-load-size", "4"]
    command = ["genisoimage", "-quiet", "-o", str(folder / "machine.iso"), *boot, "-boot-info-table", str(disc)]
    subprocess.run(command, check=True)


def find_linux(folder: Path) -> Path:
    """Return the Linux kernel, which is downloaded if it is missing."""
    found = list(folder.glob("linux/boot/vmlinuz-*"))
    if not found:
        depends = subprocess.check_output(["apt-cache", "depends", PACKAGE], text=True)
        package = next(line.split()[-1] for line in depends.splitlines() if "Depends: linux-image" in line)
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        (archive,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg", "-x", str(archive), str(folder / "linux")], check=True)
        found = list(folder.glob("linux/boot/vmlinuz-*"))
    return found[0]


def run_machine(folder: Path, features: str) -> str:
    """Run the machine with more ``features`` of its processor until it ends; print and return its console."""
    (folder / "bochsrc").write_text(MACHINE.format(features=features))
    console = folder / "console.txt"
    console.unlink(missing_ok=True)
    # Debian's Bochs starts in its debugger, which ends at the end of its input, so the pipe must stay open.
    machine = subprocess.Popen(
        ["bochs", "-q", "-f", "bochsrc", "-unlock"],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert machine.stdin is not None
    machine.stdin.write("c\n")
    machine.stdin.flush()
    shown, deadline = 0, time.monotonic() + 3600
    while True:
        text = console.read_text(errors="replace") if console.exists() else ""
        print(text[shown:], end="", flush=True)
        shown = len(text)
        if "ended with" in text or machine.poll() is not None or time.monotonic() > deadline:
            machine.kill()
            return text
        time.sleep(2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
