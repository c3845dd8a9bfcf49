#!/bin/sh
# Flamegraph of ringpostd under load.
#
#   perf/flame.sh OUT.svg [options of `ringpost-perf deliver`]
#
# Records the daemon alone, by its process id, from the middle of a run; cpu-clock, because virtual
# machines have no hardware counters. Needs perf (Debian: linux-perf) and, for the picture, inferno
# (cargo install inferno --locked). Without inferno the samples are kept and the next step is said.
set -eu

out=${1:?usage: perf/flame.sh OUT.svg [options of ringpost-perf deliver]}
shift
here=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$here/target}
command -v perf > /dev/null || {
    echo "perf is missing; Debian: apt-get install linux-perf" >&2
    exit 2
}

cd "$here"
cargo build --release -p ringpost-daemon --bins -p ringpost-perf
work=$(mktemp -d)
load=
trap 'test -z "$load" || kill "$load" 2> /dev/null || true; rm -rf "$work"' EXIT

seconds=15
"$target/release/ringpost-perf" deliver --no-build --no-limits --seconds $seconds --warm-up 2 "$@" \
    > "$work/result" 2> "$work/progress" &
load=$!

# The daemon is the generator's only child; it appears within moments.
daemon=
while test -z "$daemon" && kill -0 "$load" 2> /dev/null; do
    daemon=$(pgrep -P "$load" -x ringpostd || true)
    test -n "$daemon" || sleep 0.1
done
test -n "$daemon" || {
    cat "$work/progress" >&2
    exit 1
}

# Starting (the first log files are filled) and warming up are not the subject.
sleep 4
perf record -q -F 997 -e cpu-clock --call-graph dwarf,16384 -p "$daemon" -o "$work/perf.data" \
    -- sleep $((seconds - 6))
status=0
wait "$load" || status=$?
load=
cat "$work/result"

if command -v inferno-collapse-perf > /dev/null && command -v inferno-flamegraph > /dev/null; then
    perf script -i "$work/perf.data" 2> /dev/null | inferno-collapse-perf > "$work/folded"
    inferno-flamegraph --title "ringpostd: deliver $*" < "$work/folded" > "$out"
    cp "$work/folded" "${out%.svg}.folded"
    echo "wrote $out and ${out%.svg}.folded" >&2
else
    cp "$work/perf.data" "${out%.svg}.perf.data"
    echo "inferno is missing (cargo install inferno --locked); then:" >&2
    echo "  perf script -i ${out%.svg}.perf.data | inferno-collapse-perf | inferno-flamegraph > $out" >&2
    perf report -i "$work/perf.data" --stdio --no-children -g none 2> /dev/null |
        grep -v '^#' | cut -c1-120 | head -60
fi
exit $status
