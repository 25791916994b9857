#!/bin/bash
# A rootless shell of unshare(1): root of users of its own, whose names, System V objects and network nobody else has.
asked=
trap 'asked=1' USR1
coproc INNER { exec unshare --user --map-root-user --uts --ipc unshare --net bash; }
to=${INNER[1]} from=${INNER[0]}
ask() { echo "$1" >&"$to"; read -r -t 30 answer <&"$from"; }
must() { ask "$1"; [ "$answer" = "$2" ] || { echo "FAIL: $1: '$answer', not '$2'"; exit 1; }; }
must 'hostname inner; x=kept; ipcmk --shmem 100 >/dev/null; ipcs --shmems | grep -c 0x' 1
ask 'readlink /proc/self/ns/user'
[ "$answer" != "$(readlink /proc/self/ns/user)" ] || { echo "FAIL: the same users"; exit 1; }
must 'id --user; exec 9>/tmp/of-inner' 0
echo ready
while [ -z "$asked" ]; do sleep 0.01; done
must 'echo $x' kept
must hostname inner
must 'id --user' 0
must 'wc --lines </proc/self/uid_map' 1
must 'ipcs --shmems | grep -c 0x' 1
must 'grep --count : /proc/net/dev' 1
must 'hostname other && hostname' other
must 'chown 0 /tmp/of-inner && unshare --mount --net true; echo $?' 0
for kind in user uts ipc net; do
    ask "readlink /proc/self/ns/$kind"
    [ "$answer" != "$(readlink /proc/self/ns/$kind)" ] || { echo "FAIL: the same $kind namespace"; exit 1; }
done
[ "$(hostname)" != other ] || { echo "FAIL: its name is everybody's"; exit 1; }
[ "$(ipcs --shmems | grep -c 0x)" = 0 ] || { echo "FAIL: its segment is everybody's"; exit 1; }
echo ok
