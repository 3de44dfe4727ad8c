# The build of DAC: one Makefile, non-recursive, GNU make. `make help` lists what it can do.
#
# A normal build lives in build/, with config.h and config.mk in the root. Every other build
# (make SANITIZE=1, CRASHPOINTS=1, COVERAGE=1, or BUILD=folder) keeps everything, its
# configuration too, in its own folder, so that they never rebuild each other.
# CONFIGURE_FLAGS goes to configure the first time; afterwards each folder keeps its own.

BUILD := build
CONFIGURE_FLAGS :=
PYTEST_FLAGS :=

ifdef SANITIZE
BUILD := build/asan
override CONFIGURE_FLAGS += --enable-sanitize --enable-crashpoints
else ifdef CRASHPOINTS
BUILD := build/crash
override CONFIGURE_FLAGS += --enable-crashpoints
else ifdef COVERAGE
BUILD := build/coverage
override CONFIGURE_FLAGS += --enable-coverage --enable-crashpoints
else ifdef FUZZ
BUILD := build/fuzz
override CONFIGURE_FLAGS += --enable-sanitize CC=clang 'CFLAGS=-O1 -g -fsanitize=fuzzer-no-link'
else ifdef TSAN
BUILD := build/tsan
# It does not know fences, and says so with a warning.
override CONFIGURE_FLAGS += 'CFLAGS=-O1 -g -fno-omit-frame-pointer -fsanitize=thread -Wno-tsan'
endif
CONF := $(if $(filter build,$(BUILD)),.,$(BUILD))

MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

ifeq ($(V),1)
Q :=
say = @:
else
Q := @
say = @printf '  %-6s %s\n'
endif

# These need no configuration; what needs one they get by calling make again.
FREE_GOALS := help deps clean distclean dist deb format check check-asan check-tsan coverage fuzz model demo
ifneq ($(filter-out $(FREE_GOALS),$(or $(MAKECMDGOALS),all)),)
include $(CONF)/config.mk
endif

# --- what there is ---------------------------------------------------------------------

STORE_KINDS := sqlite postgres
MIGRATIONS := $(sort $(wildcard $(STORE_KINDS:%=src/store/migrations/%/*.sql)))
GEN_SRCS := $(if $(wildcard src/store/migrations.h),$(STORE_KINDS:%=$(BUILD)/gen/migrations_%.c))
LIB_SRCS := $(sort $(wildcard src/*/*.c shm/*.c))
LIB_OBJS := $(LIB_SRCS:%.c=$(BUILD)/%.o) $(GEN_SRCS:.c=.o)
LIB := $(BUILD)/libdac.a

dacd_SRCS := $(wildcard src/main.c)
dacctl_SRCS := $(sort $(wildcard tools/dacctl*.c))
dac-mock_SRCS := $(sort $(wildcard tools/mock/*.c))
dac-bench_SRCS := $(sort $(wildcard tools/bench/*.c))
ALL_PROGRAMS := dacd dacctl dac-mock dac-bench
PROGRAMS := $(foreach p,$(ALL_PROGRAMS),$(if $($(p)_SRCS),$(p)))
BINARIES := $(PROGRAMS:%=$(BUILD)/%)

UNIT_TESTS := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/unit/test_*.c)))
SHM_TESTS := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/shm/test_*.c)))
# Other files of a test folder are linked into each of its programs.
UNIT_HELPERS := $(filter-out tests/unit/test_%,$(sort $(wildcard tests/unit/*.c)))
SHM_HELPERS := $(filter-out tests/shm/test_%,$(sort $(wildcard tests/shm/*.c)))
# What system tests start beside the service.
SYSTEM_TOOLS := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/system/*.c)))
FAULTS := $(patsubst %.c,$(BUILD)/%.so,$(wildcard tests/faults/*.c))
FUZZERS := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/fuzz/fuzz_*.c)))

SRCS := $(LIB_SRCS) $(foreach p,$(PROGRAMS),$($(p)_SRCS)) \
	$(sort $(wildcard tests/unit/*.c tests/shm/*.c tests/system/*.c tests/fuzz/*.c))
DEPS := $(SRCS:%.c=$(BUILD)/%.d) $(GEN_SRCS:.c=.d)

# --- build -----------------------------------------------------------------------------

.PHONY: all
all: $(BINARIES) $(if $(filter build,$(BUILD)),links) ## build every program (default)
	@$(if $(BINARIES),:,echo 'No program has sources here.')

.PHONY: links
links: $(BINARIES)
	@for p in $(PROGRAMS); do [ "$$(readlink $$p)" = "build/$$p" ] || ln -sf "build/$$p" "$$p"; done

configure config.h.in &: configure.ac aclocal.m4
	$(say) AUTO configure
	@command -v autoreconf >/dev/null || { \
	    echo 'autoconf is missing: apt-get install autoconf (or tools/install-deps.sh build)' >&2; \
	    exit 1; }
	$(Q)autoreconf
	@touch configure config.h.in

$(CONF)/config.mk: configure config.h.in config.mk.in
	$(say) CONF $(CONF)
	@mkdir -p $(CONF)
	$(Q)cd $(CONF) && if [ -x config.status ]; then \
	    ./config.status -q --recheck >/dev/null && ./config.status -q; \
	else \
	    $(CURDIR)/configure -q $(CONFIGURE_FLAGS); \
	fi
	@touch $@

$(CONF)/config.h: $(CONF)/config.mk ;

COMPILE = $(CC) $(DAC_STD) $(DAC_WARN) $(DAC_HARDEN) $(DAC_INSTRUMENT) \
	-I$(CONF) -I$(BUILD)/gen -Isrc -I. $(LIB_CFLAGS) $(CPPFLAGS) $(CFLAGS) -MMD -MP
LINK = $(CC) $(DAC_STD) $(DAC_HARDEN) $(DAC_INSTRUMENT) $(CFLAGS) $(DAC_LDFLAGS) $(LDFLAGS)

$(BUILD)/tests/%.o: tests/%.c $(CONF)/config.mk
	$(say) CC $<
	@mkdir -p $(@D)
	$(Q)$(COMPILE) $(CHECK_CFLAGS) -c -o $@ $<

$(BUILD)/%.o: %.c $(CONF)/config.mk
	$(say) CC $<
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -c -o $@ $<

$(BUILD)/gen/%.o: $(BUILD)/gen/%.c $(CONF)/config.mk
	$(say) CC $<
	$(Q)$(COMPILE) -c -o $@ $<

# A list that changes only when its contents do: what depends on it notices a removed file.
.PHONY: FORCE
$(BUILD)/%.list: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' $($*_LIST) | cmp -s - $@ || printf '%s\n' $($*_LIST) >$@
lib_LIST = $(LIB_OBJS)
migrations_LIST = $(MIGRATIONS)

$(BUILD)/gen/migrations_%.c: $(MIGRATIONS) tools/embed-sql.sh $(BUILD)/migrations.list
	$(say) GEN $@
	@mkdir -p $(@D)
	$(Q)tools/embed-sql.sh $* $(filter src/store/migrations/$*/%,$(MIGRATIONS)) >$@

$(LIB): $(LIB_OBJS) $(BUILD)/lib.list
	$(say) AR $@
	@rm -f $@
	$(Q)$(AR) rc $@ $(LIB_OBJS) && $(RANLIB) $@

# PROGRAM(name)
define PROGRAM
$(1)_OBJS := $$($(1)_SRCS:%.c=$(BUILD)/%.o)
$(BUILD)/$(1): $$($(1)_OBJS) $(LIB)
	$$(say) LINK $$@
	$$(Q)$$(LINK) -o $$@ $$($(1)_OBJS) $(LIB) $$(LIB_LIBS) $$(LIBS) -lm
endef
$(foreach p,$(PROGRAMS),$(eval $(call PROGRAM,$(p))))

# TESTS(folder, helper sources): one program per test_*.c
define TESTS
$(BUILD)/tests/$(1)/test_%: $(BUILD)/tests/$(1)/test_%.o $(2:%.c=$(BUILD)/%.o) $(LIB)
	$$(say) LINK $$@
	@$$(if $$(HAVE_CHECK),:,echo 'the tests need: apt-get install check' >&2; exit 1)
	$$(Q)$$(LINK) -o $$@ $$(filter %.o,$$^) $(LIB) $$(CHECK_LIBS) $$(LIB_LIBS) $$(LIBS) -lm
endef
$(eval $(call TESTS,unit,$(UNIT_HELPERS)))
$(eval $(call TESTS,shm,$(SHM_HELPERS)))

$(BUILD)/tests/system/%: $(BUILD)/tests/system/%.o $(LIB)
	$(say) LINK $@
	$(Q)$(LINK) -o $@ $< $(LIB) $(LIB_LIBS) $(LIBS) -lm

$(BUILD)/tests/fuzz/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(LIB)
	$(say) LINK $@
	$(Q)$(LINK) -fsanitize=fuzzer -o $@ $< $(LIB) $(LIB_LIBS) $(LIBS) -lm

# To be preloaded into dacd, and so without what the build links or instruments.
$(BUILD)/tests/faults/%.so: tests/faults/%.c $(CONF)/config.mk
	$(say) LINK $@
	@mkdir -p $(@D)
	$(Q)$(CC) $(DAC_STD) $(DAC_WARN) -Wno-pedantic -O1 -g -fPIC -shared -o $@ $<

.PHONY: $(ALL_PROGRAMS)
$(PROGRAMS): %: $(BUILD)/%
.SECONDARY:

-include $(DEPS)

# --- test ------------------------------------------------------------------------------

.PHONY: deps
deps: ## install what the build and the tests need (Debian)
	@tools/install-deps.sh check

.PHONY: check
check: deps ## unit, shared-memory and system tests
	+@MAKE='$(MAKE)' tools/check.sh normal $(BUILD) $(PYTEST_FLAGS)

.PHONY: check-asan
check-asan: deps ## the same under ASan+UBSan; of the system tests a part (FULL=1: all)
	+@MAKE='$(MAKE)' FULL='$(FULL)' tools/check.sh asan $(BUILD) $(PYTEST_FLAGS)

.PHONY: check-unit
check-unit: $(UNIT_TESTS) ## only the unit tests
	@tools/run-tests.sh unit $(BUILD)/results $(UNIT_TESTS)

.PHONY: check-shm
check-shm: $(SHM_TESTS) ## only the shared-memory tests (with CRASHPOINTS=1: all of them)
	@tools/run-tests.sh shm $(BUILD)/results $(SHM_TESTS)

.PHONY: check-system
check-system: all $(SYSTEM_TOOLS) ## only the system tests; PYTEST_FLAGS='-k name -x' picks some
	@tools/install-deps.sh venv
	@tools/run-pytest.sh system $(BUILD) $(PYTEST_FLAGS)

.PHONY: check-postgres
check-postgres: all $(SYSTEM_TOOLS) ## the system tests with their turns in PostgreSQL
	@tools/install-deps.sh venv
	@DAC_STORE=postgres tools/run-pytest.sh postgres $(BUILD) $(PYTEST_FLAGS)

.PHONY: check-crash
check-crash: all $(SYSTEM_TOOLS) ## only the system tests of crash points (with CRASHPOINTS=1)
	@tools/install-deps.sh venv
	@tools/run-pytest.sh crash $(BUILD) -m crashpoints $(PYTEST_FLAGS)

.PHONY: check-systemd
check-systemd: all ## the service under a real systemd (root; not part of check)
	@tools/install-deps.sh venv
	@[ "$$(id -u)" != 0 ] || tools/install-deps.sh systemd
	@DEB_BUILD_OPTIONS= tools/build-deb.sh $(BUILD)/deb
	@TESTS=tests/systemd tools/run-pytest.sh systemd $(BUILD) $(PYTEST_FLAGS)

.PHONY: check-faults
check-faults: all $(FAULTS) ## fail every Nth allocation, descriptor, mapping (FAULTS_FULL=1: each)
	@tools/install-deps.sh venv
	@TESTS=tests/faults tools/run-pytest.sh faults $(BUILD) $(PYTEST_FLAGS)

.PHONY: fuzz run-fuzzers
fuzz: deps ## feed the parsers junk, FUZZ_SECONDS=10 each (clang)
	+@$(MAKE) --no-print-directory BUILD=$(BUILD)/fuzz FUZZ=1 run-fuzzers

run-fuzzers: $(FUZZERS)
	@tools/run-fuzzers.sh $(or $(FUZZ_SECONDS),10) $(BUILD)/corpus $(FUZZERS)

.PHONY: check-tsan run-tsan
check-tsan: deps ## workers and recorder as threads of one process under ThreadSanitizer
	+@$(MAKE) --no-print-directory BUILD=$(BUILD)/tsan TSAN=1 run-tsan

run-tsan: $(BUILD)/tests/shm/test_threads
	@TSAN_OPTIONS='halt_on_error=0 exitcode=66' tools/run-tests.sh tsan $(BUILD)/results $<

SHM_UNIT_TESTS := $(filter $(BUILD)/tests/unit/test_shm_%,$(UNIT_TESTS))

.PHONY: coverage run-coverage
coverage: deps ## lines and branches of shm/ that the tests reach (MISSING=1: those they don't)
	+@$(MAKE) --no-print-directory BUILD=$(BUILD)/coverage COVERAGE=1 run-coverage

run-coverage: $(SHM_UNIT_TESTS) $(SHM_TESTS)
	@find $(BUILD) -name '*.gcda' -delete
	@tools/run-tests.sh coverage $(BUILD)/results $^
	@tools/coverage.py $(BUILD) shm --lines 95 --branches 85 $(if $(MISSING),--missing)

.PHONY: bench-takeover
bench-takeover: all ## a fetcher dies: how long the others wait for their next byte (KILLS=200 STOPS=20)
	@tools/install-deps.sh venv
	@DAC_BUILD=$(BUILD) .venv/bin/python tests/takeover/bench.py --kills $(or $(KILLS),200) --stops $(or $(STOPS),20)

.PHONY: bench-store
bench-store: all ## what storing a turn costs beside a bare commit (TURNS=500 ROUNDS=3)
	@tools/bench-store.sh $(BUILD) --turns $(or $(TURNS),500) --rounds $(or $(ROUNDS),3)

.PHONY: torture
torture: all ## random deaths under a mixed load (KILLS=200 SEED=number JOBS=1)
	@tools/install-deps.sh venv
	@DAC_BUILD=$(BUILD) PYTHONDONTWRITEBYTECODE=1 .venv/bin/python tests/torture/torture.py \
	    --kills $(or $(KILLS),200) --jobs $(or $(JOBS),1) $(if $(SEED),--seed $(SEED))

.PHONY: check-store-random
check-store-random: all ## random troubles of PostgreSQL under load (SEEDS=50 SEED=number)
	@tools/install-deps.sh venv
	@DAC_BUILD=$(BUILD) PYTHONDONTWRITEBYTECODE=1 .venv/bin/python tests/outage/troubles.py \
	    --seeds $(or $(SEEDS),50) $(if $(SEED),--seed $(SEED))

.PHONY: soak-outage
soak-outage: all ## PostgreSQL is away for long, under load (MINUTES=10)
	@tools/install-deps.sh venv
	@DAC_BUILD=$(BUILD) PYTHONDONTWRITEBYTECODE=1 .venv/bin/python tests/outage/soak.py \
	    --minutes $(or $(MINUTES),10)

.PHONY: model
model: ## explore the models of shm/ exhaustively (spin), and find what is broken on purpose
	@tools/install-deps.sh model-checker
	@tests/model/run.sh $(BUILD)/model

.PHONY: tests
tests: all $(UNIT_TESTS) $(SHM_TESTS) $(SYSTEM_TOOLS) ## build the test programs without running them

.PHONY: lint
lint: $(CONF)/config.mk ## layers, headers, format, cppcheck, shellcheck
	@CC='$(CC)' FLAGS='$(DAC_STD) $(DAC_WARN) -I$(CONF) -Isrc -I. $(LIB_CFLAGS) $(CHECK_CFLAGS)' \
	    tools/lint.sh $(BUILD)/lint

.PHONY: format
format: ## let clang-format rewrite the sources
	@git ls-files -co --exclude-standard '*.c' '*.h' | xargs -r clang-format -i

.PHONY: manual
manual: all ## write the settings table into etc/dac.conf.sample and docs/man/dac.conf.5
	@tools/update-manual.sh $(BUILD)/dacctl

.PHONY: demo
demo: ## a real model, one question, 50 clients (MODEL=mock: without the model)
	@tools/install-deps.sh demo
	+@$(MAKE) --no-print-directory all
	@tools/demo.sh $(or $(MODEL),smollm2)

# --- install, clean --------------------------------------------------------------------

# Where systemd looks below any usual prefix.
unitdir := $(prefix)/lib/systemd/system
sysusersdir := $(prefix)/lib/sysusers.d
tmpfilesdir := $(prefix)/lib/tmpfiles.d

# What operators run by hand or by timer; the first group is sourced or read, not run.
RUNBOOK_DATA := tools/prep_ttft_test.sh tools/restore_prod_settings.sh tools/ttft_lib.sh \
	tools/ttft_cancel.sh etc/prometheus/dac.rules.yml
RUNBOOK_SCRIPTS := tools/ttft_settings.sh tools/smoke_ttft.sh tools/run_ttft_suite.sh \
	tools/acceptance.sh tools/sse_ttft_p95.mjs tools/check_alerts.sh

.PHONY: install
install: all ## install into $(DESTDIR)$(prefix)
	install -d $(DESTDIR)$(sbindir) $(DESTDIR)$(bindir) $(DESTDIR)$(sysconfdir)/dac \
	    $(DESTDIR)$(docdir)
	install -m 755 $(BUILD)/dacd $(DESTDIR)$(sbindir)/dacd
	install -m 755 $(filter-out $(BUILD)/dacd,$(BINARIES)) $(DESTDIR)$(bindir)
	install -m 644 etc/dac.conf.sample $(DESTDIR)$(sysconfdir)/dac/dac.conf.sample
	install -m 644 README.md CHANGELOG.md LICENSE docs/design.md docs/audit.md docs/store.md docs/metrics.md docs/install.md \
	    docs/configuration.md docs/idempotency.md docs/logging.md docs/runbook.md $(DESTDIR)$(docdir)
	install -d $(DESTDIR)$(unitdir) $(DESTDIR)$(sysusersdir) $(DESTDIR)$(tmpfilesdir)
	sed 's,/usr/sbin/,$(sbindir)/,; s,/etc/dac/,$(sysconfdir)/dac/,' systemd/dacd.service \
	    >$(DESTDIR)$(unitdir)/dacd.service
	chmod 644 $(DESTDIR)$(unitdir)/dacd.service
	sed 's,/usr/share/dac/,$(datadir)/dac/,' systemd/dac-alerts.service >$(DESTDIR)$(unitdir)/dac-alerts.service
	chmod 644 $(DESTDIR)$(unitdir)/dac-alerts.service
	install -m 644 systemd/dacd.socket systemd/dac-alerts.timer $(DESTDIR)$(unitdir)
	install -m 644 systemd/dac.sysusers $(DESTDIR)$(sysusersdir)/dac.conf
	install -m 644 systemd/dac.tmpfiles $(DESTDIR)$(tmpfilesdir)/dac.conf
	install -d $(DESTDIR)$(datadir)/dac
	install -m 644 $(RUNBOOK_DATA) $(DESTDIR)$(datadir)/dac
	install -m 755 $(RUNBOOK_SCRIPTS) $(DESTDIR)$(datadir)/dac
	install -d $(DESTDIR)$(datadir)/dac/examples
	install -m 644 etc/nginx/dac.conf $(DESTDIR)$(datadir)/dac/examples/nginx.conf
	install -m 644 etc/haproxy/dac.cfg $(DESTDIR)$(datadir)/dac/examples/haproxy.cfg
	install -d $(DESTDIR)$(mandir)/man1 $(DESTDIR)$(mandir)/man5 $(DESTDIR)$(mandir)/man7 \
	    $(DESTDIR)$(mandir)/man8
	install -m 644 docs/man/*.1 $(DESTDIR)$(mandir)/man1
	install -m 644 docs/man/*.5 $(DESTDIR)$(mandir)/man5
	install -m 644 docs/man/*.7 $(DESTDIR)$(mandir)/man7
	install -m 644 docs/man/*.8 $(DESTDIR)$(mandir)/man8

# Of a copy of what git knows.
.PHONY: deb
deb: ## Debian packages, in BUILD/deb (tools/install-deps.sh package)
	@tools/build-deb.sh $(BUILD)/deb

.PHONY: dist
dist: configure ## a source archive with configure inside
	@v=$$(sed -n 's/^AC_INIT(\[dac\], \[\(.*\)\])/\1/p' configure.ac); \
	{ git ls-files | grep -v '^\.\(ci\|github\)/'; echo configure; echo config.h.in; } | \
	    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$$(git log -1 --format=%ct)" \
	    --transform "s,^,dac-$$v/," -czf "dac-$$v.tar.gz" -T - && echo "dac-$$v.tar.gz"

.PHONY: clean
clean: ## remove what was built
	rm -rf build $(ALL_PROGRAMS)

.PHONY: distclean
distclean: clean ## remove what configure, autoreconf and the tests' environment made, too
	rm -rf config.h config.h.in config.mk config.log config.status configure 'configure~' \
	    autom4te.cache .venv .demo dac-*.tar.gz

.PHONY: help
help: ## this list
	@echo 'make TARGET [V=1] [SANITIZE=1 | CRASHPOINTS=1 | COVERAGE=1] [BUILD=folder]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile
