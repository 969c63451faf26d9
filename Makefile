# make demo    show what a tunnel does on this machine
# make test    run the whole suite
# Both install what they need: Debian packages by apt, the rest into .venv.

PYTHON ?= python3
VENV := .venv
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

BUILD_PACKAGES := build-essential pkg-config python3-dev python3-venv libssl-dev \
	iproute2 iputils-ping iperf3
ifeq ($(shell uname -m),x86_64)
BUILD_PACKAGES += libipsec-mb-dev
endif
TEST_PACKAGES := wireguard-go wireguard-tools nftables strace procps ethtool dnsmasq-base busybox \
	qemu-system-x86 nebula openvpn fastd tinc vtun quicktun n2n chromium \
	android-libboringssl

# Installs those of its packages that are missing, if any are.
define apt_install
	@missing=""; for package in $(1); do \
	  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' \
	    || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then \
	  command -v apt-get >/dev/null || { echo "install these packages:$$missing"; exit 1; }; \
	  echo "installing:$$missing"; \
	  $(SUDO) apt-get -qq update && $(SUDO) env DEBIAN_FRONTEND=noninteractive \
	    apt-get -qq -y --no-install-recommends install $$missing >/dev/null; fi
endef

.PHONY: demo test test-long test-pythons lint fuzz-memory path-table start-table day bench bench-gateway bench-lanes bench-limits packages test-packages install clean

demo: install
	$(SUDO) $(VENV)/bin/fastpump demo $(DEMO_OPTIONS)

# The run leaves no files of root's in a user's tree. Options may leave no test for one of the two
# (exit status 5).
PYTEST := $(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(VENV)/bin/python -m pytest -p no:cacheprovider
MAYBE_NONE := $(if $(TEST_OPTIONS),|| [ $$? = 5 ])
test: test-packages install
	$(PYTEST) -n 2 -m "not alone" $(TEST_OPTIONS) $(MAYBE_NONE)
	$(PYTEST) -n 2 -m alone $(TEST_OPTIONS) $(MAYBE_NONE)

# What the suite does in short, for as long as it takes: keys expire.
test-long: test-packages install
	$(PYTEST) -n 2 --long -m "abridged and not alone" $(TEST_OPTIONS) $(MAYBE_NONE)
	$(PYTEST) -n 2 --long -m "abridged and alone" $(TEST_OPTIONS) $(MAYBE_NONE)

# With other Pythons: those of these Debian releases, each in a root of its own.
PYTHONS_OF := bookworm trixie forky
test-pythons: install
	$(call apt_install,mmdebstrap)
	$(SUDO) $(VENV)/bin/python tests/support/pythons.py $(PYTHONS_OF)

lint: install
	$(VENV)/bin/ruff check --no-cache .
	$(VENV)/bin/mypy --cache-dir=/dev/null
	$(VENV)/bin/cython-lint fastpump/_core.pyx fastpump/bench/_packets.pyx \
	  fastpump/core_parts/*.pxi fastpump/hot/*.pxd

# Every word that a worker may write, with every hostile value: some minutes.
fuzz-memory: install
	PYTHONPATH=.:tests $(VENV)/bin/python -m fuzz.sharedmemory $(FUZZ_OPTIONS)

# Path MTUs of all sizes, with routers of all kinds: half an hour.
path-table: install
	$(SUDO) env PYTHONPATH=.:tests $(VENV)/bin/python -m support.pathtable $(PATH_OPTIONS)

# Starts without what is not there yet: some minutes.
start-table: test-packages install
	$(SUDO) env PYTHONPATH=.:tests $(VENV)/bin/python -m support.starts $(START_OPTIONS)

# All that may happen in a day, while TCP runs through a gateway: half an hour.
day: test-packages install
	$(SUDO) env PYTHONPATH=.:tests $(VENV)/bin/python -m support.day $(DAY_OPTIONS)

# WIREGUARD_GO=/path/to/wireguard-go compares with it.
bench: install
	$(VENV)/bin/python -m pytest -p no:cacheprovider bench --benchmark-only \
	  --override-ini addopts= --benchmark-columns=median,iqr,rounds
	$(SUDO) $(VENV)/bin/fastpump bench $(BENCH_OPTIONS) \
	  $(if $(WIREGUARD_GO),--program wireguard-go=$(WIREGUARD_GO))

# A gateway with many peers, and under attack.
bench-gateway: install
	$(SUDO) $(VENV)/bin/python bench/gateway.py $(BENCH_OPTIONS) \
	  $(if $(WIREGUARD_GO),--wireguard-go $(WIREGUARD_GO))

# What each technique of lanes gains.
bench-lanes: install
	$(SUDO) $(VENV)/bin/python bench/lanes.py $(BENCH_OPTIONS)

# How exact rate limits are.
bench-limits: install
	$(SUDO) $(VENV)/bin/python bench/limits.py $(BENCH_OPTIONS)

packages:
	$(call apt_install,$(BUILD_PACKAGES))

test-packages: packages
	$(call apt_install,$(TEST_PACKAGES))

install: packages $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py fastpump/_core.pyx \
		$(wildcard fastpump/core_parts/* fastpump/hot/*)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info fastpump/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
