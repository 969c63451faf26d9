"""MAC addresses that are derived from names."""

import pytest

from fastpump.host import derived_macs
from fastpump.host.derived_macs import HIGHEST, LOWEST, derive, of_interface


@pytest.fixture
def machine_id(tmp_path, monkeypatch):
    """The file, which is not there yet."""
    path = tmp_path / "machine-id"
    monkeypatch.setattr(derived_macs, "_MACHINE_ID", path)
    monkeypatch.setattr(derived_macs.paths, "namespace_name", lambda: "blue")
    return path


def test_an_address_is_the_same_for_ever():
    """Guests are configured with it: another version must not give another one."""
    assert derived_macs.text(derive(LOWEST, "guest", "vm0", b"id\0")) == "02:bf:3c:f4:d7:26"
    assert derived_macs.text(derive(LOWEST, "bridge", "br0", b"id\0")) == "02:99:6e:a5:a1:c2"
    assert derived_macs.text(derive(HIGHEST, "port", "fp0", b"id\0")) == "fe:9c:a7:05:d3:71"


def test_hosts_namespaces_names_and_purposes_have_addresses_of_their_own(machine_id, monkeypatch):
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    seen = [of_interface(LOWEST, "bridge", "br0")]
    assert of_interface(LOWEST, "bridge", "br0") == seen[0]
    seen.append(of_interface(LOWEST, "bridge", "br1"))
    seen.append(of_interface(LOWEST, "port", "br0"))
    monkeypatch.setattr(derived_macs.paths, "namespace_name", lambda: None)
    seen.append(of_interface(LOWEST, "bridge", "br0"))
    machine_id.write_text("fedcba9876543210fedcba9876543210\n")
    seen.append(of_interface(LOWEST, "bridge", "br0"))
    assert len(set(seen)) == len(seen)
    assert all(int(mac[:2], 16) & 3 == 2 for mac in seen)      # local, and no group


@pytest.mark.parametrize("text", [None, "", "\n", "uninitialized\n"])
def test_hosts_without_an_id_never_share_an_address(machine_id, text):
    if text is not None:
        machine_id.write_text(text)
    assert of_interface(LOWEST, "bridge", "br0") != of_interface(LOWEST, "bridge", "br0")
