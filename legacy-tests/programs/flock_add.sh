# Adds 1 to the number in the file $1, $2 times, each under flock(1).
set -eu
for _ in $(seq 1 "$2"); do
    flock "$1.lock" sh -c 'read -r number <"$0"; echo $((number + 1)) >"$0"' "$1"
done
