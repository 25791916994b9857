#!/bin/bash
# A rootless shell of unshare(1): root of users of its own, whose names, System V objects, network, mounts and processes nobody else has.
# Another one has only processes of its own, a third is root of users in users.
asked=
trap 'asked=1' USR1
# Where paths of /proc are covered, as they are in containers of real root, nobody may mount another.
proc=--mount-proc
! grep -q ' /proc/' /proc/self/mounts || proc=
coproc INNER { exec unshare --user --map-root-user --uts --ipc --mount --pid --fork $proc unshare --net bash; }
to=${INNER[1]} from=${INNER[0]}
coproc PIDS { exec unshare --pid --fork $proc bash; } 2>/dev/null
coproc TWICE { exec unshare --user --map-user=9 --map-group=8 unshare --user --map-root-user --uts bash; } 2>/dev/null
ask() { echo "$1" >&"$to"; read -r -t 30 answer <&"$from"; }
must() { ask "$1"; [ "$answer" = "$2" ] || { echo "FAIL: $1: '$answer', not '$2'"; exit 1; }; }
must 'hostname inner; x=kept; ipcmk --shmem 100 >/dev/null; ipcs --shmems | grep -c 0x' 1
ask 'readlink /proc/self/ns/user'
[ "$answer" != "$(readlink /proc/self/ns/user)" ] || { echo "FAIL: the same users"; exit 1; }
must 'id --user; exec 9>/tmp/of-inner' 0
must 'mount -t tmpfs -o size=1m none /mnt && mkdir /mnt/d && echo kept >/mnt/d/file && mount --bind /mnt/d /srv && ls /srv' file
must 'mount -o remount,bind,ro,noexec /srv; cd /srv; exec 8>>/mnt/d/file; exec 7</mnt/d/file; rm /mnt/d/file; touch /mnt/d/other; pwd' /srv
must 'sleep 1000 & p=$!; kill -0 $p && echo $$ $PPID' '1 0'
inside() { to=${PIDS[1]} from=${PIDS[0]}; must "$@"; to=${INNER[1]} from=${INNER[0]}; }
inside 'sleep 1000 & sleep 1000 & echo $$ $PPID $!' '1 0 3'
[ -z "$proc" ] || inside 'until [ "$(cat /proc/2/comm)" = sleep ]; do :; done; exec 6</proc/2/comm; echo k' k
twice() { to=${TWICE[1]} from=${TWICE[0]}; must "$@"; to=${INNER[1]} from=${INNER[0]}; }
twice 'echo $(cat /proc/self/uid_map /proc/self/gid_map) $(cat /proc/self/setgroups)' '0 9 1 0 8 1 deny'
twice 'hostname twice; unshare --user --map-user=3 sleep 1000 & p=$!; until [ "$(cat /proc/$p/comm)" = sleep ]; do :; done; echo $(cat /proc/$p/uid_map)' '3 0 1'
echo ready
while [ -z "$asked" ]; do sleep 0.01; done
must 'echo $x' kept
must hostname inner
must 'id --user' 0
must 'echo more >&8; echo $(cat <&7)' 'kept more'
must 'pwd; touch x 2>/dev/null || touch /mnt/d/new' /srv
must 'echo $(ls /srv)' 'new other'
must 'findmnt --noheadings --output OPTIONS /srv | cut --delimiter=, --fields=1,2' ro,noexec
must 'wc --lines </proc/self/uid_map' 1
must 'kill -0 $p && echo $$ $PPID' '1 0'
[ -z "$proc" ] || must 'echo $(cat /proc/1/comm /proc/$p/comm)' 'bash sleep'
inside 'kill -0 2 && kill -0 3 && echo $$ $PPID' '1 0'
[ -z "$proc" ] || inside 'echo $(ls /proc | grep ^[0-9] | sort -n | head -3) $(cat <&6)' '1 2 3 sleep'
[ -z "$proc" ] || inside 'exec 6<&-; umount /proc && mount -t proc none /proc && cat /proc/1/comm' bash
inside 'kill 2 3; wait; kill -0 2 2>/dev/null; echo $?' 1
must 'ipcs --shmems | grep -c 0x' 1
must 'grep --count : /proc/net/dev' 1
must 'hostname other && hostname' other
must 'chown 0 /tmp/of-inner && unshare --mount --net true; echo $?' 0
twice 'echo $(cat /proc/self/uid_map /proc/self/gid_map) $(cat /proc/self/setgroups)' '0 9 1 0 8 1 deny'
twice 'hostname; hostname other; kill $p; wait' twice
twice 'unshare --user --map-user=7 id --user' 7
for kind in user uts ipc net mnt pid; do
    ask "readlink /proc/self/ns/$kind"
    [ "$answer" != "$(readlink /proc/self/ns/$kind)" ] || { echo "FAIL: the same $kind namespace"; exit 1; }
done
[ -z "$(ls /mnt /srv | grep other)" ] || { echo "FAIL: its files are everybody's"; exit 1; }
[ "$(hostname)" != other ] || { echo "FAIL: its name is everybody's"; exit 1; }
[ "$(ipcs --shmems | grep -c 0x)" = 0 ] || { echo "FAIL: its segment is everybody's"; exit 1; }
echo ok
