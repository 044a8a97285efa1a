#!/bin/bash
# Installs mammod as a systemd service, upgrades it, or removes it. Run it from a checkout or an unpacked release; docs/how-to/install.md
# is the guide. What is where afterwards:
#   /opt/mammod/VERSION-TIME   one environment for each installation, exactly as requirements.lock names it
#   /opt/mammod/current        a link to the one that runs; it moves when the new one is whole
#   /etc/mammod                settings (mammod.toml) and secrets; an upgrade never writes over them
#   /var/lib/mammod            spool and ledger, the service's own
set -euo pipefail
umask 022

usage() {
	cat <<'END'
Usage: deploy/install.sh [OPTIONS]               install, or upgrade what is installed
       deploy/install.sh --uninstall [--purge]   remove the program; --purge removes settings and data too
       deploy/install.sh --download DIR          fetch all that an installation without network needs

  --extra NAME      with an extra of pyproject.toml: openvino, postgresql, s3 or ray; may be given more than once
  --python PROGRAM  the Python to build on (3.11 to 3.13); the first that is found, unless given
  --offline DIR     install from what --download left in DIR, without any network
  --wheel FILE      install this wheel of mammod, rather than making one of the files here
  --root DIR        a trial: everything goes below DIR and runs from there; no user is made, nothing is started
  --no-start        leave the running service alone; the new version is taken at its next start
  --yes             do not ask (--purge)
  --dry-run         say what would be done
  --help            this text
END
}

die() { # die MESSAGE...
	printf 'install.sh: %s\n' "$@" >&2
	exit 1
}

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
SOURCE="$(dirname "$HERE")"
NEEDED_MIB=3500 # the service alone takes 2,523 MiB
action=install root="" python="" wheel="" offline="" download="" dry="" purge="" yes="" start=yes extras=()
while [ $# -gt 0 ]; do
	case "$1" in
	--extra | --python | --offline | --wheel | --root | --download)
		if [ $# -lt 2 ] || [ -z "$2" ]; then die "$1 needs a value; --help says what."; fi
		;;
	esac
	case "$1" in
	--extra) extras+=("$2") && shift ;;
	--python) python="$2" && shift ;;
	--offline) offline="$(realpath -e -- "$2")" || die "--offline $2: there is no such folder."; shift ;;
	--wheel) wheel="$(realpath -e -- "$2")" || die "--wheel $2: there is no such file."; shift ;;
	--root) root="$(realpath -m -- "$2")" && shift ;;
	--download) action=download download="$(realpath -m -- "$2")" && shift ;;
	--uninstall) action=uninstall ;;
	--purge) purge=yes ;;
	--yes) yes=yes ;;
	--no-start) start="" ;;
	--dry-run) dry=yes ;;
	--help | -h) usage && exit 0 ;;
	*) usage >&2 && die "there is no option $1." ;;
	esac
	shift
done
[ "$root" != / ] || root=""
[ -z "$purge" ] || [ "$action" = uninstall ] || die "--purge goes with --uninstall."

OPT="$root/opt/mammod"
ETC="$root/etc/mammod"
DATA="$root/var/lib/mammod"
LIB="$root/usr/local/lib"
COMMAND="$root/usr/local/bin/mammod"

say() { printf '%s\n' "$*"; }
run() { # run COMMAND...: does it, or says that it would
	if [ -n "$dry" ]; then say "would run: $*"; else "$@"; fi
}
systemd_runs() { [ -z "$root" ] && [ -d /run/systemd/system ]; }
in_service() { systemd_runs && systemctl is-active --quiet mammod; }

may_write() {
	if [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
		die "this writes to /opt and /etc: run it as root (sudo deploy/install.sh), or try it with --root DIR."
	fi
}

# --- what can be known before anything is written --------------------------------------------------------------------

find_python() {
	local candidate candidates=(python3 python3.13 python3.12 python3.11)
	[ -z "$python" ] || candidates=("$python")
	for candidate in "${candidates[@]}"; do
		if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
			python="$(command -v "$candidate")"
			"$python" -c 'import ensurepip, venv' 2>/dev/null ||
				die "$python has no venv module: install it (Debian and Ubuntu: apt-get install python3-venv)."
			in_reach
			return
		fi
	done
	[ -z "$python" ] || die "--python $python: not a Python 3.11, 3.12 or 3.13 ($("$python" --version 2>&1 || true))."
	die "mammod needs Python 3.11, 3.12 or 3.13, and none was found; this machine's python3 is: $(python3 --version 2>&1 || true)." \
		"Install one (Debian 12: apt-get install python3 python3-venv; RHEL 9: dnf install python3.12), or name it by --python."
}

in_reach() { # the service sees no home directories (ProtectHome)
	local real
	real="$("$python" -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')"
	case "$real/" in
	/root/* | /home/* | /run/user/*)
		[ -n "$root" ] || [ "$action" = download ] ||
			die "$python lies in $real, which the service may not read: name one of the system by --python /usr/bin/python3."
		;;
	esac
}

check_room() {
	local folder="$OPT" free
	while [ ! -d "$folder" ]; do folder="$(dirname "$folder")"; done
	free="$(df --output=avail --block-size=1M -- "$folder" | tail -n 1 | tr -d ' ')"
	[ "$free" -ge "$NEEDED_MIB" ] || die "no room: $folder has $free MiB free, and an installation takes up to $NEEDED_MIB MiB."
}

check_source() {
	local file
	for file in "$SOURCE/requirements.lock" "$HERE/packages.txt" "$HERE/mammod.service" "$SOURCE/config/__init__.py"; do
		[ -r "$file" ] || die "$file is missing: run this from a whole checkout or an unpacked release."
	done
	VERSION="$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$SOURCE/config/__init__.py")"
	[ -n "$VERSION" ] || die "config/__init__.py names no version."
	if [ -z "$wheel" ] && [ -n "$offline" ]; then
		wheel="$(find "$offline" -maxdepth 1 -name "mammod-$VERSION-*.whl" -print -quit)"
		[ -n "$wheel" ] || die "--offline $offline: no mammod-$VERSION wheel is there; fetch it by --download from this release."
	fi
	case "$(basename "${wheel:-mammod-$VERSION-}")" in
	"mammod-$VERSION-"*) ;;
	*) die "--wheel $wheel is not mammod $VERSION, which the files here belong to: take the wheel and these files of one release." ;;
	esac
	local extra
	for extra in "${extras[@]}"; do
		case "$extra" in
		service | build) ;;
		*) awk -v want="$extra" '!/^#/ { for (i = 2; i <= NF; i++) if ($i == want) exit 1 }' "$HERE/packages.txt" || continue ;;
		esac
		die "--extra $extra: there is no such extra; openvino, postgresql, s3 and ray are."
	done
}

# --- the environment -------------------------------------------------------------------------------------------------

locked() { # locked GROUP...: the entries of the lock, hashes and all, of the packages in these groups
	awk -v groups="$*" '
		BEGIN { split(groups, names); for (i in names) wanted[names[i]] }
		FNR == NR { if (!/^#/) for (i = 2; i <= NF; i++) if ($i in wanted) take[$1]; next }
		/^[a-z0-9]/ { split($0, part, "=="); taken = part[1] in take }
		taken' "$HERE/packages.txt" "$SOURCE/requirements.lock"
}

pip() { # pip ENVIRONMENT ARGUMENTS...
	local environment="$1"
	shift
	"$environment/bin/python" -m pip --disable-pip-version-check --no-input --quiet "$@"
}

from_where() { # what pip is told about where packages come from
	[ -z "$offline" ] || printf '%s\n' --no-index --find-links "$offline"
}

make_wheel() { # make_wheel DIR: mammod's own, by the pinned hatchling, in an environment that goes again
	local where=()
	mapfile -t where < <(from_where)
	"$python" -m venv "$work/build"
	locked build >"$work/build.txt"
	pip "$work/build" install --require-hashes --only-binary :all: "${where[@]}" --requirement "$work/build.txt"
	pip "$work/build" wheel --no-deps --no-index --no-build-isolation --wheel-dir "$1" "$SOURCE"
}

fill() { # fill DIR: a virtual environment with the service's packages and mammod
	local where=()
	mapfile -t where < <(from_where)
	say "Python:    $("$python" --version) ($python)"
	"$python" -m venv "$1"
	locked service "${extras[@]}" >"$work/requirements.txt"
	say "Packages:  $(grep -c '==' "$work/requirements.txt") of requirements.lock${extras[*]:+, with ${extras[*]}} (some 700 MB the first time)"
	pip "$1" install --require-hashes --only-binary :all: "${where[@]}" --requirement "$work/requirements.txt"
	if [ -z "$wheel" ]; then
		make_wheel "$work"
		wheel="$(find "$work" -maxdepth 1 -name "mammod-$VERSION-*.whl" -print -quit)"
	fi
	pip "$1" install --no-deps --no-index --force-reinstall "$wheel"
	mkdir -p "$1/share/mammod/deploy" "$1/share/doc/mammod/docs"
	cp -r "$HERE/." "$1/share/mammod/deploy/"
	cp "$SOURCE/config/mammod.toml" "$1/share/mammod/mammod.toml"
	cp "$SOURCE"/*.md "$1/share/doc/mammod/"
	cp -r "$SOURCE/docs/." "$1/share/doc/mammod/docs/"
	"$1/bin/python" -c 'import daemon.service' || die "what was installed cannot be loaded (see above)."
	[ "$("$1/bin/mammod" --version)" = "mammod $VERSION" ] || die "what was installed does not say that it is mammod $VERSION."
}

as_service() { # as the service's user, whose files these are
	if [ -z "$root" ] && id mammod >/dev/null 2>&1; then (cd / && runuser -u mammod -- "$@"); else "$@"; fi
}

check_data() { # check_data ENVIRONMENT: 78 means that this version refuses these settings or this ledger
	[ -e "$ETC/mammod.toml" ] || return 0
	local status=0
	as_service "$1/bin/mammod" check --upgrade --config "$ETC/mammod.toml" || status=$?
	[ "$status" != 78 ] || die "mammod $VERSION does not run on what is here (see above). $KEPT_RUNNING"
	[ "$status" = 0 ] || say "Not all could be looked at (see above); the service says the rest when it starts."
}

# --- the system around it --------------------------------------------------------------------------------------------

put() { # put FILE DIR: one of our own files, which an upgrade replaces
	run install -D -m 0644 "$HERE/$1" "$2"
}

system_files() {
	put mammod.service "$LIB/systemd/system/mammod.service"
	put sysusers.conf "$LIB/sysusers.d/mammod.conf"
	put tmpfiles.conf "$LIB/tmpfiles.d/mammod.conf"
	if [ -z "$dry" ]; then
		mkdir -p "$(dirname "$COMMAND")"
		cat >"$COMMAND.new" <<END
#!/bin/sh
# mammod as the service's own user where root calls it, so that it leaves no files that the service cannot read.
if [ "\$(id -u)" = 0 ] && [ -z "$root" ]; then exec runuser -u mammod -- "$OPT/current/bin/mammod" "\$@"; fi
exec "$OPT/current/bin/mammod" "\$@"
END
		chmod 0755 "$COMMAND.new"
		mv -f "$COMMAND.new" "$COMMAND"
	fi
	[ -n "$root" ] && run mkdir -p -m 0700 "$ETC/secrets" "$DATA" && return
	if command -v systemd-sysusers >/dev/null; then
		run systemd-sysusers "$LIB/sysusers.d/mammod.conf"
	elif ! id mammod >/dev/null 2>&1; then
		run useradd --system --user-group --home-dir /var/lib/mammod --no-create-home --shell /usr/sbin/nologin mammod
	fi
	if command -v systemd-tmpfiles >/dev/null; then
		run systemd-tmpfiles --create "$LIB/tmpfiles.d/mammod.conf"
	else
		run install -d -m 0750 -o root -g mammod "$ETC"
		run install -d -m 0700 -o root -g root "$ETC/secrets"
		run install -d -m 0700 -o mammod -g mammod "$DATA"
	fi
}

settings() {
	local owner=()
	[ -n "$root" ] || owner=(-o root -g mammod)
	if [ ! -e "$ETC/mammod.toml" ]; then
		run install -D -m 0640 "${owner[@]}" "$SOURCE/config/mammod.toml" "$ETC/mammod.toml"
		if [ -n "$root" ] && [ -z "$dry" ]; then
			sed -i "s|^directory = \"/var/lib/mammod|directory = \"$DATA|" "$ETC/mammod.toml"
		fi
		say "Settings:  $ETC/mammod.toml is new: it must name the archive before the service can start."
	elif ! cmp -s "$SOURCE/config/mammod.toml" "$ETC/mammod.toml"; then
		run install -m 0640 "${owner[@]}" "$SOURCE/config/mammod.toml" "$ETC/mammod.toml.new"
		say "Settings:  $ETC/mammod.toml is kept; this version's defaults are beside it in mammod.toml.new."
	fi
}

switch_to() { # switch_to NAME: `current` is the old one or the new one at any moment
	ln -sfn "$1" "$OPT/current.new"
	mv -T "$OPT/current.new" "$OPT/current"
}

restart() { # restart OLD: the service is taken over, or goes back to the old version
	systemctl daemon-reload
	say "Restart:   waiting until mammod $VERSION is ready"
	systemctl restart mammod && return
	journalctl --unit mammod --lines 15 --no-pager >&2 || true
	if [ -n "$1" ]; then
		switch_to "$1"
		systemctl restart mammod ||
			die "mammod $VERSION did not start (its log is above), and neither does $1 now: mend what the log says and start it."
		die "mammod $VERSION did not start (its log is above); $1 runs again."
	fi
	die "mammod $VERSION did not start; its log is above."
}

install_it() {
	may_write
	check_source
	find_python
	check_room
	if systemd_runs && [ "$(systemctl --version | awk 'NR == 1 { print int($2) }')" -lt 250 ]; then
		die "the unit needs systemd 250 or newer (credentials from a folder); this is $(systemctl --version | head -n 1)."
	fi
	local old="" name kept
	[ ! -L "$OPT/current" ] || old="$(readlink "$OPT/current")"
	KEPT_RUNNING="Nothing was changed${old:+; $old stays}."
	name="$VERSION-$(date -u +%Y%m%dT%H%M%SZ)"
	say "mammod $VERSION into $OPT/$name${old:+, over $old}"
	if [ -n "$dry" ]; then
		say "would make a virtual environment by $python with $(locked service "${extras[@]}" | grep -c '==') packages of requirements.lock"
		system_files
		settings
		say "would point $OPT/current to $name$(in_service && [ -n "$start" ] && echo ', and restart the service')"
		return
	fi
	mkdir -p "$OPT"
	exec 8>"$OPT/.lock"
	flock -n 8 || die "another installation is under way."
	new="$OPT/$name"
	trap 'status=$?; rm -rf "$work"; [ $status = 0 ] || [ -z "$new" ] || { rm -rf "$new"; say "install.sh: failed. $KEPT_RUNNING" >&2; }' EXIT
	fill "$new"
	check_data "$new"
	local was_running=""
	! in_service || was_running=yes
	system_files
	settings
	switch_to "$name"
	new="" # whole, and in its place
	if [ -n "$was_running" ] && [ -n "$start" ]; then restart "$old"; fi
	for kept in "$OPT"/[0-9]*; do
		case "$(basename "$kept")" in "$name" | "$old") ;; *) rm -rf "$kept" ;; esac
	done
	say "Installed: mammod $VERSION${old:+; $old is kept until the next upgrade}"
	closing_words "$was_running" "$old"
}

closing_words() { # closing_words WAS_RUNNING OLD
	if [ -n "$1" ]; then
		[ -n "$start" ] || say "Not restarted, as asked: systemctl restart mammod takes the new version."
		return
	fi
	systemd_runs && systemctl daemon-reload
	if [ -n "$root" ]; then
		say "Not started: this is a trial below $root."
	elif ! systemd_runs; then
		say "Not started: systemd does not run here. The unit is at $LIB/systemd/system/mammod.service."
	fi
	if [ -n "$2" ]; then # it was stopped, and stays so
		if systemd_runs; then say "Not running before, so not started: systemctl start mammod"; fi
		return
	fi
	say "Next:      1. edit $ETC/mammod.toml: [listener] ae_title and peers, [archive] host, port and ae_title"
	say "           2. $COMMAND check   says what is still wrong"
	if [ -n "$root" ]; then
		say "           3. $OPT/current/bin/mammod serve --config $ETC/mammod.toml"
	elif systemd_runs; then
		say "           3. systemctl enable --now mammod"
	else
		say "           3. with systemd: systemctl enable --now mammod; without: $OPT/current/bin/mammod serve as user mammod"
	fi
}

# --- the other actions -----------------------------------------------------------------------------------------------

download_it() {
	check_source
	find_python
	locked service build "${extras[@]}" >"$work/requirements.txt"
	say "Fetching $(grep -c '==' "$work/requirements.txt") packages for $("$python" --version) on $(uname -m) into $download"
	[ -z "$dry" ] || return 0
	mkdir -p "$download"
	"$python" -m venv "$work/environment"
	pip "$work/environment" download --require-hashes --only-binary :all: --dest "$download" --requirement "$work/requirements.txt"
	[ -n "$wheel" ] || make_wheel "$download"
	[ -z "$wheel" ] || cp "$wheel" "$download"
	say "On the other machine, with the same Python, from this same release: deploy/install.sh --offline FOLDER"
}

uninstall_it() {
	may_write
	if [ -n "$purge" ]; then
		say "--purge removes $ETC (settings, secrets) and $DATA: every image, report and job, those not yet sent to the archive too."
		if [ -z "$yes" ] && [ -z "$dry" ]; then
			[ -t 0 ] || die "nobody to ask: say --yes if that is meant. Nothing was removed."
			local answer=""
			read -r -p 'Type "purge" to do so: ' answer
			[ "$answer" = purge ] || die "not purged. Nothing was removed."
		fi
	fi
	if systemd_runs; then run systemctl disable --now --quiet mammod || true; fi
	run rm -rf "$OPT"
	run rm -f "$COMMAND" "$LIB/systemd/system/mammod.service" "$LIB/sysusers.d/mammod.conf" "$LIB/tmpfiles.d/mammod.conf"
	if [ -n "$purge" ]; then
		run rm -rf "$ETC" "$DATA"
		if [ -z "$root" ] && id mammod >/dev/null 2>&1; then run userdel mammod; fi
		say "Removed: the program, settings and data."
	else
		say "Removed: the program. Kept: $ETC, $DATA and the user mammod."
	fi
	if systemd_runs; then run systemctl daemon-reload; fi
}

work="$(mktemp -d)"
new=""
trap 'rm -rf "$work"' EXIT
"${action}_it"
